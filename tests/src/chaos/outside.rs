//! The outer half of the program: starts itself again within namespaces that end with it.
//!
//! Everything that a run makes (processes, mounts, networks, temporary files) is in there. Only the
//! report stays.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
};

use carbonmesh_examples::{
    api::Error,
    network::{can_isolate, start_again},
};

use crate::options::Options;

const PREFIX: &str = "carbonmesh-chaos-";

/// Runs the inner half; its exit code.
pub(crate) fn run(options: &Options) -> Result<u8, Error> {
    remove_leftovers()?;
    fs::create_dir_all(&options.out)?;
    let root = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let lock = File::open(root.path())?;
    lock.try_lock()?;
    let reduced = options.reduced || !can_isolate();
    if reduced {
        let why = match options.reduced {
            true => "as asked for",
            false => "this user may make no namespaces here, or there is no `ip` (iproute2)",
        };
        println!("Reduced run over loopback, {why}: no partitions, slow links or full disks.");
    }
    let mut more = vec![OsStr::new("--inside"), root.path().as_os_str()];
    if reduced && !options.reduced {
        more.push(OsStr::new("--reduced"));
    }
    start_again(!reduced, &more)
}

/// A run that was killed leaves its folder. From outside, the folder of one that goes on looks the
/// same, since what it holds is mounted inside only: the lock tells.
fn remove_leftovers() -> Result<(), Error> {
    for entry in fs::read_dir(env::temp_dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.starts_with(PREFIX) && path.is_dir();
        if is_ours && File::open(&path)?.try_lock().is_ok() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
