//! The node's key: its identity, made once and kept in its data folder.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use carbonmesh_storage::{Files, SealError};
use libp2p::identity::Keypair;
use thiserror::Error;

/// The node has no identity. Nothing was changed.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("cannot use the node's key {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others on this machine could pretend to be this node.
    #[error(
        "the node's key {} may be read by others: run chmod 600 on it, and think of who may have copied it",
        path.display()
    )]
    Exposed {
        /// Which.
        path: PathBuf,
    },
    /// The folder was used with a key that is gone.
    #[error(
        "the node's key {} is missing: bring it back from a backup, or remove the whole data folder to start as a new node",
        path.display()
    )]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// It does not open.
    #[error("cannot open the node's key {}: {source}", path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: SealError,
    },
    /// The file holds something else.
    #[error(
        "{} is no key: bring the file back from a backup, or remove the whole data folder to start as a new node",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

/// The name by which the key is sealed.
pub(crate) const NAME: &str = "key";

/// Reads the key, or makes it if the folder is new.
///
/// # Errors
/// It cannot be used, or others may read it.
pub(crate) fn load_or_create(
    path: &Path,
    files: &Files,
    folder_is_new: bool,
) -> Result<Keypair, KeyError> {
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Err(KeyError::Exposed { path: path.to_owned() })
        }
        Ok(_) => {
            let sealed = |source| KeyError::Sealed { path: path.to_owned(), source };
            let bytes = files.open(NAME, fs::read(path).map_err(failed)?).map_err(sealed)?;
            let damaged = || KeyError::Damaged { path: path.to_owned() };
            let key = Keypair::from_protobuf_encoding(&bytes).map_err(|_| damaged())?;
            key.clone().try_into_ed25519().map_err(|_| damaged())?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && folder_is_new => {
            create(path, files).map_err(failed)
        }
        // What the folder has promised, it has promised under the lost key's name.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(KeyError::Missing { path: path.to_owned() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// A crash leaves either no key or a whole one.
fn create(path: &Path, files: &Files) -> io::Result<Keypair> {
    let key = Keypair::generate_ed25519();
    let bytes = files.seal(NAME, key.to_protobuf_encoding().map_err(io::Error::other)?);
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = load_or_create(&path, &Files::default(), true).unwrap();
        let read = load_or_create(&path, &Files::default(), true).unwrap();
        assert_eq!(made.public(), read.public());
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        load_or_create(&path, &Files::default(), true).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create(&path, &Files::default(), true).unwrap_err();
        assert!(matches!(error, KeyError::Exposed { .. }), "{error}");
    }

    #[test]
    fn a_damaged_key_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "no key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = load_or_create(&path, &Files::default(), true).unwrap_err();
        assert!(matches!(error, KeyError::Damaged { .. }), "{error}");
    }
}
