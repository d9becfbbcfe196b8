//! What a target is to be told, and how: checked settings, without what they were read from.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use carbonmesh_protocol::name::Name;
use data_encoding::BASE64;
use reqwest::Url;

use super::{Kind, Level};
use crate::results::MailSettings;

/// How a secret begins that stands in base64, as the Standard Webhooks specification has it.
const SECRET_PREFIX: &str = "whsec_";

/// The shortest secret, in bytes.
const SECRET_BYTES: usize = 16;

/// One target.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// Its name.
    pub name: String,
    /// Where to.
    pub to: To,
    /// Of which kinds; all unless given.
    pub events: Option<BTreeSet<Kind>>,
    /// Of which pipelines; all unless given. What belongs to none is told anyway.
    pub pipelines: Vec<Pattern>,
    /// Of this level at least.
    pub level: Level,
    /// The body, for webhooks and e-mails (minijinja); unless given, JSON or a plain text.
    pub template: Option<String>,
    /// An e-mail's subject (minijinja).
    pub subject: Option<String>,
    /// For how long the oldest invocation may wait for a worker.
    pub queue_age: Option<Duration>,
    /// How many notifications may wait: for their turn, or for another try.
    pub queue: usize,
    /// How often one is tried.
    pub max_attempts: u32,
    /// How long to wait before the second try; it doubles from there, to [`Self::LONGEST_WAIT`].
    pub backoff: Duration,
    /// How many tries there may be in a minute.
    pub per_minute: u32,
    /// The cluster's name, which each notification tells.
    pub cluster: String,
}

impl TargetSettings {
    /// How many may wait unless the operator says.
    pub const QUEUE: usize = 1000;
    /// How often one is tried unless the operator says: over about 25 minutes.
    pub const MAX_ATTEMPTS: u32 = 12;
    /// The first wait unless the operator says.
    pub const BACKOFF: Duration = Duration::from_secs(1);
    /// The longest wait between two tries.
    pub const LONGEST_WAIT: Duration = Duration::from_secs(300);
    /// How many webhooks a minute unless the operator says.
    pub const WEBHOOKS_PER_MINUTE: u32 = 600;
    /// How many e-mails a minute unless the operator says: people read them.
    pub const MAILS_PER_MINUTE: u32 = 10;
}

/// Where to.
#[derive(Clone, Debug)]
pub enum To {
    /// To an HTTP server.
    Webhook(WebhookSettings),
    /// To people.
    Mail(MailSettings),
}

/// An HTTP server that is told.
#[derive(Clone)]
pub struct WebhookSettings {
    /// Where; its path may be a secret.
    pub url: Url,
    /// What signs the requests; they are not signed without.
    pub secret: Option<Vec<u8>>,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// What the body is, where a template makes it.
    pub content_type: String,
}

impl WebhookSettings {
    /// How long a server may take unless the operator says.
    pub const TIMEOUT: Duration = Duration::from_secs(15);

    /// Scheme and host: what may be shown.
    pub(crate) fn shown(&self) -> String {
        format!("{}/…", self.url.origin().ascii_serialization())
    }
}

impl fmt::Debug for WebhookSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookSettings").field("to", &self.shown()).finish_non_exhaustive()
    }
}

/// The bytes of a secret as an operator writes it: `whsec_` and base64, or any text.
///
/// # Errors
/// What is wrong with it, and never the secret.
pub(crate) fn secret_bytes(text: &str) -> Result<Vec<u8>, String> {
    let bytes = match text.strip_prefix(SECRET_PREFIX) {
        Some(base64) => BASE64
            .decode(base64.as_bytes())
            .map_err(|_| format!("what follows {SECRET_PREFIX} is no base64"))?,
        None => text.as_bytes().to_vec(),
    };
    match bytes.len() {
        0..SECRET_BYTES => Err(format!(
            "the secret has {} bytes, at least {SECRET_BYTES} are needed: make one with \
             `echo whsec_$(head -c 32 /dev/urandom | base64)`",
            bytes.len()
        )),
        _ => Ok(bytes),
    }
}

/// A pipeline's name, or how names begin: `PREFIX*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    pub(crate) fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == self.0,
        }
    }

    /// As it was written.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let start = text.strip_suffix('*').unwrap_or(text);
        match start.parse::<Name>() {
            Err(error) if text != "*" => Err(error.to_string()),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_text_or_base64_and_errors_do_not_show_them() {
        assert_eq!(secret_bytes("0123456789abcdef").unwrap(), b"0123456789abcdef");
        assert_eq!(secret_bytes("whsec_MDEyMzQ1Njc4OWFiY2RlZg==").unwrap(), b"0123456789abcdef");
        for bad in ["hunter2-x", "whsec_MDEy", "whsec_not base64 at all, is it"] {
            let error = secret_bytes(bad).unwrap_err();
            assert!(!error.contains(bad) && !error.contains(&bad[6..]), "{error}");
        }
    }

    #[test]
    fn patterns_are_names_or_their_beginnings() {
        let matches = |pattern: &str, name: &str| pattern.parse::<Pattern>().unwrap().matches(name);
        assert!(matches("*", "p") && matches("or*", "orders") && matches("p", "p"));
        assert!(!matches("or*", "p") && !matches("p", "pp"));
        for bad in ["", "a b", "a*b", "**"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
