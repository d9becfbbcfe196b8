//! Ids of traces and spans, and the text by which they are handed on (W3C Trace Context, level 1).

use carbonmesh_protocol::{id::JobId, trace::TraceParent};
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// The trace of a job: that of whoever enqueued it, else the digits of its id. 32 of them, which are never
/// all zero.
pub(crate) fn trace_id(job: JobId, within: Option<TraceParent>) -> String {
    within.map_or_else(|| job.to_string().replace('-', ""), |parent| parent.trace_id())
}

/// A span of a job, named by what it is: 16 digits.
pub(crate) fn span_id(job: JobId, names: &[&str]) -> String {
    let mut hash = Sha256::new();
    hash.update(job.to_string());
    for name in names {
        hash.update(name.len().to_le_bytes());
        hash.update(name.as_bytes());
    }
    HEXLOWER.encode(&hash.finalize()[..8])
}

/// The span of an attempt: its token names it, wherever it runs.
pub(crate) fn attempt_span(job: JobId, token: &str) -> String {
    span_id(job, &["attempt", token])
}

/// The span of all of a job.
pub(crate) fn job_span(job: JobId) -> String {
    span_id(job, &["job"])
}

/// What an attempt is given: the spans that it makes belong below its own. A trace that its beginner does
/// not keep is not kept by phases either.
pub(crate) fn traceparent(job: JobId, within: Option<TraceParent>, token: &str) -> String {
    let sampled = within.is_none_or(|parent| parent.is_sampled());
    let (trace, span, flags) = (trace_id(job, within), attempt_span(job, token), u8::from(sampled));
    format!("00-{trace}-{span}-{flags:02x}")
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::id::PipelineId;

    use super::*;

    #[test]
    fn a_traceparent_is_made_of_the_job_and_the_attempt() {
        let job = JobId::of_key(PipelineId::of_name("p"), "k");
        let (one, other) = (traceparent(job, None, "1.2"), traceparent(job, None, "1.3"));
        assert_ne!(one, other);
        assert_eq!(one, traceparent(job, None, "1.2"));
        let parts: Vec<&str> = one.split('-').collect();
        let [version, trace, span, flags] = parts[..] else { panic!("{one}") };
        assert_eq!((version, trace.len(), span.len(), flags), ("00", 32, 16, "01"));
        assert_eq!(trace, trace_id(job, None));
        let hex =
            |text: &str| text.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it));
        assert!(hex(trace) && hex(span), "{one}");
    }

    #[test]
    fn within_a_trace_an_attempt_has_that_and_its_own_span() {
        let job = JobId::of_key(PipelineId::of_name("p"), "k");
        for flags in ["01", "00"] {
            let client = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            let given = traceparent(job, client.parse().ok(), "1.2");
            let span = attempt_span(job, "1.2");
            assert_eq!(given, format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-{flags}"));
        }
    }
}
