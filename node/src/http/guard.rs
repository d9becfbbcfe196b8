//! Keeps web pages of others away: a page in a browser can reach a node on the same machine, by
//! name (DNS rebinding, seen in `Host`) or across sites (seen in `Origin`). Both must name a host
//! by which this node may be called.
//!
//! Programs that are no browsers send no `Origin`; the others' JSON bodies need a preflight, which
//! is never granted here.

use axum::{
    extract::{Request, State},
    http::{StatusCode, Uri, header},
    middleware::Next,
    response::Response,
};

use super::{Api, Problem};

/// Hosts that are this machine itself, whatever the port.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Refuses requests whose `Host` or `Origin` is foreign.
pub(super) async fn guard(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    check(&request, &api.limits.hosts)?;
    Ok(next.run(request).await)
}

fn check(request: &Request, hosts: &[String]) -> Result<(), Problem> {
    let allowed = |host: Option<&str>| host.is_some_and(|host| may_call(host, hosts));
    let header = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    // A target in absolute form overrules the header (RFC 9112, 3.2.2).
    let host = match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => header(header::HOST),
    };
    if !allowed(host.and_then(host_of_authority)) {
        return Err(foreign("Host", host.unwrap_or_default()));
    }
    match header(header::ORIGIN) {
        Some(origin) if !allowed(host_of_origin(origin)) => Err(foreign("Origin", origin)),
        _ => Ok(()),
    }
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
         localhost, and let a proxy in front of it send `Host: localhost`"
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
