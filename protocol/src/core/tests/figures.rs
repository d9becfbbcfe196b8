//! What is counted is what happened.

use std::time::Duration;

use crate::figures::{Figures, GroupFigures};

use super::{
    cluster::{Cluster, chain},
    three,
};

fn figures(cluster: &Cluster, index: usize) -> Figures {
    cluster.nodes[index].core.as_ref().expect("it runs").figures()
}

fn group(figures: &Figures) -> &GroupFigures {
    figures.groups.first().expect("one pipeline")
}

#[test]
fn jobs_are_counted_once_by_their_coordinator_and_seen_by_all_who_keep_them() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    let jobs = cluster.enqueue_many(0, "p", 10);
    cluster.run_until("all have succeeded", |cluster| cluster.all_succeeded(&jobs));
    cluster.run_for(Duration::from_secs(2));
    for index in 0..3 {
        let figures = figures(&cluster, index);
        let group = group(&figures);
        assert_eq!(group.coordinates, index == coordinator);
        assert_eq!((group.seen.accepted, group.seen.succeeded), (10, 10), "node {index}");
        let led = if index == coordinator { 10 } else { 0 };
        assert_eq!((group.led.accepted, group.led.succeeded), (led, led), "node {index}");
        assert!(group.seen.quantile_ms(0.5).is_some());
        assert_eq!((figures.unsettled_batches, figures.disk_lag), (0, Duration::ZERO));
    }
    let figures = figures(&cluster, coordinator);
    assert_eq!(group(&figures).replicas_in_step, 2);
    assert!(figures.counted.elections >= figures.counted.elections_won);
    assert_eq!((figures.counted.elections_won, figures.counted.terms_lost), (1, 0));
}

#[test]
fn a_queue_tells_its_depth_and_how_long_the_oldest_has_waited() {
    let mut cluster = Cluster::new(1, &[("a", 1)]);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    cluster.automatic = false;
    cluster.enqueue(0, "p", None, "{}").expect("accepted");
    cluster.run_for(Duration::from_secs(1));
    let jobs = cluster.enqueue_many(0, "p", 4);
    assert_eq!(jobs.len(), 4);
    cluster.run_for(Duration::from_secs(7));
    let figures = figures(&cluster, 0);
    let [queue] = group(&figures).queues.as_slice() else { panic!("{figures:?}") };
    assert_eq!((queue.step.as_str(), queue.depth), ("a", 4));
    let seconds = queue.oldest.as_secs_f64();
    assert!((6.9..7.5).contains(&seconds), "{seconds}");
}

#[test]
fn a_lost_worker_is_counted_and_so_is_who_takes_over() {
    let mut cluster = three();
    let old = cluster.coordinator();
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(0, "p", 6);
    cluster.run_for(Duration::from_secs(1));
    let worker = (0..3).find(|index| *index != old).expect("another");
    let there = cluster.nodes[worker].attempts.len() as u64;
    assert!(there > 0 && jobs.len() == 6);
    cluster.kill(worker);
    cluster.run_for(Duration::from_secs(10));
    assert_eq!(figures(&cluster, old).counted.attempts_lost, there);
    cluster.start(worker);
    cluster.run_for(Duration::from_secs(5));
    cluster.kill(old);
    cluster.run_for(Duration::from_secs(10));
    let new = cluster.coordinator();
    assert_eq!(figures(&cluster, new).counted.elections_won, 1);
}
