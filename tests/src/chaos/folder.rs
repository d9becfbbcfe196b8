//! A node's data folder, and what can happen to it: nothing of this is known to the node.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use carbonmesh_examples::{
    api::Error,
    shell::{run, run_words},
};
use rand::{RngExt, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

/// The disk of one node: its own file system if that could be made.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    /// Copies of the data folder lie elsewhere, so that they need no room on the disk.
    copy: PathBuf,
}

impl Disk {
    /// Makes it; with a size, as a file system of its own.
    pub(crate) fn new(root: &Path, name: &str, mib: Option<u64>) -> Result<Self, Error> {
        let path = root.join(format!("disk-{name}"));
        fs::create_dir_all(&path)?;
        if let Some(mib) = mib {
            run(&format!("mount -t tmpfs -o size={mib}m none {}", path.display()))?;
        }
        Ok(Self { path, copy: root.join(format!("copy-{name}")) })
    }

    /// The node's data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Copies the data folder of a node that is stopped.
    pub(crate) fn take_copy(&self) -> Result<(), Error> {
        remove(&self.copy)?;
        copy(&self.data(), &self.copy)
    }

    pub(crate) fn has_copy(&self) -> bool {
        self.copy.exists()
    }

    /// Puts the copy in the data folder's place.
    pub(crate) fn restore(&self) -> Result<(), Error> {
        self.wipe()?;
        copy(&self.copy, &self.data())
    }

    /// Removes all that the node has.
    pub(crate) fn wipe(&self) -> Result<(), Error> {
        remove(&self.data())
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut filler = File::create(self.filler())?;
        // In ever smaller pieces, or the last bytes would stay free.
        for size in [1 << 20, 1 << 12, 1] {
            let piece = vec![0; size];
            while filler.write_all(&piece).is_ok() {}
        }
        Ok(())
    }

    /// Gives the room back.
    pub(crate) fn unfill(&self) -> io::Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Turns some bits in the store's logs and tables; says where.
    pub(crate) fn flip(&self, rng: &mut ChaCha8Rng, bits: usize) -> Result<String, Error> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.data().join("store"))? {
            let path = entry?.path();
            let kind = path.extension().unwrap_or_default();
            if (kind == "log" || kind == "sst") && path.metadata()?.len() > 0 {
                files.push(path);
            }
        }
        files.sort();
        let mut flipped = Vec::new();
        for _ in 0..bits {
            let path = files.choose(rng).ok_or("the store has no logs and no tables")?;
            let at = rng.random_range(0..path.metadata()?.len());
            flip_bit(path, at, rng.random_range(0..8))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            flipped.push(format!("{name} at {at} of {}", path.metadata()?.len()));
        }
        Ok(flipped.join(", "))
    }
}

fn flip_bit(path: &Path, at: u64, bit: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ (1 << bit)])?;
    file.sync_all()
}

fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    run_words(&["cp", "-a", &from.to_string_lossy(), &to.to_string_lossy()])
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
