//! HTTP clients of this program: those that ask a node, and those by which nodes tell others.

use crate::tls;

/// Begins a client. TLS is done with ring, as everywhere in this program.
pub fn client() -> reqwest::ClientBuilder {
    tls::install_provider();
    reqwest::Client::builder()
}
