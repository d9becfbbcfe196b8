//! Memory: what is read takes at most a stated multiple of its bytes, whatever it claims to hold.

use allocation_counter::measure;
use bytes::Bytes;
use carbonmesh_fuzz::{Corpus, body, seal, target};
use carbonmesh_protocol::{
    advert::Advert,
    catalog::CatalogEntry,
    codec::{self, ENVELOPE_BYTES, Encoded, MAX_BODY_BYTES},
    message::Message,
    record::{Control, JobSpec},
};

use crate::samples;

/// What reading may take beyond the multiple: an error's text, lists that begin small.
const SLACK: u64 = 256 << 10;

/// What reading may take of memory, by the bytes that are read.
const MULTIPLE: u64 = 16;

/// The most that it takes for the largest of bodies.
const MOST: u64 = 3 * MAX_BODY_BYTES as u64;

fn taken(read: impl FnOnce()) -> u64 {
    measure(read).bytes_max
}

fn check<T: Encoded>(body: &[u8]) {
    let sealed = Bytes::from(seal(T::KIND, T::SCHEMA, body));
    let bytes = taken(|| drop(codec::decode::<T>(&sealed)));
    let allowed = (MULTIPLE * sealed.len() as u64 + SLACK).min(MOST);
    assert!(bytes <= allowed, "{} bytes took {bytes} of memory", sealed.len());
}

fn check_all(body: &[u8]) {
    check::<Message>(body);
    check::<Advert>(body);
    check::<CatalogEntry>(body);
    check::<JobSpec>(body);
    check::<Control>(body);
}

#[test]
fn bodies_take_little_more_memory_than_they_have_bytes() {
    let bodies = samples::messages().iter().map(|sealed| body(sealed).to_vec()).collect();
    let others = samples::others().into_iter().map(|sealed| body(&sealed).to_vec());
    target!(Corpus::of("memory", bodies).and(others), check_all);
}

/// Lists of what has few bytes and takes much memory: a message of each kind that begins with a
/// list, or has one soon, filled with zeros, which are the shortest of numbers, lists and options.
#[test]
fn lists_of_many_small_things_are_bounded() {
    for kind in 0..samples::kinds() {
        for before in 0..6 {
            // The largest takes a while to fill: where a list stands does not matter then.
            let largest = if before == 2 { MAX_BODY_BYTES } else { 1 << 16 };
            for size in [1 << 10, 1 << 20, largest] {
                let mut body = vec![0; size];
                body[0] = kind;
                let list = 1 + before;
                body[list] = 0xfc;
                body[list + 1..list + 5].copy_from_slice(&(size as u32 - 32).to_le_bytes());
                check::<Message>(&body);
            }
        }
    }
}

#[test]
fn lengths_that_lie_take_nothing() {
    // What an envelope claims, and has not.
    for length in [1 << 10, MAX_BODY_BYTES, u32::MAX as usize] {
        let mut sealed = seal(Message::KIND, 1, &[3]);
        sealed[6..10].copy_from_slice(&(length as u32).to_le_bytes());
        let mut bytes = Bytes::from(sealed);
        assert!(taken(|| drop(codec::split_envelope(&mut bytes))) < ENVELOPE_BYTES as u64 * 64);
    }
    // What a list or a text claims, and has not.
    for kind in 0..samples::kinds() {
        for number in
            [&[0xfb, 0xff, 0xff][..], &[0xfc, 0xff, 0xff, 0xff, 3], &[0xfd, 0, 0, 0, 0, 1, 0, 0, 0]]
        {
            for before in 0..4 {
                check::<Message>(&[&[kind], &[0; 4][..before], number].concat());
            }
        }
    }
}

#[test]
#[should_panic(expected = "of memory")]
fn a_decoder_that_takes_too_much_is_found_out() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Greedy(#[serde(deserialize_with = "greedy")] u8);
    fn greedy<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
        let claimed: u32 = serde::Deserialize::deserialize(deserializer)?;
        Ok(std::hint::black_box(vec![1u8; claimed as usize]).len() as u8)
    }
    impl Encoded for Greedy {
        const KIND: u16 = 0x7f;
    }
    check::<Greedy>(&[0xfc, 0, 0, 0, 1]);
}
