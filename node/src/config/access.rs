//! Settings of who may use the HTTP interface: TLS, tokens, names, the audit log.
//!
//! Invariant: where others than this machine can reach the interface, it speaks TLS and asks who calls.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use super::{ConfigError, given, wrong};
use crate::http::access::{AccessSettings, audit::Level};

/// Flags and variables. In the file they stand in the section `[api]`, with `_` for `-`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AccessArgs {
    /// Who may use the HTTP interface: what `carbonmesh token create` prints (TOML)
    #[arg(long, env = "CARBONMESH_TOKENS_FILE", value_name = "FILE")]
    tokens_file: Option<PathBuf>,
    /// Serve HTTPS on loopback too, as is always done elsewhere
    #[arg(long, env = "CARBONMESH_TLS")]
    tls: bool,
    /// The certificate to serve HTTPS with, and its chain (PEM) [default: the node makes one]
    #[arg(long, env = "CARBONMESH_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, env = "CARBONMESH_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Who signs certificates of clients (PEM); the tokens file says what each may do
    #[arg(long, env = "CARBONMESH_TLS_CLIENT_CA", value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Names by which clients may call this node, beside those of its certificate
    #[arg(long, env = "CARBONMESH_HTTP_HOST", value_name = "NAME", value_delimiter = ',')]
    http_host: Vec<String>,
    /// Origins whose pages may call this node, such as https://dash.example
    #[arg(long, env = "CARBONMESH_HTTP_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    http_origin: Vec<String>,
    /// What to write into the audit log: off, changes, all [default: changes with --tokens-file]
    #[arg(long, env = "CARBONMESH_AUDIT", value_name = "LEVEL")]
    audit: Option<String>,
}

/// The same in the configuration file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApiSection {
    tokens_file: Option<PathBuf>,
    tls: bool,
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    http_host: Vec<String>,
    http_origin: Vec<String>,
    audit: Option<String>,
}

impl AccessArgs {
    /// All of it, for an interface that is served here.
    pub(super) fn resolve(
        self,
        file: ApiSection,
        http: SocketAddr,
    ) -> Result<AccessSettings, ConfigError> {
        let tokens_file = self.tokens_file.or(file.tokens_file);
        let certificate = match (self.tls_cert, self.tls_key) {
            (None, None) => (file.tls_cert, file.tls_key),
            given => given,
        };
        let certificate = match certificate {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err(wrong("api.tls_key", "is missing: give the key too")),
            (None, Some(_)) => {
                return Err(wrong("api.tls_cert", "is missing: give the certificate too"));
            }
        };
        let client_ca = self.tls_client_ca.or(file.tls_client_ca);
        let is_near = http.ip().is_loopback();
        if !is_near && tokens_file.is_none() {
            let reason = format!(
                "{http} is not on loopback: everybody who reaches it could run jobs. Say who may \
                 with --tokens-file FILE, which `carbonmesh token create` begins; TLS is on then. Or \
                 take 127.0.0.1:PORT, and an SSH tunnel or a proxy for others"
            );
            return Err(wrong("--http", reason));
        }
        let wants_tls = self.tls || file.tls || certificate.is_some() || client_ca.is_some();
        if client_ca.is_some() && tokens_file.is_none() {
            let reason = "without --tokens-file nobody is asked who they are: its entries \
                          [[certificates]] say what each client may do";
            return Err(wrong("--tls-client-ca", reason));
        }
        let origins = given(self.http_origin, file.http_origin);
        origins.iter().try_for_each(|text| origin(text))?;
        let hosts = given(self.http_host, file.http_host);
        hosts.iter().try_for_each(|text| host(text))?;
        Ok(AccessSettings {
            tokens_file,
            tls: wants_tls || !is_near,
            certificate,
            client_ca,
            hosts,
            origins,
            audit: self.audit.or(file.audit).as_deref().map(level).transpose()?,
        })
    }
}

fn level(text: &str) -> Result<Level, ConfigError> {
    match text {
        "off" => Ok(Level::Off),
        "changes" => Ok(Level::Changes),
        "all" => Ok(Level::All),
        other => Err(wrong("--audit", format!("`{other}` is no level: take off, changes or all"))),
    }
}

/// An origin exactly as browsers send it.
fn origin(text: &str) -> Result<(), ConfigError> {
    let parsed = text.parse::<reqwest::Url>().ok();
    let is_one = parsed.is_some_and(|url| {
        let origin = url.origin();
        matches!(url.scheme(), "http" | "https") && origin.ascii_serialization() == text
    });
    if is_one {
        return Ok(());
    }
    let reason = format!("`{text}` is no origin: write it as https://dash.example, without a path");
    Err(wrong("--http-origin", reason))
}

fn host(text: &str) -> Result<(), ConfigError> {
    let fits = |one: char| one.is_ascii_alphanumeric() || "-_.".contains(one);
    if !text.is_empty() && text.chars().all(fits) {
        return Ok(());
    }
    let reason = format!("`{text}` is no name of a host: write it as mesh.example, without a port");
    Err(wrong("--http-host", reason))
}
