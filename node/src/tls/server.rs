//! The server's side: its certificate, and whose certificates its clients may show.
//!
//! A certificate comes from files of the operator, or is made at the first start and kept in the
//! data folder; then its fingerprint is what clients trust. Files are read again when they change: a
//! renewal takes no restart, and one that cannot be used leaves the last good one in place.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use rustls::{
    Error as TlsError, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    Fingerprint, LOOK_EVERY, TlsSetupError, certificates, is_for, provider, read, roots,
    write_private,
};

/// How long a certificate that a node made for itself is valid, in years. It is trusted by its
/// fingerprint, which must not change by itself.
const OWN_YEARS: i16 = 10;

/// Where a node keeps the certificate that it made, and its key.
const OWN_CERT: &str = "http-cert.pem";
const OWN_KEY: &str = "http-key.pem";

/// Where the server's certificate is, and which clients it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// The certificate with its chain (PEM).
    pub(crate) cert: PathBuf,
    /// Its key (PEM).
    pub(crate) key: PathBuf,
    /// Who signs certificates of clients (PEM).
    pub(crate) client_ca: Option<PathBuf>,
}

impl TlsFiles {
    /// The files of a certificate in the data folder; made for these names if they are not there.
    pub(crate) fn own(folder: &Path, names: &[String]) -> Result<Self, TlsSetupError> {
        let (cert, key) = (folder.join(OWN_CERT), folder.join(OWN_KEY));
        let there = |path: &Path| {
            path.try_exists().map_err(|source| TlsSetupError::Io { path: path.into(), source })
        };
        if !there(&cert)? || !there(&key)? {
            make_own(&cert, &key, names)?;
        }
        Ok(Self { cert, key, client_ca: None })
    }
}

fn make_own(cert: &Path, key: &Path, names: &[String]) -> Result<(), TlsSetupError> {
    let failed = |error: rcgen::Error| TlsSetupError::Make(error.to_string());
    // A name that cannot stand in a certificate is left out: it is trusted by its fingerprint.
    let possible = |name: &&String| CertificateParams::new(vec![(*name).clone()]).is_ok();
    let names: Vec<String> = names.iter().filter(possible).cloned().collect();
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "carbonmesh node");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let today = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date();
    let date = |years: i16| {
        // The first of a month is there in every year.
        rcgen::date_time_ymd(i32::from(today.year() + years), today.month().unsigned_abs(), 1)
    };
    (params.not_before, params.not_after) = (date(0), date(OWN_YEARS));
    let pair = KeyPair::generate().map_err(failed)?;
    let made = params.self_signed(&pair).map_err(failed)?;
    // The key first: a crash between the two makes both anew.
    for (path, text) in [(key, pair.serialize_pem()), (cert, made.pem())] {
        write_private(path, text.as_bytes())
            .map_err(|source| TlsSetupError::Io { path: path.to_owned(), source })?;
    }
    Ok(())
}

/// What a server shows and asks for, until its files change.
struct Current {
    config: Arc<ServerConfig>,
    leaf: CertificateDer<'static>,
}

/// The server's side of TLS.
pub(crate) struct ServerTls {
    files: TlsFiles,
    current: RwLock<Arc<Current>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    pub(crate) fn load(files: TlsFiles) -> Result<Self, TlsSetupError> {
        let read = Read::of(&files)?;
        let current = RwLock::new(Arc::new(read.current(&files)?));
        Ok(Self { files, current })
    }

    fn now(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How the next connection is served.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.now().config.clone()
    }

    /// What clients may trust this server by.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.now().leaf)
    }

    /// Whether the certificate is one for this host.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        is_for(&self.now().leaf, host)
    }

    /// Reads the files again whenever they change.
    pub(crate) async fn watch(self: Arc<Self>, cancel: CancellationToken) {
        let mut last = Read::of(&self.files).ok();
        let mut told = String::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let read = Read::of(&self.files);
            if let (Ok(read), Some(last)) = (&read, &last)
                && read == last
            {
                continue;
            }
            match read.and_then(|read| Ok((read.current(&self.files)?, read))) {
                Ok((current, read)) => {
                    let fingerprint = Fingerprint::of(&current.leaf);
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(current);
                    last = Some(read);
                    told.clear();
                    info!(%fingerprint, "the certificate of the HTTP interface was read again");
                }
                // Half of a renewal may be there: it is tried again, and said once.
                Err(problem) => {
                    let problem = problem.to_string();
                    if problem != told {
                        error!(problem, "the certificate of before stays in use");
                        told = problem;
                    }
                }
            }
        }
    }
}

/// The bytes of all files.
#[derive(PartialEq, Eq)]
struct Read {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Read {
    fn of(files: &TlsFiles) -> Result<Self, TlsSetupError> {
        let mode = fs::metadata(&files.key)
            .map_err(|source| TlsSetupError::Io { path: files.key.clone(), source })?
            .permissions()
            .mode();
        if mode & 0o007 != 0 {
            return Err(TlsSetupError::Exposed { path: files.key.clone() });
        }
        Ok(Self {
            cert: read(&files.cert)?,
            key: read(&files.key)?,
            client_ca: files.client_ca.as_deref().map(read).transpose()?,
        })
    }

    fn current(&self, files: &TlsFiles) -> Result<Current, TlsSetupError> {
        let wrong =
            |path: &Path, reason: String| TlsSetupError::File { path: path.to_owned(), reason };
        let chain = certificates(&files.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| wrong(&files.key, format!("it holds no private key: {error}")))?;
        let provider = provider();
        let leaf = chain[0].clone();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
            wrong(&files.key, format!("it does not fit {}: {error}", files.cert.display()))
        })?;
        let internal = |error: TlsError| wrong(&files.cert, error.to_string());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(internal)?;
        let builder = match (&files.client_ca, &self.client_ca) {
            (Some(path), Some(bytes)) => {
                let roots = Arc::new(roots(path, bytes)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider)
                    // Tokens are another way in; who has neither is refused by the guard.
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| wrong(path, error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Current { config: Arc::new(config), leaf })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_for_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["localhost", "127.0.0.1", "oak.example", "not a name"].map(str::to_owned);
        let files = TlsFiles::own(folder.path(), &names).unwrap();
        let tls = ServerTls::load(files).unwrap();
        for host in ["localhost", "127.0.0.1", "oak.example"] {
            assert!(tls.is_for(host), "{host}");
        }
        for host in ["evil.example", "[::1]", "127.0.0.2", "", "not a name"] {
            assert!(!tls.is_for(host), "{host}");
        }
        let again = ServerTls::load(TlsFiles::own(folder.path(), &names).unwrap()).unwrap();
        assert_eq!(tls.fingerprint(), again.fingerprint());
        let mode = fs::metadata(folder.path().join(OWN_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn files_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles::own(folder.path(), &["localhost".to_owned()]).unwrap();
        let other = tempfile::tempdir().unwrap();
        let foreign = TlsFiles::own(other.path(), &["localhost".to_owned()]).unwrap();
        let load = |files: TlsFiles| ServerTls::load(files).unwrap_err().to_string();
        let mixed = TlsFiles { key: foreign.key, ..files.clone() };
        assert!(load(mixed).contains("does not fit"));
        let swapped = TlsFiles { cert: files.key.clone(), ..files.clone() };
        assert!(load(swapped).contains("holds no certificate"));
        let authority = TlsFiles { client_ca: Some(files.key.clone()), ..files.clone() };
        assert!(load(authority).contains("holds no certificate"));
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(load(files.clone()).contains("chmod 600"));
        fs::remove_file(&files.cert).unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(load(files).contains("http-cert.pem"));
    }
}
