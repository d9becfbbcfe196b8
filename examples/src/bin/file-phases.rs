//! Phases over files, as programs that a node runs: instructions come as JSON on standard input, the
//! result goes as JSON to standard output.
//!
//! `generate-file`, `calculate-hash` and `delete-file` make one pipeline; `hash`, `compress` and
//! `index` another. Try one alone:
//!
//! ```text
//! echo '{"path":"Cargo.toml"}' | file-phases hash
//! ```

use std::{
    env, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Tells the node that another attempt would do no better.
const NO_RETRY: u8 = 65;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let phase = env::args().nth(1).unwrap_or_default();
    match run(&phase) {
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{phase}: {error}");
            ExitCode::from(if error.is::<Unusable>() { NO_RETRY } else { 1 })
        }
    }
}

/// The instructions can never be carried out.
#[derive(Debug)]
struct Unusable(String);

impl std::fmt::Display for Unusable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

fn run(phase: &str) -> Result<Value, Error> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let instructions: Map<String, Value> = serde_json::from_str(&text)?;
    note_run(phase)?;
    match phase {
        "generate-file" => generate_file(&instructions),
        "calculate-hash" | "hash" => Ok(json!({ "sha256": hash(&path(&instructions, "path")?)? })),
        "delete-file" => delete_file(&instructions),
        "compress" => compress(&instructions),
        "index" => index(&instructions),
        other => Err(Unusable(format!("there is no phase `{other}`")).into()),
    }
}

/// Leaves a line for each run, if asked to: whoever counts them knows how often a phase really ran.
fn note_run(phase: &str) -> Result<(), Error> {
    let Ok(file) = env::var("FILE_PHASES_RUNS") else { return Ok(()) };
    let job = env::var("CARBONMESH_JOB_ID").unwrap_or_default();
    let mut runs = fs::OpenOptions::new().create(true).append(true).open(file)?;
    // One write: lines of several processes do not mix.
    runs.write_all(format!("{job} {phase}\n").as_bytes())?;
    Ok(())
}

fn path(instructions: &Map<String, Value>, key: &str) -> Result<PathBuf, Error> {
    let text = instructions.get(key).and_then(Value::as_str);
    text.map(PathBuf::from)
        .ok_or_else(|| Unusable(format!("the instructions have no `{key}`")).into())
}

fn generate_file(instructions: &Map<String, Value>) -> Result<Value, Error> {
    let folder = path(instructions, "folder")?;
    let bytes = instructions.get("bytes").and_then(Value::as_u64).unwrap_or(1024) as usize;
    let seed = instructions.get("seed").and_then(Value::as_u64).unwrap_or(0);
    let job = env::var("CARBONMESH_JOB_ID").unwrap_or_else(|_| "alone".to_owned());
    let file = folder.join(job);
    // Made from the seed alone, so a second run makes the same file.
    let mut content = Vec::with_capacity(bytes + 32);
    let mut block = Sha256::digest(seed.to_le_bytes());
    while content.len() < bytes {
        content.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    content.truncate(bytes);
    fs::write(&file, content)?;
    Ok(json!({ "path": file }))
}

fn hash(path: &Path) -> Result<String, Error> {
    let digest = Sha256::digest(fs::read(path)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn delete_file(instructions: &Map<String, Value>) -> Result<Value, Error> {
    match fs::remove_file(path(instructions, "path")?) {
        Ok(()) => Ok(json!({ "deleted": true })),
        // An earlier attempt did it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(json!({ "deleted": false })),
        Err(error) => Err(error.into()),
    }
}

fn compress(instructions: &Map<String, Value>) -> Result<Value, Error> {
    let source = fs::read(path(instructions, "path")?)?;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&source)?;
    let packed = encoder.finish()?;
    Ok(json!({ "bytes": source.len(), "gzip_bytes": packed.len() }))
}

/// The words of a file that occur most.
fn index(instructions: &Map<String, Value>) -> Result<Value, Error> {
    let text = String::from_utf8_lossy(&fs::read(path(instructions, "path")?)?).into_owned();
    let mut counts = std::collections::BTreeMap::<&str, u32>::new();
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    let mut ranked: Vec<(&str, u32)> = counts.into_iter().collect();
    ranked.sort_by_key(|(word, count)| (std::cmp::Reverse(*count), *word));
    let words: Vec<&str> = ranked.into_iter().take(5).map(|(word, _)| word).collect();
    Ok(json!({ "lines": text.lines().count(), "words": words }))
}
