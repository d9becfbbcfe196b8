//! The client's side: which servers are trusted, and what is shown to them.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::{Fingerprint, TlsSetupError, certificates, install_provider, provider, read};

/// Whom a client trusts, and how it shows who it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientTls {
    /// Servers whose certificates these sign (PEM), in place of those that the system trusts.
    pub(crate) ca_file: Option<PathBuf>,
    /// The servers with these certificates, whoever signed them and however they are called.
    pub(crate) fingerprints: Vec<Fingerprint>,
    /// The client's own certificate and key (PEM).
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
}

impl ClientTls {
    /// The same for a client of HTTP.
    pub(crate) fn apply(
        &self,
        builder: reqwest::ClientBuilder,
    ) -> Result<reqwest::ClientBuilder, TlsSetupError> {
        install_provider();
        if !self.fingerprints.is_empty() {
            return Ok(builder.tls_backend_preconfigured(self.pinned()?));
        }
        let mut builder = builder;
        if let Some(path) = &self.ca_file {
            let found = certificates(path, &read(path)?)?;
            let wrong = |error: reqwest::Error| TlsSetupError::File {
                path: path.clone(),
                reason: error.to_string(),
            };
            let found: Result<Vec<_>, _> =
                found.iter().map(|one| reqwest::Certificate::from_der(one)).collect();
            builder = builder.tls_certs_only(found.map_err(wrong)?);
        }
        if let Some((cert, key)) = &self.identity {
            let pem = [read(cert)?, b"\n".to_vec(), read(key)?].concat();
            let identity = reqwest::Identity::from_pem(&pem).map_err(|error| {
                TlsSetupError::File { path: cert.clone(), reason: error.to_string() }
            })?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }

    /// A client that never speaks TLS.
    pub(crate) fn none(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        let trusts_nobody = Self::default();
        match trusts_nobody.pinned() {
            Ok(config) => builder.tls_backend_preconfigured(config),
            Err(_) => builder,
        }
    }

    fn pinned(&self) -> Result<ClientConfig, TlsSetupError> {
        let wrong = |error: TlsError| TlsSetupError::Make(error.to_string());
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(wrong)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                fingerprints: self.fingerprints.clone(),
                provider: provider(),
            }));
        let mut config = match &self.identity {
            Some((cert, path)) => {
                let chain = certificates(cert, &read(cert)?)?;
                let key = PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| {
                    TlsSetupError::File { path: path.clone(), reason: error.to_string() }
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| TlsSetupError::File {
                    path: cert.clone(),
                    reason: error.to_string(),
                })?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// Trusts some certificates; that the server has its key is checked as always.
#[derive(Debug)]
struct Pinned {
    fingerprints: Vec<Fingerprint>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if self.fingerprints.contains(&Fingerprint::of(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
