//! `carbonmesh handler ...`: sources that the cluster keeps and ships to nodes that accept them.
//!
//! What goes up is checked before: a syntax error is told here, by the language's own program, and not by
//! nodes that cannot start it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command as Program,
    time::Duration,
};

use carbonmesh_protocol::{
    handler::{Language, MAX_SOURCE_BYTES, SourceHash},
    name::{DEFAULT_NAMESPACE, Name, Namespace},
    requirement::Requirement,
};
use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    client::{Client, Typed},
    failure::Failure,
    output::{Output, clean, joined, table, values},
};
use crate::{
    http::view::{HandlerDoc, HandlerPutDoc, HandlersDoc, source_text},
    library::{is_on_path, processor},
    phase::{WasmPhase, WasmSettings, wasm},
};

/// How many digits of a hash are shown.
const SHORT_HASH: usize = 12;

/// Says where a Python source is no Python, and leaves nothing behind.
const CHECK_PYTHON: &str = "import sys; path = sys.argv[1]; compile(open(path, 'rb').read(), path, 'exec', dont_inherit=True)";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Keep a file as the handler of a phase, in place of the one before
    Put {
        /// The source
        file: PathBuf,
        /// Which phase it runs [default: the file's name without its ending]
        #[arg(long)]
        phase: Option<Typed>,
        /// python, javascript, shell or wasm [default: by the file's ending]
        #[arg(long)]
        language: Option<Language>,
        /// What a node must have to run it, such as gpu or memory>=8GiB
        #[arg(long, value_name = "LABEL")]
        requires: Vec<Requirement>,
        /// How many attempts of it a node runs at once
        #[arg(long, default_value_t = 1)]
        slots: u32,
    },
    /// List the handlers
    Ls,
    /// Show one handler, its versions and its source
    Show {
        /// Of which phase
        phase: Typed,
    },
    /// Remove the handler of a phase
    Rm {
        /// Of which phase
        phase: Typed,
        /// Even if a pipeline uses it
        #[arg(long)]
        force: bool,
    },
    /// Make the cluster's handlers those of a folder: each file is the handler of the phase of its name
    Sync {
        /// Files that end in .py, .js, .mjs, .sh or .wasm
        folder: PathBuf,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Also remove handlers that pipelines use
        #[arg(long)]
        force: bool,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Put { file, phase, language, requires, slots } => {
            let phase = phase.map(|phase| client.full(&phase));
            let source = Source::read(&file, phase, language, client)?;
            let requires = requires.iter().map(ToString::to_string).collect();
            source.check(out)?;
            let put = put(client, &source, requires, slots).await?;
            let document = serde_json::to_value(&put).unwrap_or_default();
            out.document(&document, || {
                let what = if put.changed { "is kept" } else { "was there already" };
                let sha256 = &put.sha256[..SHORT_HASH.min(put.sha256.len())];
                format!("the handler of {} {what} as {sha256} on {} nodes", put.phase, put.copies)
            })
        }
        Command::Ls => {
            let answer = client.get::<HandlersDoc>(&["handlers"], &[]).await?;
            out.answer(&answer, |found| list(&found.handlers))
        }
        Command::Show { phase } => {
            let phase = client.full(&phase);
            let answer = client.get::<HandlerDoc>(&["handlers", phase.as_str()], &[]).await?;
            out.answer(&answer, show)
        }
        Command::Rm { phase, force } => {
            let phase = client.full(&phase);
            remove(client, phase.as_str(), force).await?;
            out.document(&json!({ "removed": phase.as_str() }), || {
                format!("the handler of {phase} is removed")
            })
        }
        Command::Sync { folder, dry_run, force } => {
            sync(&folder, dry_run, force, client, out).await
        }
    }
}

/// A source that may be put.
struct Source {
    file: PathBuf,
    phase: Name,
    language: Language,
    bytes: Vec<u8>,
}

impl Source {
    /// Without a phase, it is of the one of the file's name, where the client works.
    fn read(
        file: &Path,
        phase: Option<Name>,
        language: Option<Language>,
        client: &Client,
    ) -> Result<Self, Failure> {
        let shown = file.display();
        let wrong = |reason: String| Failure::Usage(format!("{shown}: {reason}"));
        let bytes = fs::metadata(file).map_err(|error| wrong(error.to_string()))?.len();
        if bytes > MAX_SOURCE_BYTES as u64 {
            return Err(wrong(format!(
                "it has {bytes} bytes: at most {MAX_SOURCE_BYTES} are possible; put what is larger \
                 on the nodes, and import it"
            )));
        }
        let bytes = fs::read(file).map_err(|error| wrong(error.to_string()))?;
        let phase = match phase {
            Some(phase) => phase,
            None => {
                let stem = file.file_stem().unwrap_or_default().to_string_lossy();
                let stem = Name::plain(&stem);
                client.full_plain(
                    &stem.map_err(|error| wrong(format!("{error}; give another with --phase")))?,
                )
            }
        };
        let language = language.or_else(|| language_of(file)).ok_or_else(|| {
            wrong("its ending tells no language: give one with --language".to_owned())
        })?;
        if language.is_text() && std::str::from_utf8(&bytes).is_err() {
            return Err(wrong(format!("it is no UTF-8 text, as a source in {language} is")));
        }
        Ok(Self { file: file.to_owned(), phase, language, bytes })
    }

    fn hash(&self) -> String {
        SourceHash::of(&self.bytes).to_string()
    }

    /// As documents have it.
    fn text(&self) -> String {
        source_text(self.language, &self.bytes)
    }

    /// Compiles a module, as nodes would.
    fn check_module(&self, out: &Output) -> Result<(), Failure> {
        let shown = self.file.display();
        if !wasm::IS_BUILT_IN {
            if !out.is_json() {
                eprintln!("note: {}: {shown} is not checked", wasm::NOT_BUILT_IN);
            }
            return Ok(());
        }
        let loaded = WasmPhase::load(WasmSettings::new(self.phase.local()), &self.bytes);
        loaded.map(drop).map_err(|why| Failure::Usage(format!("{shown}: {why}")))
    }

    /// Has the language's own program read it, without running it.
    fn check(&self, out: &Output) -> Result<(), Failure> {
        let Some(program) = processor(self.language) else { return self.check_module(out) };
        if !is_on_path(program) {
            if !out.is_json() {
                eprintln!(
                    "note: there is no {program} here: {} is not checked",
                    self.file.display()
                );
            }
            return Ok(());
        }
        let mut command = Program::new(program);
        match self.language {
            Language::Python => command.args(["-c", CHECK_PYTHON]),
            Language::JavaScript => command.arg("--check"),
            Language::Shell => command.arg("-n"),
            Language::Wasm => return self.check_module(out),
        };
        let done = command.arg(&self.file).output();
        let done =
            done.map_err(|error| Failure::Usage(format!("cannot run {program}: {error}")))?;
        if done.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(Failure::Usage(format!(
            "{}: {program} cannot read it:\n{}",
            self.file.display(),
            said.trim_end()
        )))
    }
}

fn language_of(file: &Path) -> Option<Language> {
    match file.extension()?.to_str()? {
        "py" => Some(Language::Python),
        "js" | "mjs" => Some(Language::JavaScript),
        "sh" => Some(Language::Shell),
        "wasm" => Some(Language::Wasm),
        _ => None,
    }
}

async fn put(
    client: &Client,
    source: &Source,
    requires: Vec<String>,
    slots: u32,
) -> Result<HandlerPutDoc, Failure> {
    let document = json!({
        "language": source.language,
        "source": source.text(),
        "requires": requires,
        "slots": slots,
    });
    let request = client.request(Method::PUT, &["handlers", source.phase.as_str()], &[]);
    Ok(client.answer(request.json(&document), Duration::ZERO).await?.document)
}

async fn remove(client: &Client, phase: &str, force: bool) -> Result<(), Failure> {
    let force = if force { "true" } else { "false" };
    let request = client.request(Method::DELETE, &["handlers", phase], &[("force", force)]);
    client.text(request, Duration::ZERO).await.map(drop)
}

/// What a folder and the cluster differ in.
#[derive(Default)]
struct Differences {
    new: Vec<Source>,
    changed: Vec<Source>,
    unchanged: Vec<String>,
    removed: Vec<String>,
}

impl Differences {
    fn between(
        folder: &Path,
        known: &BTreeMap<String, HandlerDoc>,
        client: &Client,
    ) -> Result<Self, Failure> {
        let wrong = |reason: String| Failure::Usage(format!("{}: {reason}", folder.display()));
        let mut sources: BTreeMap<String, Source> = BTreeMap::new();
        let entries = fs::read_dir(folder).map_err(|error| wrong(error.to_string()))?;
        for entry in entries {
            let path = entry.map_err(|error| wrong(error.to_string()))?.path();
            if !path.is_file() || language_of(&path).is_none() {
                continue;
            }
            let source = Source::read(&path, None, None, client)?;
            if let Some(other) = sources.get(source.phase.as_str()) {
                let (one, other) = (source.file.display(), other.file.display());
                return Err(wrong(format!(
                    "{one} and {other} are of one phase: rename one of them"
                )));
            }
            sources.insert(source.phase.to_string(), source);
        }
        let mut found = Self::default();
        found.removed.extend(known.keys().filter(|phase| !sources.contains_key(*phase)).cloned());
        for (phase, source) in sources {
            match known.get(&phase) {
                None => found.new.push(source),
                Some(doc) if doc.sha256 == source.hash() && doc.language == source.language => {
                    found.unchanged.push(phase);
                }
                Some(_) => found.changed.push(source),
            }
        }
        Ok(found)
    }
}

async fn sync(
    folder: &Path,
    dry_run: bool,
    force: bool,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let known = client.get::<HandlersDoc>(&["handlers"], &[]).await?.document.handlers;
    // A folder is for one namespace: what others have is not its business.
    let own = client.namespace().map_or(DEFAULT_NAMESPACE, Namespace::as_str);
    let is_own = |phase: &str| phase.parse::<Name>().is_ok_and(|name| name.namespace() == own);
    let known = known.into_iter().filter(|handler| is_own(&handler.phase));
    let known: BTreeMap<String, HandlerDoc> =
        known.map(|handler| (handler.phase.clone(), handler)).collect();
    let found = Differences::between(folder, &known, client)?;
    let sources = || found.new.iter().chain(&found.changed);
    // All of them first: half of a folder would be worse than none of it.
    sources().try_for_each(|source| source.check(out))?;
    if !dry_run {
        for source in sources() {
            // What was said of it beside its source stays.
            let before = known.get(source.phase.as_str());
            let requires = before.map(|before| before.requires.clone()).unwrap_or_default();
            put(client, source, requires, before.map_or(1, |before| before.slots)).await?;
        }
        for phase in &found.removed {
            remove(client, phase, force).await?;
        }
    }
    let names = |sources: &[Source]| -> Vec<String> {
        sources.iter().map(|source| source.phase.to_string()).collect()
    };
    let kinds = [
        ("new", names(&found.new)),
        ("changed", names(&found.changed)),
        ("unchanged", found.unchanged),
        ("removed", found.removed),
    ];
    let document = json!({
        "dry_run": dry_run,
        "new": kinds[0].1, "changed": kinds[1].1, "unchanged": kinds[2].1, "removed": kinds[3].1,
    });
    out.document(&document, || {
        let lines = kinds.map(|(kind, phases)| format!("{kind}: {}", joined(phases)));
        let end = if dry_run { "\nnothing was changed (--dry-run)" } else { "" };
        format!("{}{end}", lines.join("\n"))
    })
}

fn short_hash(handler: &HandlerDoc) -> String {
    handler.sha256.chars().take(SHORT_HASH).collect()
}

fn list(handlers: &[HandlerDoc]) -> String {
    let rows = handlers.iter().map(|one| {
        [
            clean(&one.phase),
            one.language.to_string(),
            short_hash(one),
            one.bytes.to_string(),
            one.slots.to_string(),
            joined(&one.requires),
            one.versions.first().map_or_else(String::new, |version| clean(&version.put_at)),
        ]
    });
    table(["PHASE", "LANGUAGE", "SHA256", "BYTES", "SLOTS", "REQUIRES", "PUT"], rows)
}

fn show(handler: &HandlerDoc) -> String {
    let head = values([
        ("phase", Some(clean(&handler.phase))),
        ("language", Some(handler.language.to_string())),
        ("sha256", Some(clean(&handler.sha256))),
        ("bytes", Some(handler.bytes.to_string())),
        ("slots", Some(handler.slots.to_string())),
        ("requires", Some(joined(&handler.requires))),
    ]);
    let versions = handler.versions.iter().map(|one| {
        [one.change.to_string(), one.sha256.chars().take(SHORT_HASH).collect(), clean(&one.put_at)]
    });
    let versions = table(["CHANGE", "SHA256", "PUT"], versions);
    if !handler.language.is_text() {
        return format!("{head}\n\n{versions}\n\na module is not shown: -o json has it in Base64");
    }
    // As it is, but for what a terminal would take for an order.
    let source = handler.source.as_deref().unwrap_or_default();
    let source: Vec<String> = source.lines().map(clean).collect();
    format!("{head}\n\n{versions}\n\n{}", source.join("\n"))
}
