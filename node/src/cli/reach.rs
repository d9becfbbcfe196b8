//! How this program shows a node who it is, and makes sure that it is the right node.

use std::{env, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use reqwest::{
    ClientBuilder, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue},
};
use zeroize::Zeroizing;

use super::failure::Failure;
use crate::tls::{ClientTls, Fingerprint};

/// Where a token may be given beside a file. It has no flag: every user of the machine can see those.
const TOKEN: &str = "CARBONMESH_TOKEN";

/// How to reach the node.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct ReachArgs {
    /// The file that holds the token to show; or CARBONMESH_TOKEN is the token
    #[arg(long, global = true, env = "CARBONMESH_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Whoever may sign the node's certificate (PEM) [default: whom the system trusts]
    #[arg(long, global = true, env = "CARBONMESH_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// The SHA-256 of the node's certificate, which it prints when it is ready; or of several nodes'
    #[arg(
        long,
        global = true,
        env = "CARBONMESH_TLS_FINGERPRINT",
        value_name = "HEX",
        value_delimiter = ','
    )]
    tls_fingerprint: Vec<Fingerprint>,
    /// A certificate to show (PEM)
    #[arg(long, global = true, env = "CARBONMESH_CLIENT_CERT", value_name = "FILE")]
    client_cert: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long, global = true, env = "CARBONMESH_CLIENT_KEY", value_name = "FILE")]
    client_key: Option<PathBuf>,
}

impl ReachArgs {
    /// Makes a client go by it when it calls `base`.
    pub(super) fn apply(
        &self,
        builder: ClientBuilder,
        base: &Url,
    ) -> Result<ClientBuilder, Failure> {
        let builder = match base.scheme() {
            "https" => {
                let tls = self.tls()?.apply(builder);
                tls.map_err(|error| Failure::Usage(error.to_string()))?
            }
            // Whom the system trusts does not matter then, and takes a while to read.
            _ => ClientTls::none(builder),
        };
        let Some(token) = self.token()? else { return Ok(builder) };
        if base.scheme() != "https" && !is_near(base) {
            return Err(Failure::Usage(format!(
                "a token is not sent to {base}, as everybody on the way could read it: give the \
                 node's https:// address"
            )));
        }
        let value = Zeroizing::new(format!("Bearer {}", &*token));
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| Failure::Usage("the token has characters that no token has".to_owned()))?;
        value.set_sensitive(true);
        Ok(builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, value)])))
    }

    fn tls(&self) -> Result<ClientTls, Failure> {
        let (ca_file, fingerprints) = (self.ca_file.clone(), self.tls_fingerprint.clone());
        if ca_file.is_some() && !fingerprints.is_empty() {
            let both = "--ca-file, --tls-fingerprint: either says whom to trust: give one of them";
            return Err(Failure::Usage(both.to_owned()));
        }
        let identity = match (self.client_cert.clone(), self.client_key.clone()) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((cert, key)),
            (Some(_), None) | (None, Some(_)) => {
                let half = "--client-cert, --client-key: one is of no use without the other";
                return Err(Failure::Usage(half.to_owned()));
            }
        };
        Ok(ClientTls { ca_file, fingerprints, identity })
    }

    fn token(&self) -> Result<Option<Zeroizing<String>>, Failure> {
        let wrong = |why: String| Failure::Usage(why);
        let text = match (&self.token_file, env::var(TOKEN)) {
            (None, Err(env::VarError::NotPresent)) => return Ok(None),
            (Some(_), Ok(_)) => {
                return Err(wrong(format!("{TOKEN} is set beside a token file: give one of them")));
            }
            (_, Err(env::VarError::NotUnicode(_))) => {
                return Err(wrong(format!("{TOKEN} holds no token: it is no text")));
            }
            (None, Ok(token)) => token,
            (Some(path), Err(env::VarError::NotPresent)) => {
                let name = path.display();
                let failed = |error| wrong(format!("cannot read {name}: {error}"));
                let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
                if mode & 0o077 != 0 {
                    return Err(wrong(format!(
                        "the token in {name} may be read by others on this machine: run chmod 600 on it"
                    )));
                }
                fs::read_to_string(path).map_err(failed)?
            }
        };
        let text = Zeroizing::new(text);
        let token = text.trim();
        if token.is_empty() {
            return Err(wrong("the token is empty".to_owned()));
        }
        Ok(Some(Zeroizing::new(token.to_owned())))
    }
}

/// Whether what is sent there stays on this machine.
fn is_near(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    ip.map_or(host == "localhost", |ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_near() {
        let near = |text: &str| is_near(&text.parse().expect("a URL"));
        for url in
            ["http://localhost:1", "http://127.0.0.1", "http://127.3.2.1:1", "http://[::1]:7400"]
        {
            assert!(near(url), "{url}");
        }
        for url in ["http://10.0.0.1", "http://localhost.evil.example", "http://127.0.0.1.nip.io"] {
            assert!(!near(url), "{url}");
        }
    }

    #[test]
    fn a_token_comes_from_a_private_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let args = ReachArgs { token_file: Some(path.clone()), ..ReachArgs::default() };
        fs::write(&path, "cmt_abc\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(args.token().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(args.token().unwrap().unwrap().as_str(), "cmt_abc");
        let far = "http://10.0.0.1:7400".parse().unwrap();
        let refused = args.apply(reqwest::Client::builder(), &far).unwrap_err();
        assert!(refused.to_string().contains("https://"), "{refused}");
    }
}
