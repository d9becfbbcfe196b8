//! Traces of jobs, for whoever collects them by OTLP: one trace for each job, told when it has ended.
//!
//! ```text
//! events: a job has ended, here coordinated ─► queue ─► export.rs asks for the job ─► spans.rs ─► POST
//! taken.rs: a job was taken here and is durable ┘
//! ```
//! The ids of a trace are made of what everybody knows: of the job's id, and of an attempt's token; and of
//! the trace that whoever enqueued it was in, which is kept with the job (`protocol/src/trace.rs`). So a
//! phase can be told the span that it runs in (`traceparent`) before that span is told to anybody, and
//! nothing has to be kept for it.
//!
//! Written as the official JSON encoding of OTLP 1, with the HTTP client that is here anyway: the crates
//! of OpenTelemetry would bring gRPC types, a code generator and a second set of pools for four structs.

pub(crate) mod context;
mod export;
mod spans;
mod taken;
#[cfg(test)]
mod tests;

pub(crate) use export::start;
pub(crate) use taken::Tells;

use reqwest::Url;

/// Where spans go below an endpoint.
const TRACES: &str = "v1/traces";

/// The address for spans of an endpoint as an operator gives it: `http://HOST:4318`, or all of it.
///
/// # Errors
/// It is no such address.
pub(crate) fn endpoint(text: &str) -> Result<Url, String> {
    let wrong = || format!("`{text}` is no http or https URL, as http://127.0.0.1:4318 is");
    let mut url = text.parse::<Url>().map_err(|_| wrong())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "it has a user or a password: OTLP is sent without, to a collector nearby".into()
        );
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if !path.ends_with(TRACES) {
        url.set_path(&format!("{path}/{TRACES}"));
    }
    Ok(url)
}
