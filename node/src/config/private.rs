//! What only the owner of a node may read: the cluster's secret, invitations, keys.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use carbonmesh_storage::OperatorKey;
use zeroize::Zeroizing;

use super::{ConfigError, EncryptionArgs, wrong};
use crate::{scope::ScopeKey, trust::Invitation};

/// The least length of a cluster's secret.
pub(super) const SECRET_BYTES: usize = 16;

/// A cluster's secret; never printed.
#[derive(Clone)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

pub(super) fn read_secret(
    variable: Option<String>,
    file: Option<&Path>,
) -> Result<Option<ClusterSecret>, ConfigError> {
    let (setting, text) = match (variable, file) {
        (Some(text), _) => ("CARBONMESH_SECRET".to_owned(), text),
        (None, Some(path)) => {
            (format!("--secret-file {}", path.display()), private_text("--secret-file", path)?)
        }
        (None, None) => return Ok(None),
    };
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.len() < SECRET_BYTES {
        let reason = format!(
            "the secret has {} bytes, at least {SECRET_BYTES} are needed: make one with \
             `head -c 32 /dev/urandom | base64`",
            secret.len()
        );
        return Err(wrong(setting, reason));
    }
    Ok(Some(ClusterSecret(secret.as_bytes().to_vec())))
}

pub(super) fn read_invitation(
    text: Option<String>,
    file: Option<&Path>,
) -> Result<Option<Invitation>, ConfigError> {
    let (setting, text) = match (text, file) {
        (Some(text), _) => ("--join".to_owned(), text),
        (None, Some(path)) => {
            (format!("--join-file {}", path.display()), private_text("--join-file", path)?)
        }
        (None, None) => return Ok(None),
    };
    text.parse::<Invitation>().map(Some).map_err(|error| wrong(setting, error.to_string()))
}

/// The key of encryption at rest that a command was given, or the environment has.
///
/// # Errors
/// It cannot be used.
pub(crate) fn encryption_key(args: EncryptionArgs) -> Result<Option<OperatorKey>, ConfigError> {
    args.with_variable()?.resolve(None, None)
}

/// The key of encryption at rest in a file that only its owner may read.
///
/// # Errors
/// It cannot be used.
pub(crate) fn encryption_key_in(setting: &str, path: &Path) -> Result<OperatorKey, ConfigError> {
    let key = OperatorKey::new(private_text(setting, path)?.as_bytes());
    key.map_err(|error| wrong(format!("{setting} {}", path.display()), error.to_string()))
}

/// The key of the cluster's values and secrets, in a file that only its owner may read.
///
/// # Errors
/// It cannot be used.
pub(crate) fn scope_key_in(path: &Path) -> Result<ScopeKey, ConfigError> {
    const SETTING: &str = "--scope-key-file";
    let text = Zeroizing::new(private_text(SETTING, path)?);
    let key = ScopeKey::new(text.as_bytes());
    key.map_err(|error| wrong(format!("{SETTING} {}", path.display()), error.to_string()))
}

/// Reads a secret from a file that only its owner may read.
pub(super) fn secret_text(setting: &str, path: &Path) -> Result<String, ConfigError> {
    let text = private_text(setting, path)?;
    let text = text.trim_end_matches(['\r', '\n']).to_owned();
    if text.is_empty() {
        return Err(wrong(format!("{setting} {}", path.display()), "the file is empty"));
    }
    Ok(text)
}

/// Reads a file that only its owner may.
pub(super) fn private_text(setting: &str, path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        let reason = "others on this machine may read it: run chmod 600 on it";
        return Err(wrong(format!("{setting} {}", path.display()), reason));
    }
    fs::read_to_string(path).map_err(failed)
}
