//! Who may do what through the HTTP interface.
//!
//! ```text
//! request ─► host, origin ─► who is it? ─► may they? ─► room in the audit log ─► handler ─► entry
//!              guard.rs       tokens,       routes       audit
//!                             throttle
//! ```
//! A node that was given no tokens file asks nobody who they are, and serves this machine alone. One
//! that has it asks everybody, wherever they call from.
//!
//! Invariant: what is not allowed by an entry of the file and a line of [`routes::ROUTES`] is refused.

mod admit;
pub mod audit;
pub mod chain;
pub(super) mod headers;
pub mod routes;
pub mod scope;
mod throttle;
pub mod tokens;

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, PoisonError, RwLock},
};

use axum::{
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
};
use carbonmesh_protocol::view::ClusterView;
use rustls::pki_types::CertificateDer;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    audit::{Audit, AuditError, Level},
    scope::{Scopes, Verb},
    throttle::Throttle,
    tokens::Grants,
};
use super::Problem;
use crate::tls::{LOOK_EVERY, ServerTls, TlsFiles, TlsSetupError};

/// How the interface is secured.
#[derive(Clone, Debug, Default)]
pub struct AccessSettings {
    /// Who is let in; none: everybody who reaches the node.
    pub tokens_file: Option<PathBuf>,
    /// Whether TLS is spoken.
    pub tls: bool,
    /// The operator's certificate and key; else the node makes its own.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Who signs certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// Names by which the node may be called, beside those of its certificate.
    pub hosts: Vec<String>,
    /// Origins whose pages may read answers, such as `https://dash.example`.
    pub origins: Vec<String>,
    /// What is written into the audit log; none: changes where there are tokens, else nothing.
    pub audit: Option<Level>,
}

/// The interface cannot be secured as it is wanted. Nothing was started.
#[derive(Debug, Error)]
pub enum AccessError {
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    /// The tokens file cannot be used.
    #[error("--tokens-file {}: {reason}", path.display())]
    Tokens {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The audit log cannot be used.
    #[error(transparent)]
    Audit(#[from] AuditError),
}

/// Who is let in, and what is written down.
#[derive(Debug, Default)]
pub struct Security {
    /// None: everybody may do everything.
    door: Option<Door>,
    throttle: Throttle,
    tls: Option<Arc<ServerTls>>,
    origins: Vec<String>,
    audit: Option<(Level, Audit)>,
    /// Failed logins that were not written into the audit log, and the room for more.
    failures: admit::FailureBudget,
}

#[derive(Debug)]
struct Door {
    path: PathBuf,
    grants: RwLock<Arc<Grants>>,
    /// What the file said.
    text: RwLock<String>,
}

impl Security {
    /// Reads all files, and makes those that the node makes by itself; within a runtime.
    ///
    /// # Errors
    /// One of them cannot be used.
    pub fn open(
        settings: &AccessSettings,
        folder: &Path,
        address: SocketAddr,
    ) -> Result<Self, AccessError> {
        let door = settings.tokens_file.as_deref().map(Door::open).transpose()?;
        let tls = match (settings.tls, &settings.certificate) {
            (false, _) => None,
            (true, Some((cert, key))) => Some(TlsFiles {
                cert: cert.clone(),
                key: key.clone(),
                client_ca: settings.client_ca.clone(),
            }),
            (true, None) => {
                let names = own_names(&settings.hosts, address);
                let client_ca = settings.client_ca.clone();
                Some(TlsFiles { client_ca, ..TlsFiles::own(folder, &names)? })
            }
        };
        let tls = tls.map(ServerTls::load).transpose()?.map(Arc::new);
        let usual = if door.is_some() { Level::Changes } else { Level::Off };
        let audit = match settings.audit.unwrap_or(usual) {
            Level::Off => None,
            level => Some((level, Audit::open(folder)?)),
        };
        let origins = settings.origins.clone();
        Ok(Self { door, tls, origins, audit, ..Self::default() })
    }

    /// Follows changes of the files until `cancel`.
    pub fn watch(self: &Arc<Self>, cancel: &CancellationToken) {
        if let Some(tls) = &self.tls {
            tokio::spawn(tls.clone().watch(cancel.clone()));
        }
        if self.door.is_some() {
            let (this, cancel) = (self.clone(), cancel.clone());
            tokio::spawn(async move {
                while !cancel.is_cancelled() {
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(LOOK_EVERY) => {}
                    }
                    if let Some(door) = &this.door {
                        door.look();
                    }
                }
            });
        }
    }

    /// The server's side of TLS, if it speaks that.
    pub(crate) fn tls(&self) -> Option<Arc<ServerTls>> {
        self.tls.clone()
    }

    /// Writes what is left of the audit log.
    pub(crate) async fn flush(&self) {
        if let Some((_, audit)) = &self.audit {
            audit.flush().await;
        }
    }

    /// Whether callers are asked who they are.
    pub(super) fn asks(&self) -> bool {
        self.door.is_some()
    }

    /// Whether the node's certificate is one for this host.
    pub(super) fn is_for(&self, host: &str) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_for(host))
    }

    /// Whose pages may read answers, beside the node's own.
    pub(super) fn origins(&self) -> &[String] {
        &self.origins
    }
}

impl Door {
    fn open(path: &Path) -> Result<Self, AccessError> {
        let read = Grants::read(path);
        let (grants, text) =
            read.map_err(|reason| AccessError::Tokens { path: path.to_owned(), reason })?;
        if grants.is_empty() {
            let path = path.display();
            warn!(%path, "the tokens file lets nobody in: add what `carbonmesh token create` prints");
        }
        let (grants, text) = (RwLock::new(Arc::new(grants)), RwLock::new(text));
        Ok(Self { path: path.to_owned(), grants, text })
    }

    fn grants(&self) -> Arc<Grants> {
        self.grants.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again if it says something else. What cannot be used changes nothing: who was
    /// let in before still is, and that is said until it is mended.
    fn look(&self) {
        let path = self.path.display();
        match Grants::read(&self.path) {
            Ok((grants, text)) => {
                let mut last = self.text.write().unwrap_or_else(PoisonError::into_inner);
                if *last != text {
                    info!(%path, entries = grants.len(), "the tokens file was read again");
                    *self.grants.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(grants);
                    *last = text;
                }
            }
            Err(reason) => error!(%path, reason, "who may call this node is not changed"),
        }
    }
}

/// What a certificate that the node makes is for.
fn own_names(hosts: &[String], address: SocketAddr) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let specific = (!address.ip().is_unspecified()).then(|| address.ip().to_string());
    let more = [host.trim().to_owned()].into_iter().chain(specific).chain(hosts.iter().cloned());
    for name in more.filter(|name| !name.is_empty()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The other side of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// The certificate that it has shown; its signer was checked.
    pub(super) certificate: Option<CertificateDer<'static>>,
}

/// What the caller of a handler may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Access(Arc<Scopes>);

/// What everybody may where nobody is asked.
static EVERYTHING: LazyLock<Arc<Scopes>> = LazyLock::new(|| Arc::new(Scopes::everything()));

impl Access {
    fn to_everything() -> Self {
        Self(EVERYTHING.clone())
    }

    /// Refuses what is not allowed.
    pub(super) fn check(&self, verb: Verb, pipeline: &str) -> Result<(), Problem> {
        if self.0.allow(verb, pipeline) { Ok(()) } else { Err(forbidden(verb, Some(pipeline))) }
    }

    /// Refuses what is not allowed on every pipeline.
    pub(super) fn check_all(&self, verb: Verb) -> Result<(), Problem> {
        if self.0.allow_all(verb) { Ok(()) } else { Err(forbidden(verb, None)) }
    }

    /// Whether all of a namespace may be seen.
    pub(super) fn sees_all_of(&self, namespace: &str) -> bool {
        self.0.allow_all_in(Verb::Read, namespace)
    }

    /// Takes away the pipelines that may not be seen, and phases of namespaces in which none may.
    pub(super) fn leave(&self, mut cluster: Box<ClusterView>) -> Box<ClusterView> {
        cluster.pipelines.retain(|one| self.0.allow(Verb::Read, one.definition.name.as_str()));
        for member in &mut cluster.members {
            member.phases.retain(|one| self.0.allow_in(Verb::Read, one.phase.namespace()));
        }
        cluster
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Access {
    type Rejection = Infallible;

    /// Without the guard before it, a handler may do nothing.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

fn forbidden(verb: Verb, pipeline: Option<&str>) -> Problem {
    let needed = match pipeline {
        Some(pipeline) => format!("{}:{pipeline}", verb.name()),
        None if verb.has_pipelines() => format!("{}:*", verb.name()),
        None => verb.name().to_owned(),
    };
    let detail = format!(
        "who you are does not allow this: it takes the scope `{needed}`; ask whoever keeps this \
         node's tokens file"
    );
    Problem::new(StatusCode::FORBIDDEN, "forbidden", "forbidden", detail).with("needs", needed)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
