//! TLS of the HTTP interface: what servers and clients of this program have in common.
//!
//! The rules of TLS are rustls's, its arithmetic ring's; neither is chosen anywhere else.

mod client;
mod server;

use std::{
    fmt, fs, io,
    io::Write,
    net::IpAddr,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use data_encoding::HEXLOWER;
use rustls::{
    RootCertStore,
    client::verify_server_name,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
    server::ParsedCertificate,
};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub(crate) use self::{
    client::ClientTls,
    server::{ServerTls, TlsFiles},
};

/// How often files are looked at: a renewed certificate is in use, and a removed one out of it, within
/// seconds.
pub(crate) const LOOK_EVERY: Duration =
    if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(2) };

/// TLS cannot be set up. Nothing was started.
#[derive(Debug, Error)]
pub enum TlsSetupError {
    /// A file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others on this machine could pretend to be this node.
    #[error("the key {} may be read by others: run chmod 600 on it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
    },
    /// A file holds something else than it should.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(String),
}

/// Makes ring the cryptography of everything in this process that does not choose its own, which
/// clients need before they are built. Where another was chosen already, that one stays.
pub fn install_provider() {
    let _ = ring::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The SHA-256 of a certificate, by which it may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    /// Reads 64 hexadecimal digits; `sha256:` before and colons between them may be there.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|one| *one != ':').collect();
        let digits = digits.to_ascii_lowercase();
        let digits = digits.strip_prefix("sha256").unwrap_or(&digits);
        let bytes = HEXLOWER.decode(digits.as_bytes()).ok().and_then(|it| it.try_into().ok());
        bytes.map(Self).ok_or_else(|| {
            "it is no fingerprint: give the 64 hexadecimal digits that the node prints when it is \
             ready"
                .to_owned()
        })
    }
}

/// Writes a file that only its owner may read; a crash leaves the one before, or all of it.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    // The mode above counts only for a file that was not there.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(fresh, path)?;
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Whether a certificate is one for this host.
pub(crate) fn is_for(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = match host.parse::<IpAddr>() {
        Ok(ip) => ServerName::from(ip),
        Err(_) => match ServerName::try_from(host) {
            Ok(name) => name,
            Err(_) => return false,
        },
    };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|parsed| verify_server_name(&parsed, &name).is_ok())
}

fn read(path: &Path) -> Result<Vec<u8>, TlsSetupError> {
    fs::read(path).map_err(|source| TlsSetupError::Io { path: path.to_owned(), source })
}

/// The certificates of a PEM file; there is one at least.
fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let wrong = |reason: String| TlsSetupError::File { path: path.to_owned(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong("it holds no certificate: give one as PEM".to_owned())),
        Err(error) => Err(wrong(format!("it is no PEM file: {error}"))),
    }
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots.add(certificate).map_err(|error| TlsSetupError::File {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let plain = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let expected: Fingerprint = plain.parse().unwrap();
        assert_eq!(colons.parse(), Ok(expected));
        assert_eq!(format!("SHA256:{colons}").parse(), Ok(expected));
        assert_eq!(expected.to_string(), plain);
        for wrong in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(wrong.parse::<Fingerprint>().is_err(), "{wrong}");
        }
    }
}
