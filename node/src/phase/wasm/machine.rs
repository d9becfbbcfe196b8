//! What all modules of this process share: the compiler, the threads that run them, and the clock that
//! takes a thread from one that does not give it back.
//!
//! Modules run on threads of their own, as many as there are cores: neither the network nor other phases
//! wait for one that computes. Each time the clock ticks a module yields, so that more of them than there
//! are threads run by turns, and one that nobody wants any more is gone at the next tick.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use tokio::runtime::Runtime;
use tokio_util::task::AbortOnDropHandle;
use wasmtime::{Config, Engine, InstancePre, Linker, Module, ResourceLimiter, Store};
use wasmtime_wasi::p1::{self, WasiP1Ctx};

/// For how long a module may keep a thread.
const TICK: Duration = Duration::from_millis(10);

/// How many entries a table may have: programs have one for each function that they call by a pointer.
const MAX_TABLE: usize = 1 << 20;

/// See the [module](self).
pub(super) struct Machine {
    engine: Engine,
    linker: Linker<Inside>,
    runtime: Runtime,
    ticker: Arc<Ticker>,
}

/// What belongs to one instance.
pub(super) struct Inside {
    wasi: WasiP1Ctx,
    memory: MemoryLimit,
}

/// How an instance has ended.
pub(super) struct Ended {
    pub(super) result: wasmtime::Result<()>,
    /// How much memory it wanted and did not get, in bytes.
    pub(super) refused: Option<usize>,
}

/// A module that is ready to run.
pub(super) type Ready = InstancePre<Inside>;

impl Machine {
    /// That of this process, which is there from its first use.
    ///
    /// # Errors
    /// The machine has no such processor, or refuses threads.
    pub(super) fn get() -> Result<&'static Self, String> {
        static MACHINE: OnceLock<Result<Machine, String>> = OnceLock::new();
        MACHINE.get_or_init(Self::start).as_ref().map_err(Clone::clone)
    }

    fn start() -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("WebAssembly cannot be run: {error}");
        let mut config = Config::new();
        config.epoch_interruption(true);
        let engine = Engine::new(&config).map_err(|error| failed(&error))?;
        let mut linker = Linker::new(&engine);
        p1::add_to_linker_async(&mut linker, |inside: &mut Inside| &mut inside.wasi)
            .map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("wasm")
            .enable_all()
            .build()
            .map_err(|error| failed(&error))?;
        let ticker = Arc::new(Ticker::default());
        let (ticks, ticked) = (ticker.clone(), engine.clone());
        thread::Builder::new()
            .name("wasm-clock".to_owned())
            .spawn(move || ticks.tick(&ticked))
            .map_err(|error| failed(&error))?;
        Ok(Self { engine, linker, runtime, ticker })
    }

    /// Compiles a module.
    pub(super) fn compile(&self, module: &[u8]) -> wasmtime::Result<Module> {
        Module::new(&self.engine, module)
    }

    /// Gives a module what it imports.
    pub(super) fn link(&self, module: &Module) -> wasmtime::Result<Ready> {
        self.linker.instantiate_pre(module)
    }

    /// Runs a new instance until it ends, or until the handle is dropped.
    pub(super) fn run(
        &self,
        ready: Ready,
        wasi: WasiP1Ctx,
        max_memory: usize,
    ) -> AbortOnDropHandle<Ended> {
        let memory = MemoryLimit { most: max_memory, refused: None };
        let running = Running::new(self.ticker.clone());
        let run = async move {
            let _running = running;
            let mut store = Store::new(ready.module().engine(), Inside { wasi, memory });
            store.limiter(|inside| &mut inside.memory);
            store.set_epoch_deadline(1);
            store.epoch_deadline_async_yield_and_update(1);
            let result = start(&ready, &mut store).await;
            Ended { result, refused: store.data().memory.refused }
        };
        AbortOnDropHandle::new(self.runtime.spawn(run))
    }
}

async fn start(ready: &Ready, store: &mut Store<Inside>) -> wasmtime::Result<()> {
    let instance = ready.instantiate_async(&mut *store).await?;
    let start = instance.get_typed_func::<(), ()>(&mut *store, "_start")?;
    start.call_async(store, ()).await
}

/// Refuses memory beyond a limit, and remembers that: a program that gets none often says no more than
/// that it gave up.
struct MemoryLimit {
    most: usize,
    refused: Option<usize>,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired <= self.most;
        if !fits {
            self.refused = Some(desired);
        }
        Ok(fits)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE)
    }

    fn memories(&self) -> usize {
        // The limit is for each: with one of them it is for all.
        1
    }

    fn tables(&self) -> usize {
        16
    }
}

/// The clock: it stands still while nothing runs.
#[derive(Default)]
struct Ticker {
    running: Mutex<usize>,
    wake: Condvar,
}

impl Ticker {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tick(&self, engine: &Engine) {
        loop {
            let idle = self.wake.wait_while(self.lock(), |running| *running == 0);
            drop(idle.unwrap_or_else(PoisonError::into_inner));
            thread::sleep(TICK);
            engine.increment_epoch();
        }
    }
}

/// An instance, as the clock sees it.
struct Running(Arc<Ticker>);

impl Running {
    fn new(ticker: Arc<Ticker>) -> Self {
        *ticker.lock() += 1;
        ticker.wake.notify_one();
        Self(ticker)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
    }
}
