//! The core's figures, with names and units: queues, jobs, elections, leases, replication.

use std::fmt;

use carbonmesh_protocol::{
    figures::{Figures, GroupFigures, SPANS, Tally},
    view::ClusterView,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

use super::{JobLabels, PipelineLabels};

/// Gauges of fractions.
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    pipeline: String,
    step: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaLabels {
    pipeline: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    peer: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LeaseLabels {
    lease: &'static str,
}

pub(super) fn register(own: &mut Registry, cluster: &ClusterView, figures: &Figures) {
    let led: Vec<&GroupFigures> = figures.groups.iter().filter(|group| group.coordinates).collect();
    queues(own, &led);
    jobs(own, &figures.groups);
    elections(own, figures);
    replication(own, cluster, figures, &led);
}

fn of(group: &GroupFigures) -> PipelineLabels {
    PipelineLabels { pipeline: group.pipeline.to_string() }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn queues(own: &mut Registry, led: &[&GroupFigures]) {
    let depth = Family::<QueueLabels, Gauge>::default();
    let age = Family::<QueueLabels, Seconds>::default();
    let delayed = Family::<PipelineLabels, Gauge>::default();
    for group in led {
        delayed.get_or_create(&of(group)).set(gauge(group.delayed));
        for queue in &group.queues {
            let (pipeline, step) = (group.pipeline.to_string(), queue.step.to_string());
            let labels = QueueLabels { pipeline, step };
            depth.get_or_create(&labels).set(gauge(queue.depth));
            age.get_or_create(&labels).set(queue.oldest.as_secs_f64());
        }
    }
    let help = "Invocations that wait for a worker, of the pipelines that this node coordinates";
    own.register("queue_depth", help, depth);
    let help = "For how long the oldest of these has waited";
    own.register_with_unit("queue_oldest_age", help, Unit::Seconds, age);
    let help = "Invocations that wait for a moment: for a backoff, a delay or a deadline";
    own.register("invocations_delayed", help, delayed);
}

fn jobs(own: &mut Registry, groups: &[GroupFigures]) {
    let accepted = Family::<PipelineLabels, Counter>::default();
    let ended = Family::<JobLabels, Counter>::default();
    let mut durations = Vec::new();
    for group in groups.iter().filter(|group| group.coordinates || group.led != Tally::default()) {
        let labels = of(group);
        accepted.get_or_create(&labels).inc_by(group.led.accepted);
        for (state, count) in [
            ("succeeded", group.led.succeeded),
            ("dead", group.led.dead),
            ("cancelled", group.led.cancelled),
        ] {
            let labels = JobLabels { pipeline: labels.pipeline.clone(), state };
            ended.get_or_create(&labels).inc_by(count);
        }
        durations.push((labels, group.led));
    }
    let help = "Jobs that came while this node coordinated their pipeline";
    own.register("jobs_accepted", help, accepted);
    own.register("jobs_ended", "Jobs that ended while this node coordinated their pipeline", ended);
    let help = "From when a job was enqueued until it had succeeded";
    own.register_with_unit("job_duration", help, Unit::Seconds, Durations(durations));
}

fn elections(own: &mut Registry, figures: &Figures) {
    let counted = &figures.counted;
    let help = "Elections in which this node stood";
    own.register("elections", help, ConstCounter::new(counted.elections));
    let help = "Elections that this node won";
    own.register("elections_won", help, ConstCounter::new(counted.elections_won));
    let lost = Family::<LeaseLabels, Counter>::default();
    for (lease, count) in [("coordinator", counted.terms_lost), ("attempt", counted.attempts_lost)]
    {
        lost.get_or_create(&LeaseLabels { lease }).inc_by(count);
    }
    let help =
        "Leases that were lost: this node's as a coordinator, and those of attempts at workers";
    own.register("leases_lost", help, lost);
}

fn replication(
    own: &mut Registry,
    cluster: &ClusterView,
    figures: &Figures,
    led: &[&GroupFigures],
) {
    let lag = Family::<PeerLabels, Seconds>::default();
    let batches = Family::<PeerLabels, Gauge>::default();
    for member in cluster.members.iter().filter(|member| member.node != cluster.node) {
        let labels = PeerLabels { peer: member.name.clone() };
        let behind = figures.lagging.iter().find(|lag| lag.node == member.node);
        lag.get_or_create(&labels).set(behind.map_or(0.0, |lag| lag.oldest.as_secs_f64()));
        batches.get_or_create(&labels).set(behind.map_or(0, |lag| gauge(lag.batches)));
    }
    let help = "For how long the oldest batch of changes has waited for a replica in step";
    own.register_with_unit("replication_lag", help, Unit::Seconds, lag);
    let help = "Batches of changes that a replica in step has not acknowledged";
    own.register("replication_waiting_batches", help, batches);
    let replicas = Family::<ReplicaLabels, Gauge>::default();
    for group in led {
        for (state, count) in [
            ("in_step", group.replicas_in_step),
            ("syncing", group.replicas_syncing),
            ("lagging", group.replicas_lagging),
        ] {
            let labels = ReplicaLabels { pipeline: group.pipeline.to_string(), state };
            replicas.get_or_create(&labels).set(gauge(count));
        }
    }
    let help = "Other replicas of the pipelines that this node coordinates, by how far they are";
    own.register("replicas", help, replicas);
    let put_out = ConstCounter::new(figures.counted.replicas_put_out);
    let help = "How often this node stopped to wait for a replica that kept the others waiting";
    own.register("replicas_put_out", help, put_out);
    let help = "Batches of changes that are not on all the disks where they should be";
    own.register("unsettled_batches", help, ConstGauge::new(figures.unsettled_batches));
    let help = "For how long the oldest batch of changes has waited for this node's own disk";
    let disk = ConstGauge::new(figures.disk_lag.as_secs_f64());
    own.register_with_unit("disk_lag", help, Unit::Seconds, disk);
}

/// Histograms that were counted elsewhere.
#[derive(Debug)]
struct Durations(Vec<(PipelineLabels, Tally)>);

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), fmt::Error> {
        for (labels, tally) in &self.0 {
            let bucket = |at: usize| match at + 1 < SPANS {
                true => ((1_u64 << at) as f64 / 1000.0, tally.durations[at]),
                false => (f64::INFINITY, tally.durations[at]),
            };
            let buckets: Vec<(f64, u64)> = (0..SPANS).map(bucket).collect();
            let (sum, count) = (tally.duration_ms as f64 / 1000.0, tally.succeeded);
            encoder
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carbonmesh_protocol::{
        figures::{Counted, PeerLag, QueueFigures},
        id::NodeId,
        view::JobState,
    };
    use prometheus_client::encoding::text::encode;

    use super::*;
    use crate::http::fake;

    fn group(coordinates: bool) -> GroupFigures {
        let mut led = Tally { accepted: 3, ..Tally::default() };
        led.ended(JobState::Succeeded, 1500);
        led.ended(JobState::Dead, 10);
        GroupFigures {
            pipeline: fake::name("p"),
            coordinates,
            led,
            seen: led,
            queues: vec![QueueFigures {
                step: fake::name("s"),
                depth: 7,
                oldest: Duration::from_millis(2500),
            }],
            delayed: 2,
            replicas_in_step: 1,
            replicas_syncing: 1,
            replicas_lagging: 0,
        }
    }

    fn text(figures: &Figures) -> String {
        let mut registry = Registry::default();
        register(&mut registry, &fake::cluster(), figures);
        let mut text = String::new();
        encode(&mut text, &registry).expect("a text");
        text
    }

    #[test]
    fn what_the_coordinator_knows_has_names_and_units() {
        let peer = NodeId::from_bytes([1; 16]);
        let lag = PeerLag { node: peer, batches: 4, oldest: Duration::from_millis(250) };
        let counted =
            Counted { elections: 5, elections_won: 2, attempts_lost: 9, ..Counted::default() };
        let text = text(&Figures {
            counted,
            lagging: vec![lag],
            groups: vec![group(true)],
            ..Figures::default()
        });
        for line in [
            r#"queue_depth{pipeline="p",step="s"} 7"#,
            r#"queue_oldest_age_seconds{pipeline="p",step="s"} 2.5"#,
            r#"invocations_delayed{pipeline="p"} 2"#,
            r#"jobs_accepted_total{pipeline="p"} 3"#,
            r#"jobs_ended_total{pipeline="p",state="dead"} 1"#,
            r#"job_duration_seconds_sum{pipeline="p"} 1.5"#,
            r#"job_duration_seconds_bucket{le="1.024",pipeline="p"} 0"#,
            r#"job_duration_seconds_bucket{le="2.048",pipeline="p"} 1"#,
            r#"job_duration_seconds_bucket{le="+Inf",pipeline="p"} 1"#,
            "elections_total 5",
            "elections_won_total 2",
            r#"leases_lost_total{lease="attempt"} 9"#,
            r#"replication_lag_seconds{peer="there"} 0.25"#,
            r#"replication_waiting_batches{peer="there"} 4"#,
            r#"replicas{pipeline="p",state="in_step"} 1"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }

    #[test]
    fn who_coordinates_no_more_keeps_its_counters_and_tells_of_no_queues() {
        let text = text(&Figures { groups: vec![group(false)], ..Figures::default() });
        assert!(text.contains(r#"jobs_accepted_total{pipeline="p"} 3"#), "{text}");
        assert!(!text.contains("queue_depth{"), "{text}");
        assert!(!text.contains("replicas{"), "{text}");
    }
}
