//! Values and secrets that the cluster keeps, sealed: every node has them, whatever happens meanwhile.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    codec,
    core::Core,
    io::{Input, Refusal, Request, Response},
    message::Message,
    secret::{
        KeyId, MAX_NAMESPACE_SECRETS, MAX_SECRET_BYTES, Pattern, Place, SEAL_BYTES, Sealed,
        SecretEntry,
    },
    store::{Reader, Table, Write},
};

use super::cluster::Cluster;

fn place(name: &str) -> Place {
    Place {
        namespace: "team".parse().expect("a name"),
        pipeline: Pattern::new("invoices-*").expect("a pattern"),
        phase: Pattern::default(),
        name: name.to_owned(),
    }
}

fn sealed(text: &str) -> Sealed {
    let bytes = [&[0; SEAL_BYTES], text.as_bytes()].concat();
    Sealed { key: KeyId::from_bytes([7; 8]), hidden: true, bytes: Bytes::from(bytes) }
}

fn put(cluster: &mut Cluster, at: usize, name: &str, text: &str) -> Response {
    let (place, sealed) = (Box::new(place(name)), Box::new(sealed(text)));
    cluster.request(at, Request::PutSecret { place, sealed })
}

fn remove(cluster: &mut Cluster, at: usize, name: &str) -> Response {
    cluster.request(at, Request::RemoveSecret(Box::new(place(name))))
}

fn secrets(cluster: &mut Cluster, at: usize) -> Vec<SecretEntry> {
    match cluster.request(at, Request::Secrets) {
        Response::Secrets(all) => all,
        other => panic!("{other:?}"),
    }
}

/// Names, and what stands there.
fn kept(cluster: &mut Cluster, at: usize) -> Vec<(String, Option<Sealed>)> {
    let all = secrets(cluster, at).into_iter();
    all.map(|entry| (entry.place.name, entry.sealed)).collect()
}

fn is(name: &str, text: &str) -> (String, Option<Sealed>) {
    (name.to_owned(), Some(sealed(text)))
}

fn core(cluster: &Cluster, at: usize) -> &Core {
    cluster.nodes[at].core.as_ref().expect("it runs")
}

#[test]
fn a_secret_is_on_every_disk_when_it_is_acknowledged_and_a_restart_keeps_it() {
    let mut cluster = Cluster::new(3, &[]);
    assert_eq!(core(&cluster, 0).secrets_digest(), 0);
    let response = put(&mut cluster, 0, "KEY", "one");
    assert!(matches!(response, Response::SecretPut { copies: 3, .. }), "{response:?}");
    let again = put(&mut cluster, 1, "KEY", "one");
    assert!(matches!(again, Response::SecretPut { copies: 3, .. }), "{again:?}");
    for at in 0..3 {
        cluster.kill(at);
        cluster.start(at);
        assert_eq!(core(&cluster, at).secrets().count(), 1, "it is there from the start on");
        cluster.run_for(Duration::from_millis(20));
        let all = secrets(&mut cluster, at);
        let entry = (all[0].generation, all[0].sealed.clone(), all[0].place.clone());
        assert_eq!(entry, (1, Some(sealed("one")), place("KEY")));
    }
}

#[test]
fn what_was_changed_and_removed_while_a_node_was_away_is_so_there_too() {
    let mut cluster = Cluster::new(3, &[]);
    put(&mut cluster, 0, "KEY", "one");
    put(&mut cluster, 0, "GONE", "one");
    cluster.kill(2);
    cluster.run_for(Duration::from_secs(5));
    put(&mut cluster, 0, "KEY", "two");
    assert_eq!(remove(&mut cluster, 0, "GONE"), Response::Removed);
    // Many of them are more than one message.
    for number in 0..40 {
        put(&mut cluster, 0, &format!("N{number}"), "x");
    }
    cluster.start(2);
    cluster.run_for(Duration::from_secs(5));
    let all = kept(&mut cluster, 2);
    assert_eq!((all.len(), &all[0]), (41, &is("KEY", "two")));
    for at in 0..3 {
        assert_eq!(core(&cluster, at).secrets_digest(), core(&cluster, 0).secrets_digest());
    }
    let unknown = remove(&mut cluster, 2, "GONE");
    assert!(matches!(unknown, Response::Refused(Refusal::UnknownSecret(_))), "{unknown:?}");
}

#[test]
fn both_sides_of_a_partition_agree_after_it_and_a_removal_is_not_undone() {
    let mut cluster = Cluster::new(3, &[]);
    for name in ["BOTH", "GONE", "LEFT"] {
        put(&mut cluster, 0, name, "old");
    }
    cluster.disconnect(0, 1);
    cluster.disconnect(0, 2);
    cluster.run_for(Duration::from_secs(5));
    let alone = put(&mut cluster, 0, "LEFT", "new");
    assert!(matches!(alone, Response::SecretPut { copies: 1, .. }), "{alone:?}");
    put(&mut cluster, 0, "BOTH", "a");
    put(&mut cluster, 1, "BOTH", "b");
    // The removal comes after a change there, and outranks what the other side has.
    put(&mut cluster, 1, "GONE", "newer");
    assert_eq!(remove(&mut cluster, 1, "GONE"), Response::Removed);
    put(&mut cluster, 2, "RIGHT", "new");
    cluster.connect(0, 1);
    cluster.connect(0, 2);
    cluster.run_for(Duration::from_secs(5));
    let expected = [is("BOTH", "b"), is("LEFT", "new"), is("RIGHT", "new")];
    for at in 0..3 {
        assert_eq!(kept(&mut cluster, at), expected, "node {at}");
    }
    // The node that had it comes back with an old disk's word: nobody listens.
    cluster.kill(0);
    cluster.start(0);
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(kept(&mut cluster, 1), expected);
}

#[test]
fn what_cannot_be_kept_is_refused() {
    let mut cluster = Cluster::new(1, &[]);
    for (name, text) in [("PATH", "x".to_owned()), ("KEY", "x".repeat(MAX_SECRET_BYTES + 1))] {
        let refused = put(&mut cluster, 0, name, &text);
        assert!(matches!(refused, Response::Refused(Refusal::InvalidSecret(_))), "{refused:?}");
    }
    for number in 0..MAX_NAMESPACE_SECRETS {
        put(&mut cluster, 0, &format!("N{number}"), "x");
    }
    let full = put(&mut cluster, 0, "ONE_MORE", "x");
    assert!(matches!(full, Response::Refused(Refusal::TooManySecrets { .. })), "{full:?}");
    let elsewhere = Place { namespace: "other".parse().expect("a name"), ..place("ONE_MORE") };
    let request = Request::PutSecret { place: elsewhere.into(), sealed: sealed("x").into() };
    let elsewhere = cluster.request(0, request);
    assert!(matches!(elsewhere, Response::SecretPut { .. }), "{elsewhere:?}");
    let changed = put(&mut cluster, 0, "N7", "y");
    assert!(matches!(changed, Response::SecretPut { .. }), "{changed:?}");
    assert_eq!(remove(&mut cluster, 0, "N7"), Response::Removed);
    let fits = put(&mut cluster, 0, "ONE_MORE", "x");
    assert!(matches!(fits, Response::SecretPut { .. }), "{fits:?}");
}

#[test]
fn what_a_peer_says_that_no_node_can_have_made_is_passed_over() {
    let mut cluster = Cluster::new(2, &[]);
    put(&mut cluster, 0, "KEY", "one");
    let known = core(&cluster, 0).secrets().next().expect("it is there").2.clone();
    let digest = core(&cluster, 0).secrets_digest();
    let far = SecretEntry { generation: 1 << 40, ..known.changed(Some(sealed("two")), 1) };
    let misplaced = SecretEntry { place: place("PATH"), ..known.clone() };
    let short = Sealed { bytes: Bytes::from_static(b"x"), ..sealed("x") };
    let short = known.changed(Some(short), 1);
    let from = cluster.nodes[1].config.node;
    let message = Message::Secrets(vec![far, misplaced, short]);
    cluster.input(0, Input::Message { from, message });
    cluster.run_for(Duration::from_millis(20));
    assert_eq!(core(&cluster, 0).secrets_digest(), digest);
}

#[test]
fn a_damaged_record_is_told_and_not_passed_over() {
    let mut cluster = Cluster::new(1, &[]);
    put(&mut cluster, 0, "KEY", "one");
    cluster.kill(0);
    let disk = cluster.nodes[0].disk.clone();
    let rows = disk.scan(Table::Meta, &[0x07], &[0x08], 9).expect("it can be read");
    let (key, value) = rows[0].clone();
    assert!(codec::decode::<SecretEntry>(&value).is_ok());
    let mut damaged = value.to_vec();
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    disk.apply(vec![Write::Put { table: Table::Meta, key, value: damaged.into() }]);
    let config = cluster.nodes[0].config.clone();
    let error = Core::new(config, 1, cluster.now, 1, Box::new(disk)).expect_err("damaged");
    assert!(error.reason.contains("a value or secret is damaged"), "{error}");
}
