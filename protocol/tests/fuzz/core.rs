//! Messages that can be decoded, sent into a real core by a peer that means harm: no node may
//! panic, neither the one that is told nor those that hear of it, nor call its disk unreadable,
//! now or at its next start.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use carbonmesh_fuzz::{Corpus, Script, body, seal, target};
use carbonmesh_protocol::{
    advert::Advert,
    codec::{self, DecodeError, Encoded},
    io::Input,
    message::{JobUpdate, Message},
    record::Component,
};

use crate::{
    samples,
    world::{NODES, World, node},
};

/// The most messages of one input.
const MESSAGES: usize = 8;

/// Components have a checksum of their own, which mutation breaks: sealed again, so that it is
/// their content that is tried.
fn heal(message: &mut Message) {
    let updates: Vec<&mut JobUpdate> = match message {
        Message::Replicate(replicate) => Arc::make_mut(&mut replicate.groups)
            .iter_mut()
            .flat_map(|group| &mut group.updates)
            .collect(),
        Message::SyncReply(reply) => reply.records.iter_mut().collect(),
        Message::SyncPush { records, .. } => records.iter_mut().collect(),
        Message::Store { jobs, .. } => jobs.iter_mut().collect(),
        _ => Vec::new(),
    };
    for component in updates.into_iter().flat_map(|update| &mut update.components) {
        let Component { bytes, .. } = component;
        if let Err(DecodeError::Checksum { kind }) = codec::split_envelope(&mut bytes.clone()) {
            *bytes = seal(kind, bytes[4], body(bytes)).into();
        }
    }
}

/// The value that the body begins with, filled up with zeros if it is short.
fn fitted<T: Encoded>(body: &[u8]) -> Option<T> {
    let mut body = [body, &[0; 256]].concat();
    let sealed = |body: &[u8]| Bytes::from(seal(T::KIND, T::SCHEMA, body));
    match codec::decode(&sealed(&body)) {
        Err(DecodeError::Body { reason, .. }) => {
            let extra: usize = reason.strip_suffix(" bytes too many")?.parse().ok()?;
            body.truncate(body.len() - extra);
            codec::decode(&sealed(&body)).ok()
        }
        decoded => decoded.ok(),
    }
}

/// What `input` says: each message is `choice, length (2), body`. The choice is who sends to whom,
/// by which way, and how much time passes then.
fn play(input: &[u8]) -> usize {
    let mut world = World::new();
    let mut script = Script::new(input);
    let (mut told, mut accepted) = (0, 0);
    while !script.is_over() && told < MESSAGES {
        told += 1;
        let choice = script.byte();
        let length = usize::from(script.byte()) | usize::from(script.byte()) << 8;
        let body = script.take(length);
        let to = usize::from(choice) % NODES;
        let from = (to + 1 + usize::from(choice >> 2) % (NODES - 1)) % NODES;
        let input = if choice & 0x80 == 0 {
            fitted(body).map(|mut message| {
                heal(&mut message);
                Input::Message { from: node(from), message }
            })
        } else {
            // The shell lets nobody speak for others.
            let advert = fitted(body);
            advert.map(|advert| Input::Advert(Advert { node: node(from), ..advert }))
        };
        let Some(input) = input else { continue };
        accepted += 1;
        world.input(to, input);
        if choice & 0x40 != 0 {
            world.run(Duration::from_secs(4));
        }
    }
    if accepted > 0 {
        world.run(Duration::from_secs(3));
        world.clients();
        world.part(Duration::from_secs(8));
        world.run(Duration::from_secs(12));
        (0..NODES).for_each(|index| world.restart(index));
        world.clients();
        world.run(Duration::from_secs(12));
    }
    accepted
}

fn message(choice: u8, sealed: &[u8]) -> Vec<u8> {
    let body = body(sealed);
    // Longer than it is: mutation may then lengthen or shorten it.
    [&[choice, 0xff, 0xff], body].concat()
}

fn seeds() -> Vec<Vec<u8>> {
    let messages = samples::messages().into_iter().enumerate();
    let mut seeds: Vec<Vec<u8>> =
        messages.map(|(at, sealed)| message(at as u8 & 0x7f, &sealed)).collect();
    seeds.push(message(0x80, &samples::others()[0]));
    seeds
}

#[test]
fn no_message_brings_a_node_down() {
    let corpus = Corpus::load("core").and(seeds());
    target!(corpus, |input: &[u8]| assert!(play(input) <= MESSAGES));
}

#[test]
fn the_seeds_are_messages_of_every_kind() {
    let kinds: std::collections::BTreeSet<u8> =
        samples::messages().iter().map(|sealed| body(sealed)[0]).collect();
    let missing: Vec<u8> = (0..samples::kinds()).filter(|kind| !kinds.contains(kind)).collect();
    assert!(missing.is_empty(), "no sample of the messages {missing:?}");
    assert!(seeds().iter().all(|seed| play(seed) == 1));
}
