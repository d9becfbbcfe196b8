//! Results to HTTP servers: one signed `POST` each.
//!
//! What the server answers decides: 2xx is done; 408, 425, 429 and 5xx are tried again, no sooner than
//! `Retry-After` says; all else is final. Redirects are not followed: they lead where nobody allowed.

use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{CONTENT_TYPE, RETRY_AFTER},
    redirect::Policy,
};
use serde_json::Value;
use sha2::Sha256;

use super::Delivery;
use crate::{
    clock, outbound,
    phase::{Fields, Phase, PhaseContext, PhaseError},
};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// Where results may be sent.
#[derive(Clone)]
pub struct PostSettings {
    /// What addresses may begin with: scheme, host and port have to be the same, and the path below
    /// this one.
    pub urls: Vec<String>,
    /// What signs them.
    pub secret: Vec<u8>,
    /// How long a server may take to answer.
    pub timeout: Duration,
}

impl PostSettings {
    /// How long a server may take unless the operator says.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
}

impl std::fmt::Debug for PostSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostSettings").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// The phase.
pub(super) struct PostWriter {
    allowed: Vec<Url>,
    secret: Vec<u8>,
    http: Client,
}

impl PostWriter {
    pub(super) fn new(settings: PostSettings) -> Result<Self, String> {
        let read = |text: &String| match text.parse::<Url>() {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
            _ => Err(format!("`{text}` is no http or https URL")),
        };
        let allowed = settings.urls.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { allowed, secret: settings.secret, http: client(settings.timeout)? })
    }

    fn allows(&self, url: &Url) -> bool {
        let plain = url.username().is_empty() && url.password().is_none();
        plain
            && self.allowed.iter().any(|allowed| {
                let path = allowed.path().trim_end_matches('/');
                let below = url.path().strip_prefix(path);
                allowed.origin() == url.origin()
                    && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }
}

#[async_trait]
impl Phase for PostWriter {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let Delivery { to, result, .. } = Delivery::of(&context, encoded)?;
        let url: Url =
            to.parse().map_err(|error| PhaseError::Fatal(format!("`{to}` is no URL: {error}")))?;
        if !self.allows(&url) {
            return Err(PhaseError::Fatal(format!(
                "{url} is not below one of the addresses in results.urls of the node"
            )));
        }
        let now_s = clock::unix_ms() / 1000;
        let request = self
            .http
            .post(url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", context.idempotency_key())
            .header("CarbonMesh-Job", context.job().to_string())
            .header("CarbonMesh-Pipeline", context.pipeline())
            .header("CarbonMesh-Attempt", context.attempt())
            .header("CarbonMesh-Signature", signature(&self.secret, now_s, &result))
            .body(result);
        let answer = request.send().await;
        match judged(url.as_str(), answer) {
            Ok(status) => Ok(Fields::from_iter([
                ("posted".to_owned(), Value::String(url.into())),
                ("answer".to_owned(), Value::from(status.as_u16())),
            ])),
            Err(Unsent::Later(error, Some(after))) => Err(PhaseError::RetryAfter(error, after)),
            Err(Unsent::Later(error, None)) => Err(PhaseError::Retry(error)),
            Err(Unsent::Never(error)) => Err(PhaseError::Fatal(error)),
        }
    }
}

/// A client for requests to addresses that an operator has named: it goes nowhere else.
pub(crate) fn client(timeout: Duration) -> Result<Client, String> {
    let client = outbound::client()
        .no_proxy()
        .redirect(Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .user_agent(concat!("carbonmesh/", env!("CARGO_PKG_VERSION")));
    client.build().map_err(|error| error.to_string())
}

/// Why something was not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// It may go better later: not before that long, if the receiver says so.
    Later(String, Option<Duration>),
    /// It will not.
    Never(String),
}

/// What an answer means; `shown` names the receiver.
pub(crate) fn judged(shown: &str, answer: reqwest::Result<Response>) -> Result<StatusCode, Unsent> {
    let answer = answer.map_err(|error| Unsent::Later(unsent(shown, &error), None))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(status);
    }
    let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let error = format!("{shown} answers {status}");
    let passing = status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        );
    Err(match passing {
        true => Unsent::Later(error, after.map(|after| after.min(MAX_RETRY_AFTER))),
        false => Unsent::Never(error),
    })
}

/// A value as one part of a URL.
fn encoded(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    // Dots alone would lead upwards.
    if out.bytes().all(|byte| byte == b'.') { out.replace('.', "_") } else { out }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA-256 over `SECONDS.BODY`, so that an old body cannot be sent anew.
pub(super) fn signature(secret: &[u8], now_s: u64, body: &[u8]) -> String {
    let mac = mac(secret, &[format!("{now_s}.").as_bytes(), body]);
    format!("t={now_s},v1={}", HEXLOWER.encode(&mac))
}

/// HMAC-SHA-256 over some parts behind each other.
pub(crate) fn mac(secret: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    // Keys of all lengths are possible.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return Vec::new() };
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().to_vec()
}

/// What went wrong, without what errors repeat of each other.
fn unsent(shown: &str, error: &reqwest::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    match error.is_timeout() {
        true => format!("{shown} does not answer in time"),
        false => format!("cannot ask {shown}: {innermost}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_an_allowed_address_is() {
        let urls = vec!["https://hooks.example/in/".to_owned(), "http://127.0.0.1:9/".to_owned()];
        let settings = PostSettings { urls, secret: vec![1], timeout: PostSettings::TIMEOUT };
        let writer = PostWriter::new(settings).expect("a writer");
        let allows = |url: &str| writer.allows(&url.parse().expect("a URL"));
        for good in
            ["https://hooks.example/in/x?y=1", "https://hooks.example/in", "http://127.0.0.1:9/a"]
        {
            assert!(allows(good), "{good}");
        }
        for bad in [
            "http://hooks.example/in/x",
            "https://hooks.example/inside",
            "https://hooks.example/in/../x",
            "https://hooks.example:444/in/x",
            "https://hooks.example.evil/in/x",
            "https://u:p@hooks.example/in/x",
            "http://127.0.0.1:8/",
        ] {
            assert!(!allows(bad), "{bad}");
        }
    }

    #[test]
    fn a_signature_is_that_of_time_and_body() {
        // printf '%s' '12.{}' | openssl dgst -sha256 -hmac key
        let expected = "t=12,v1=043e30e1e15664dc97494d18e4110984bcbd2c4e6f3e19de9569dc1ea6d9b03e";
        assert_eq!(signature(b"key", 12, b"{}"), expected);
    }
}
