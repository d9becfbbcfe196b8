//! The mark: a small file beside the store that says how far the store had come.
//!
//! A store that is behind its mark was brought back from an older copy, or has lost the end of its
//! log: it may have forgotten what it promised.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use carbonmesh_protocol::id::DiskId;

/// How far the store had come, synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) disk: DiskId,
    pub(crate) boot: u64,
    pub(crate) sequence: u64,
    /// What tells the folder from a copy of it.
    pub(crate) place: u64,
}

/// The mark's file name.
const FILE: &str = "mark";

impl Mark {
    /// The mark in a folder; none if there is none that can be read.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join(FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Self::from_bytes(&read?)),
        }
    }

    /// Replaces the mark as a whole, synced.
    pub(crate) fn save(self, folder: &Path) -> io::Result<()> {
        let fresh = folder.join("mark.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&self.to_bytes())?;
        file.sync_all()?;
        fs::rename(fresh, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }

    pub(crate) fn to_bytes(self) -> [u8; 36] {
        let mut bytes = [0; 36];
        bytes[..8].copy_from_slice(&self.disk.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.boot.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.place.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_at_checked(32)?;
        if crc != crc32c::crc32c(body).to_le_bytes() {
            return None;
        }
        let word = |at: usize| {
            body.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes)
        };
        let (disk, boot) = (DiskId(word(0)?), word(8)?);
        Some(Self { disk, boot, sequence: word(16)?, place: word(24)? })
    }
}
