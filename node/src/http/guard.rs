//! Stands before every handler: host and origin, who calls and what they may, headers of the answer.
//!
//! Web pages of others are kept away: a page in a browser can reach a node on the same machine, by
//! name (DNS rebinding, seen in `Host`) or across sites (seen in `Origin`). Both must name a host
//! by which this node may be called.
//!
//! Programs that are no browsers send no `Origin`; the others' JSON bodies need a preflight, which
//! is granted to the origins of `--http-origin` alone.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Api, Problem,
    access::{Security, headers::Asked},
};

/// Hosts that are this machine itself, whatever the port.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Refuses requests whose `Host` or `Origin` is foreign, or whose caller may not make them.
pub(super) async fn guard(State(api): State<Api>, request: Request, next: Next) -> Response {
    let security = &api.security;
    let asked = Asked::of(&request, security.origins(), is_strict(&request, security));
    let mut response = match check(&request, &api.limits.hosts, security) {
        Err(problem) => problem.into_response(),
        Ok(()) => match asked.preflight(&request) {
            Some(response) => response,
            None => security.serve(&api, request, next).await,
        },
    };
    asked.set(&mut response);
    response
}

fn check(request: &Request, hosts: &[String], security: &Security) -> Result<(), Problem> {
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    let authority = authority(request);
    let host = authority.and_then(host_of_authority);
    let is_ours = |host: &str| {
        // An address is no name that could be pointed elsewhere.
        may_call(host, hosts) || security.is_for(host) || (security.asks() && is_address(host))
    };
    if !host.is_some_and(is_ours) {
        return Err(foreign("Host", authority.unwrap_or_default()));
    }
    let is_near = |origin: &str| {
        let same = origin.split_once("://").is_some_and(|(_, from)| Some(from) == authority);
        same || security.origins().iter().any(|one| one == origin)
            || host_of_origin(origin).is_some_and(|host| may_call(host, hosts))
    };
    match header(header::ORIGIN) {
        Some(origin) if !is_near(origin) => Err(foreign("Origin", origin)),
        _ => Ok(()),
    }
}

/// By which name the node was called; none or an empty one if it cannot be told.
fn authority(request: &Request) -> Option<&str> {
    // A target in absolute form overrules the header (RFC 9112, 3.2.2).
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str());
    }
    let mut values = request.headers().get_all(header::HOST).iter();
    let value = values.next()?;
    // Of two, another program on the way may have believed the other one.
    if values.next().is_some() { None } else { value.to_str().ok() }
}

/// Whether browsers are to call this host by TLS from now on. Names of this machine are others' too.
fn is_strict(request: &Request, security: &Security) -> bool {
    let host = authority(request).and_then(host_of_authority);
    security.tls().is_some() && host.is_some_and(|host| !may_call(host, &[]) && !is_address(host))
}

fn is_address(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok()
}

fn may_call(host: &str, configured: &[String]) -> bool {
    let configured = configured.iter().map(String::as_str);
    LOOPBACK.into_iter().chain(configured).any(|one| one.eq_ignore_ascii_case(host))
}

/// `example.org` of `example.org:80`, `[::1]` of `[::1]:80`.
fn host_of_authority(authority: &str) -> Option<&str> {
    let parsed = authority.parse::<Uri>().ok()?;
    let host = parsed.authority()?.host().len();
    // No user information: what is left of an `@` must not pass for the host.
    (!authority.contains('@')).then(|| authority.get(..host)).flatten()
}

/// `example.org` of `http://example.org:80`; none of `null`.
fn host_of_origin(origin: &str) -> Option<&str> {
    origin.split_once("://").and_then(|(_, authority)| host_of_authority(authority))
}

fn foreign(header: &str, value: &str) -> Problem {
    let detail = format!(
        "the {header} header names `{value}`, by which this node may not be called: call it as \
         localhost or by a name of its certificate, or start it with --http-host for another name"
    );
    Problem::new(StatusCode::FORBIDDEN, "foreign-host", "foreign host", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_case_do_not_matter() {
        let hosts = ["Mesh.example".to_owned()];
        for good in ["localhost", "LOCALHOST:7400", "127.0.0.1:1", "[::1]:7400", "mesh.example:80"]
        {
            assert!(host_of_authority(good).is_some_and(|host| may_call(host, &hosts)), "{good}");
        }
    }

    #[test]
    fn look_alikes_are_foreign() {
        for bad in ["evil.example", "localhost.evil.example", "localhost@evil.example", "", "::1"] {
            assert!(!host_of_authority(bad).is_some_and(|host| may_call(host, &[])), "{bad}");
        }
    }
}
