//! One attempt of a module.

use std::{fmt, path::Path};

use async_trait::async_trait;
use tokio::{sync::watch, time::timeout};
use wasmtime::{ExternType, Module, Trap, WasmBacktrace};
use wasmtime_wasi::{
    FsPerms, I32Exit, WasiCtxBuilder, cli::AsyncStdoutStream, p1::WasiP1Ctx,
    p2::pipe::MemoryInputPipe,
};

use super::{
    WasmSettings,
    machine::{Ended, Machine, Ready},
};
use crate::phase::{
    Fields, LogLevel, Phase, PhaseContext, PhaseError,
    exec::{LogBudget, PIPE_GRACE, failed, job_env, parse, read_items, read_log, read_output},
};

/// How much of what it prints may be on its way.
const PIPE_BYTES: usize = 64 << 10;

/// How many functions a failed one is told to have been called by.
const MAX_FRAMES: usize = 8;

/// From where a module may import.
const WASI: &str = "wasi_snapshot_preview1";

/// How components begin, where modules have another number.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

const AS_PROGRAM: &str =
    "build it as a program for WASI preview 1 (in Rust: `--target wasm32-wasip1`)";

/// See the [module](super).
pub struct WasmPhase {
    settings: WasmSettings,
    ready: Ready,
}

impl fmt::Debug for WasmPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WasmPhase").field(&self.settings).finish()
    }
}

impl WasmPhase {
    /// Compiles a module, and checks that it can be run so.
    ///
    /// # Errors
    /// It cannot be; the text says why, and the way out.
    pub fn load(settings: WasmSettings, module: &[u8]) -> Result<Self, String> {
        if module.starts_with(COMPONENT) {
            return Err(format!("it is a component, and only modules are run: {AS_PROGRAM}"));
        }
        let machine = Machine::get()?;
        let module = machine.compile(module).map_err(|error| {
            // What the engine says may go over several lines.
            let why = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            format!("it is no valid WebAssembly module: {why}")
        })?;
        check(&module, &settings)?;
        for folder in settings.read_folders.values().chain(settings.write_folders.values()) {
            check_folder(folder)?;
        }
        let ready = machine
            .link(&module)
            .map_err(|error| format!("it needs what WASI preview 1 does not give: {error:#}"))?;
        Ok(Self { settings, ready })
    }

    /// What an instance may see: its job, and what was granted.
    fn wasi(
        &self,
        context: &PhaseContext,
        (stdout, stderr): (AsyncStdoutStream, AsyncStdoutStream),
    ) -> Result<WasiP1Ctx, PhaseError> {
        let settings = &self.settings;
        let mut wasi = WasiCtxBuilder::new();
        wasi.arg(&settings.name)
            .stdin(MemoryInputPipe::new(context.instructions_json()?))
            .stdout(stdout)
            .stderr(stderr)
            .allow_tcp(false)
            .allow_udp(false)
            .allow_ip_name_lookup(false);
        for (name, value) in job_env(context) {
            wasi.env(name, value);
        }
        for (name, value) in settings.env.iter().chain(context.scope().all()) {
            wasi.env(name, value);
        }
        let reads = settings.read_folders.iter().map(|it| (it, FsPerms::ReadOnly));
        let writes = settings.write_folders.iter().map(|it| (it, FsPerms::ReadWrite));
        for ((inside, folder), rights) in reads.chain(writes) {
            wasi.preopened_dir(folder, inside, rights).map_err(|error| {
                // It was there when the node started, and may be again.
                PhaseError::Retry(format!("cannot open the folder {}: {error}", folder.display()))
            })?;
        }
        Ok(wasi.build_p1())
    }

    fn conclude(&self, ended: Ended, printed: &[u8], log: &str) -> Result<Fields, PhaseError> {
        let Err(error) = ended.result else { return parse(printed) };
        let (why, fatal) = match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(0)) => return parse(printed),
            Some(I32Exit(code)) => {
                (format!("exit code {code}"), self.settings.no_retry_codes.contains(code))
            }
            None => (trapped(&error), false),
        };
        let why = match ended.refused {
            Some(wanted) => format!(
                "{why}; it wanted {wanted} bytes of memory, and at most {} are allowed (max_memory)",
                self.settings.max_memory
            ),
            None => why,
        };
        Err(failed(why, fatal, printed, log))
    }
}

#[async_trait]
impl Phase for WasmPhase {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let machine = Machine::get().map_err(PhaseError::Retry)?;
        let (stdout, printing) = tokio::io::duplex(PIPE_BYTES);
        let (stderr, logging) = tokio::io::duplex(PIPE_BYTES);
        let streams = [printing, logging].map(|stream| AsyncStdoutStream::new(PIPE_BYTES, stream));
        let wasi = self.wasi(&context, streams.into())?;
        let mut instance = machine.run(self.ready.clone(), wasi, self.settings.max_memory);

        let (end_told, mut ended) = watch::channel(false);
        let output = async {
            match context.gives_items() {
                true => read_items(stdout, &context, &mut ended).await,
                false => read_output(stdout, self.settings.max_output).await,
            }
        };
        let log = async {
            let heard = |line: &str| context.say(LogLevel::Info, line);
            read_log(stderr, LogBudget::once(), || context.heartbeat(), heard).await
        };
        tokio::pin!(output, log);
        let (mut printed, mut logged) = (None, None);
        let ended = loop {
            tokio::select! {
                () = context.cancelled().cancelled() => {
                    instance.abort();
                    // It ends at the clock's next tick: what it was granted must not change after that.
                    let _ = (&mut instance).await;
                    return Err(PhaseError::Retry("the attempt was cancelled".to_owned()));
                }
                read = &mut output, if printed.is_none() => match read {
                    Ok(bytes) => printed = Some(bytes),
                    Err(error) => {
                        instance.abort();
                        let _ = (&mut instance).await;
                        return Err(error);
                    }
                },
                tail = &mut log, if logged.is_none() => logged = Some(tail),
                ended = &mut instance => break ended,
            }
        };
        end_told.send_replace(true);
        let ended = ended.map_err(|error| {
            PhaseError::Retry(format!("what runs WebAssembly modules has failed: {error}"))
        })?;
        let rest = async {
            if printed.is_none() {
                printed = Some(output.await?);
            }
            if logged.is_none() {
                logged = Some(log.await);
            }
            Ok::<_, PhaseError>(())
        };
        if context.gives_items() {
            // Items take as long as it takes until all are durable.
            rest.await?;
        } else if let Ok(read) = timeout(PIPE_GRACE, rest).await {
            read?;
        }
        let Some(printed) = printed else {
            return Err(PhaseError::Retry("its standard output stayed open".to_owned()));
        };
        self.conclude(ended, &printed, &logged.unwrap_or_default())
    }
}

/// Whether a module can be a phase, as far as can be seen without running it.
fn check(module: &Module, settings: &WasmSettings) -> Result<(), String> {
    let mut imports = module.imports();
    if let Some(foreign) = imports.find(|import| import.module() != WASI) {
        let (from, name) = (foreign.module(), foreign.name());
        return Err(format!(
            "it imports `{name}` from `{from}`, and only {WASI} is there: {AS_PROGRAM}"
        ));
    }
    match module.get_export("_start") {
        Some(ExternType::Func(start)) if start.params().len() + start.results().len() == 0 => {}
        _ => return Err(format!("it has no function `_start`: {AS_PROGRAM}")),
    }
    match module.get_export("memory") {
        Some(ExternType::Memory(memory)) => {
            let bytes = memory.minimum().saturating_mul(memory.page_size());
            let most = settings.max_memory;
            match bytes > most as u64 {
                true => Err(format!(
                    "it needs {bytes} bytes of memory at least, and {most} are allowed: raise \
                     max_memory"
                )),
                false => Ok(()),
            }
        }
        _ if module.imports().len() == 0 => Ok(()),
        _ => Err(format!("it does not export its `memory`: {AS_PROGRAM}")),
    }
}

fn check_folder(folder: &Path) -> Result<(), String> {
    match folder.is_dir() {
        true => Ok(()),
        false => Err(format!("there is no folder {}, which it is granted", folder.display())),
    }
}

/// What went wrong in a module, and where.
fn trapped(error: &wasmtime::Error) -> String {
    let why = match error.downcast_ref::<Trap>() {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let Some(trace) = error.downcast_ref::<WasmBacktrace>() else { return why };
    let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
        Some(name) => name.to_owned(),
        None => format!("function {}", frame.func_index()),
    };
    let frames: Vec<String> = trace.frames().iter().take(MAX_FRAMES).map(name).collect();
    match frames.is_empty() {
        true => why,
        false => format!("{why}, in {}", frames.join(" < ")),
    }
}
