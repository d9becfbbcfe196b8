//! Phases that take a job's result out of the cluster: into a file, to an HTTP server, into an e-mail.
//!
//! ```text
//! [results] of the node ──► which of them it offers, and where they may write
//! input of the phase: to, and the result ──► file.rs │ post.rs │ mail.rs
//! ```
//! They are phases like any: retried with the pipeline's backoff, seen in the job's timeline, run
//! again if their end was lost. So each is done at least once, and carries the job's id, by which
//! whoever receives it can tell a repetition.
//!
//! Invariant: nothing goes anywhere that the node's operator has not named.

mod file;
pub(crate) mod mail;
pub(crate) mod post;
#[cfg(test)]
pub(crate) mod tests;

use bytes::Bytes;
use serde_json::Value;

use crate::{
    document::{EMAIL, HTTP_POST, WRITE_FILE, merge_instructions},
    phase::{PhaseContext, PhaseError, PhaseRegistry},
};

pub use file::FileSettings;
pub use mail::{MailSettings, MailTls};
pub use post::PostSettings;

/// How many results of a kind may be on their way at once: each waits for a disk or for others.
const SLOTS: u32 = 8;

/// Where results may go; what is not given is not offered.
#[derive(Clone, Debug, Default)]
pub struct ResultSettings {
    /// Into files.
    pub file: Option<FileSettings>,
    /// To HTTP servers.
    pub post: Option<PostSettings>,
    /// By e-mail.
    pub mail: Option<MailSettings>,
}

impl ResultSettings {
    /// The registry with the phases that these settings allow.
    ///
    /// # Errors
    /// One of them cannot be used; the key and the reason.
    pub fn register(self, mut registry: PhaseRegistry) -> Result<PhaseRegistry, (String, String)> {
        let wrong = |key: &str| {
            let key = format!("results.{key}");
            move |reason: String| (key, reason)
        };
        if let Some(settings) = self.file {
            let writer = file::FileWriter::new(settings).map_err(wrong("folder"))?;
            registry = registry.with(WRITE_FILE, SLOTS, writer);
        }
        if let Some(settings) = self.post {
            let writer = post::PostWriter::new(settings).map_err(wrong("post"))?;
            registry = registry.with(HTTP_POST, SLOTS, writer);
        }
        if let Some(settings) = self.mail {
            let writer = mail::MailWriter::new(&settings).map_err(wrong("mail"))?;
            registry = registry.with(EMAIL, SLOTS, writer);
        }
        Ok(registry)
    }
}

/// What a writer is to do.
struct Delivery {
    /// Where to, with what stood for the job's own put in.
    to: String,
    /// The result: one JSON object.
    result: Bytes,
    /// A mail's subject, if the pipeline gives one.
    subject: Option<String>,
}

impl Delivery {
    /// Reads a phase's input; `encode` makes values fit where they are put in.
    fn of(context: &PhaseContext, encode: fn(&str) -> String) -> Result<Self, PhaseError> {
        let mut input = context.instructions()?;
        let fatal = |why: &str| {
            PhaseError::Fatal(format!(
                "{why}: give the pipeline a `result` with `to`, or the phase an input_mapping such \
                 as {{to: 'file:{{job}}.json', result: results.PHASE}}"
            ))
        };
        let text = |value: Option<Value>| match value {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let to = text(input.remove("to")).ok_or_else(|| fatal("its input has no `to`"))?;
        let subject = text(input.remove("subject"));
        let result = match (input.remove("result"), input.remove("instructions")) {
            (Some(result @ Value::Object(_)), _) => to_json(&result)?,
            (_, Some(instructions @ Value::Object(_))) => {
                let parts = match input.remove("results") {
                    Some(Value::Array(parts)) => parts,
                    _ => Vec::new(),
                };
                // What was left out gave nothing.
                let parts = parts.iter().filter(|part| part.is_object());
                let mut parts = parts.map(to_json).collect::<Result<Vec<_>, _>>()?;
                if let Some(Value::Object(mut gathered)) = input.remove("gathered") {
                    gathered.retain(|_, value| !value.is_null());
                    parts.push(to_json(&Value::Object(gathered))?);
                }
                merge_instructions(&to_json(&instructions)?, &parts)
                    .map_err(|error| PhaseError::Fatal(error.to_string()))?
                    .into()
            }
            _ => return Err(fatal("its input has neither `result` nor `instructions`")),
        };
        Ok(Self { to: filled(&to, context, encode), result, subject })
    }
}

fn to_json(value: &Value) -> Result<Bytes, PhaseError> {
    let json = serde_json::to_vec(value);
    json.map(Bytes::from).map_err(|error| PhaseError::Fatal(error.to_string()))
}

/// A pattern with the job's own in place of what stands for it: the same for each attempt.
fn filled(pattern: &str, context: &PhaseContext, encode: fn(&str) -> String) -> String {
    let mut out = pattern.to_owned();
    for (name, value) in [
        ("{job}", context.job().to_string()),
        ("{pipeline}", context.pipeline().to_owned()),
        ("{key}", context.key().unwrap_or_default().to_owned()),
    ] {
        if out.contains(name) {
            out = out.replace(name, &encode(&value));
        }
    }
    out
}
