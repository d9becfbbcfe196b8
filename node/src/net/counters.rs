//! What the network counts: plain counters that whoever sends or receives raises, and nobody waits for.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

/// The network's counters since the start; cheap to clone, one for each node.
#[derive(Clone, Debug, Default)]
pub(crate) struct NetCounters {
    pub(super) connections: Gauge,
    pub(super) connections_opened: Counter,
    pub(super) connections_failed: Family<DirectionLabels, Counter>,
    pub(super) relayed: Gauge,
    pub(super) punched: Family<OutcomeLabels, Counter>,
    pub(super) circuits: Gauge,
    pub(super) adverts: Family<OutcomeLabels, Counter>,
    pub(super) sessions: Gauge,
    pub(super) sessions_opened: Counter,
    pub(super) sessions_ended: Family<ReasonLabels, Counter>,
    pub(super) frames_sent: Counter,
    pub(super) frames_received: Counter,
    pub(super) bytes_sent: Counter,
    pub(super) bytes_received: Counter,
    pub(super) messages_received: Counter,
}

/// Which way a connection was made.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DirectionLabels {
    direction: &'static str,
}

/// What became of an advert, or of a try to do without a relay.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabels {
    outcome: &'static str,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    reason: &'static str,
}

impl NetCounters {
    /// A connection could not be made: `incoming` or `outgoing`.
    pub(super) fn connection_failed(&self, direction: &'static str) {
        self.connections_failed.get_or_create(&DirectionLabels { direction }).inc();
    }

    /// An advert was `sent`, `received` or `rejected`.
    pub(super) fn advert(&self, outcome: &'static str) {
        self.adverts.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A relayed connection was made `direct`, or that `failed`.
    pub(super) fn punched(&self, outcome: &'static str) {
        self.punched.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// A session has begun.
    pub(super) fn session_opened(&self) {
        self.sessions.inc();
        self.sessions_opened.inc();
    }

    /// It has ended: `closed`, `silent`, `slow` or `failed`.
    pub(super) fn session_ended(&self, reason: &'static str) {
        self.sessions.dec();
        self.sessions_ended.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// A frame went out.
    pub(super) fn sent(&self, bytes: usize) {
        self.frames_sent.inc();
        self.bytes_sent.inc_by(bytes as u64);
    }

    /// A frame came in.
    pub(super) fn received(&self, bytes: usize) {
        self.frames_received.inc();
        self.bytes_received.inc_by(bytes as u64);
    }

    /// Makes them known, each with its name and what it is.
    pub(crate) fn register(&self, own: &mut Registry) {
        let help = "Connections to other nodes";
        own.register("network_connections", help, self.connections.clone());
        let help = "Connections that were made";
        own.register("network_connections_opened", help, self.connections_opened.clone());
        let help = "Connections that could not be made, those that the gate refused included";
        own.register("network_connections_failed", help, self.connections_failed.clone());
        let help = "Nodes that are connected through a relay only";
        own.register("network_peers_relayed", help, self.relayed.clone());
        let help = "Tries to replace a relayed connection by a direct one: direct, failed";
        own.register("network_hole_punches", help, self.punched.clone());
        // None yet is a number too.
        for outcome in ["direct", "failed"] {
            self.punched.get_or_create(&OutcomeLabels { outcome }).inc_by(0);
        }
        let help = "Pairs of nodes that this node relays for";
        own.register("relay_circuits", help, self.circuits.clone());
        let help = "Adverts in gossip: sent, received, ignored since they are old, rejected since they are not their sender's";
        own.register("gossip_adverts", help, self.adverts.clone());
        let help = "Peers with whom frames are exchanged";
        own.register("stream_sessions", help, self.sessions.clone());
        let help = "Sessions of frame streams that began";
        own.register("stream_sessions_opened", help, self.sessions_opened.clone());
        let help =
            "Sessions of frame streams that ended: closed, failed, the peer silent or too slow";
        own.register("stream_sessions_ended", help, self.sessions_ended.clone());
        own.register("stream_frames_sent", "Frames sent", self.frames_sent.clone());
        own.register("stream_frames_received", "Frames received", self.frames_received.clone());
        let help = "Bytes of frames sent";
        own.register_with_unit("stream_sent", help, Unit::Bytes, self.bytes_sent.clone());
        let help = "Bytes of frames received";
        own.register_with_unit("stream_received", help, Unit::Bytes, self.bytes_received.clone());
        let help = "Messages of the protocol received";
        own.register("stream_messages_received", help, self.messages_received.clone());
    }
}
