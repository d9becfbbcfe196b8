//! The SDKs that come with this program: a file of handlers needs nothing but its language.
//!
//! They are unpacked once into the user's cache, in a folder named after what is in it.

use std::{
    env,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::HostSettings;

/// The Python package, file by file.
const PYTHON: [(&str, &str); 8] = [
    ("__init__.py", include_str!("../../../../sdk/python/carbonmesh/__init__.py")),
    ("__main__.py", include_str!("../../../../sdk/python/carbonmesh/__main__.py")),
    ("client.py", include_str!("../../../../sdk/python/carbonmesh/client.py")),
    ("host.py", include_str!("../../../../sdk/python/carbonmesh/host.py")),
    ("phase.py", include_str!("../../../../sdk/python/carbonmesh/phase.py")),
    ("pipeline.py", include_str!("../../../../sdk/python/carbonmesh/pipeline.py")),
    ("storage.py", include_str!("../../../../sdk/python/carbonmesh/storage.py")),
    ("wire.py", include_str!("../../../../sdk/python/carbonmesh/wire.py")),
];

/// How the handlers of a file are run, by the language that its name tells.
///
/// # Errors
/// There is no such file or no SDK for it, or the SDK cannot be unpacked; the text says which.
pub(crate) fn host_of(name: &str, file: &Path) -> Result<HostSettings, String> {
    // It may be run in another folder.
    let full = file.canonicalize().ok().filter(|full| full.is_file());
    let full = full.ok_or_else(|| format!("there is no file {}", file.display()))?;
    let path = full.to_str().ok_or("its name is no UTF-8: rename it")?.to_owned();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("py") => {
            let sdk = unpacked("python", &PYTHON)?;
            let command = ["python3", "-m", "carbonmesh"].map(str::to_owned);
            let command = command.into_iter().chain([path]).collect();
            let mut settings = HostSettings::new(name, command);
            let rest = env::var_os("PYTHONPATH");
            let paths = [sdk].into_iter().chain(rest.iter().flat_map(env::split_paths));
            let paths = env::join_paths(paths).map_err(|error| error.to_string())?;
            settings.env.insert("PYTHONPATH".to_owned(), paths.to_string_lossy().into_owned());
            Ok(settings)
        }
        Some("js" | "mjs") => Ok(HostSettings::new(name, vec!["node".to_owned(), path])),
        _ => Err(format!(
            "{} is neither Python (.py) nor JavaScript (.js, .mjs): for other languages give the \
             host's command in the configuration, as hosts.NAME.command",
            file.display()
        )),
    }
}

/// The folder in which the package `carbonmesh` lies.
fn unpacked(language: &str, files: &[(&str, &str)]) -> Result<PathBuf, String> {
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let base = base.ok_or("there is no home folder for the SDK: set XDG_CACHE_HOME")?;
    let mut digest = Sha256::new();
    for (name, text) in files {
        digest.update(name);
        digest.update([0]);
        digest.update(text);
        digest.update([0]);
    }
    let digest: String =
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let folder = base.join("carbonmesh/sdk").join(format!("{language}-{digest}"));
    // A power cut, or somebody else, may have left other files there.
    if !is_whole(&folder, files) {
        unpack(&folder, files)
            .map_err(|error| format!("cannot unpack the SDK into {}: {error}", folder.display()))?;
    }
    Ok(folder)
}

fn is_whole(folder: &Path, files: &[(&str, &str)]) -> bool {
    let same = |(name, text): &(&str, &str)| {
        fs::read_to_string(folder.join("carbonmesh").join(name)).is_ok_and(|found| found == *text)
    };
    files.iter().all(same)
}

/// All of it or nothing: another node of this user may do the same.
fn unpack(folder: &Path, files: &[(&str, &str)]) -> io::Result<()> {
    let fresh = folder.with_extension(format!("new-{:016x}", rand::random::<u64>()));
    let package = fresh.join("carbonmesh");
    DirBuilder::new().recursive(true).mode(0o700).create(&package)?;
    for (name, text) in files {
        fs::write(package.join(name), text)?;
    }
    if fs::rename(&fresh, folder).is_ok() {
        return Ok(());
    }
    // What is there is another node's, and whole, or has to go.
    if !is_whole(folder, files) {
        fs::remove_dir_all(folder)?;
        return fs::rename(&fresh, folder);
    }
    fs::remove_dir_all(&fresh)
}
