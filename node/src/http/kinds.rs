//! Every kind of problem that this interface knows: its word, its status, and what it means.
//!
//! The document of the interface lists them from here. Invariant: no problem is made of a kind that
//! is not here (tests see to that).

/// A kind of problem.
pub(super) struct Kind {
    /// The word behind `urn:carbonmesh:problem:`; it does not change.
    pub(super) slug: &'static str,
    /// The HTTP status.
    pub(super) status: u16,
    /// What it means, and whether to try again.
    pub(super) means: &'static str,
}

const fn kind(status: u16, slug: &'static str, means: &'static str) -> Kind {
    Kind { slug, status, means }
}

/// All of them, by status.
pub(super) const KINDS: &[Kind] = &[
    kind(400, "bad-revocation", "the entry cannot be read"),
    kind(400, "bad-succession", "the entry cannot be read"),
    kind(400, "bad-path", "a part of the path is not what it has to be"),
    kind(400, "bad-query", "a parameter is unknown, or has a value that it may not have"),
    kind(400, "bad-header", "a header has a value that it may not have"),
    kind(400, "bad-json", "the body is no JSON, or has a key or value that it may not have"),
    kind(400, "broken-body", "the body ended before its end, or cannot be unpacked"),
    kind(400, "key-length", "the idempotency key is empty or too long"),
    kind(400, "bad-node-id", "a node's identity is not 32 hexadecimal digits"),
    kind(400, "bad-backup-name", "a backup cannot have this name"),
    kind(400, "bad-log-level", "it is no level of logs, or there are too many"),
    kind(401, "unauthorized", "the node does not know who calls: send a token that it knows"),
    kind(403, "not-an-issuer", "the entry is not signed by a key above the one that it shuts out"),
    kind(
        403,
        "no-successor",
        "the entry does not follow this cluster's present root, or both roots have not signed it",
    ),
    kind(403, "forbidden", "who calls may not do that: `needs` is the scope that it takes"),
    kind(
        403,
        "foreign-host",
        "Host or Origin names something by which this node may not be called",
    ),
    kind(403, "no-backup-folder", "the node's operator allows no backups by request"),
    kind(404, "no-certificates", "the node's cluster has no certificates"),
    kind(404, "unknown-route", "there is no such path"),
    kind(404, "unknown-pipeline", "no pipeline has this name"),
    kind(404, "unknown-job", "no job has this id, or its retention is over"),
    kind(404, "unknown-phase", "the pipeline has no such phase"),
    kind(404, "unknown-revision", "the pipeline has no such revision that is kept"),
    kind(404, "unknown-node", "no member has this id"),
    kind(404, "unknown-target", "the node notifies nobody of this name"),
    kind(404, "unknown-handler", "no handler is kept for this phase"),
    kind(404, "unknown-secret", "no value or secret is kept at this place"),
    kind(405, "wrong-method", "the path does not take this method: see the Allow header"),
    kind(406, "not-acceptable", "there is no form of it that Accept allows"),
    kind(408, "slow-body", "the next piece of the body did not come in time"),
    kind(409, "key-conflict", "the idempotency key belongs to a job with another payload"),
    kind(409, "pipeline-in-use", "the pipeline has unfinished jobs"),
    kind(409, "too-many-pipelines", "the cluster takes no more pipelines"),
    kind(409, "wrong-state", "the job's state does not allow it"),
    kind(409, "part-of", "the job is a part of another, which has to be changed instead"),
    kind(409, "compensating", "what the job has done is not undone yet"),
    kind(409, "compensated", "what the job had done was undone: retry it from its start"),
    kind(409, "not-awaited", "no phase of the job waits for this signal"),
    kind(409, "other-node", "only the node itself does that: ask it"),
    kind(409, "not-recoverable", "the pipeline cannot be recovered like that"),
    kind(409, "handler-in-use", "pipelines have the phase that the handler runs"),
    kind(409, "too-many-handlers", "the cluster keeps no more handlers"),
    kind(409, "too-many-secrets", "the cluster keeps no more values and secrets"),
    kind(409, "backup-exists", "there is a backup of this name"),
    kind(409, "backup-under-way", "the node is making a backup: wait for its end"),
    kind(409, "foreign-logs", "the program that the node is a part of has its own logs"),
    kind(
        412,
        "precondition-failed",
        "If-Match or If-None-Match does not hold; nothing was changed",
    ),
    kind(413, "too-large", "the body, a line or a job is over its limit"),
    kind(415, "wrong-media-type", "the path does not take this Content-Type"),
    kind(415, "wrong-encoding", "the body's Content-Encoding is not gzip"),
    kind(422, "not-an-object", "the job is JSON, but no object"),
    kind(422, "no-key", "a job of many lacks the field that ?key= names"),
    kind(422, "invalid-pipeline", "the document is readable, and defines no pipeline"),
    kind(422, "invalid-handler", "the document is readable, and is no handler"),
    kind(
        422,
        "invalid-secret",
        "the document is readable, and is no value or secret that can be kept",
    ),
    kind(429, "busy", "too many jobs of the pipeline wait; try again later"),
    kind(429, "memory-full", "unfinished jobs take too much memory; try again later"),
    kind(429, "too-many-requests", "too many requests wait in this node; try again later"),
    kind(429, "too-many-logins", "too many logins of this address have failed: wait"),
    kind(500, "internal", "a defect of the node: see its log"),
    kind(503, "no-replica", "nobody who could keep the job can be reached; try again later"),
    kind(503, "no-coordinator", "nobody coordinates the pipeline at present; try again later"),
    kind(503, "unsettled", "not all replicas are up to date; try again later"),
    kind(503, "not-gateway", "this node takes no requests of clients: ask another"),
    kind(503, "stopping", "this node is about to stop: ask another"),
    kind(503, "starting", "this node is still starting; try again later"),
    kind(503, "too-many-streams", "too many streams of events are open here: ask another node"),
    kind(
        503,
        "audit-unavailable",
        "the audit log cannot be written, and so nothing be changed here",
    ),
    kind(504, "unknown", "it may or may not have been done: send it again with the same key"),
    kind(507, "storage-full", "no replica has room on its disk"),
    kind(507, "backup-failed", "the backup could not be written; what there was of it is removed"),
];

/// The kinds that have this status.
pub(super) fn of_status(status: u16) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| kind.status == status)
}

/// Whether there is such a kind.
#[cfg(test)]
pub(super) fn is_known(slug: &str, status: u16) -> bool {
    KINDS.iter().any(|kind| (kind.slug, kind.status) == (slug, status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_stands_once_and_in_order() {
        assert!(KINDS.windows(2).all(|two| two[0].status <= two[1].status));
        for kind in KINDS {
            let same = KINDS.iter().filter(|other| other.slug == kind.slug).count();
            assert_eq!(same, 1, "{}", kind.slug);
        }
    }
}
