//! Envelopes and what is in them: frames, messages, adverts, pipelines.

use bytes::Bytes;
use carbonmesh_fuzz::{Corpus, body, seal, target};
use carbonmesh_protocol::{
    advert::Advert,
    catalog::CatalogEntry,
    codec::{self, DecodeError, ENVELOPE_BYTES, Encoded, Envelope, MAX_BODY_BYTES},
    message::Message,
    record::{Control, JobSpec},
};

use crate::samples;

/// Takes envelopes off until there is none; whatever is refused must be left as it was.
fn split(input: &[u8]) -> (Vec<Envelope>, Option<DecodeError>) {
    let mut rest = Bytes::copy_from_slice(input);
    let mut found = Vec::new();
    while !rest.is_empty() {
        let before = rest.clone();
        match codec::split_envelope(&mut rest) {
            Ok(envelope) => {
                assert_eq!(before.len() - rest.len(), ENVELOPE_BYTES + envelope.body.len());
                found.push(envelope);
            }
            Err(error) => {
                assert_eq!(before, rest, "{error}");
                return (found, Some(error));
            }
        }
    }
    (found, None)
}

/// What can be read means the same when it is written again.
fn reads_back<T: Encoded + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let sealed = seal(T::KIND, T::SCHEMA, body);
    if let Ok(value) = codec::decode::<T>(&sealed) {
        assert_eq!(codec::decode::<T>(&codec::encode(&value)), Ok(value));
    }
}

fn check_body(body: &[u8]) {
    reads_back::<Message>(body);
    reads_back::<Advert>(body);
    reads_back::<CatalogEntry>(body);
    reads_back::<JobSpec>(body);
    reads_back::<Control>(body);
}

#[test]
fn frames_are_split_or_refused() {
    let messages = samples::messages();
    let frames = messages.chunks(3).map(|chunk| chunk.concat());
    target!(Corpus::load("wire").and(frames), |input: &[u8]| {
        let (found, error) = split(input);
        // A frame that stops anywhere is the same up to there, and says that it is short.
        for at in [input.len() / 2, input.len().saturating_sub(1)] {
            let (sooner, _) = split(&input[..at]);
            assert!(found.starts_with(&sooner));
        }
        if error.is_none() {
            assert_eq!(
                input.len(),
                found.iter().map(|it| ENVELOPE_BYTES + it.body.len()).sum::<usize>()
            );
        }
    });
}

#[test]
fn bodies_read_back_or_are_refused() {
    let bodies = samples::messages().iter().map(|sealed| body(sealed).to_vec()).collect();
    let others = samples::others().into_iter().map(|sealed| body(&sealed).to_vec());
    target!(Corpus::of("bodies", bodies).and(others), check_body);
}

#[test]
fn planted_damage_is_refused() {
    let good = &samples::messages()[0];
    assert!(split(good).1.is_none());
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(split(&bad).1.is_some(), "byte {at}");
    }
    let mut lies = good.clone();
    lies[6..10].copy_from_slice(&(MAX_BODY_BYTES as u32 + 1).to_le_bytes());
    assert_eq!(split(&lies).1, Some(DecodeError::Long(MAX_BODY_BYTES + 1)));
    assert!(matches!(split(&good[..good.len() - 1]).1, Some(DecodeError::Short { .. })));
}

#[test]
#[should_panic(expected = "left == right")]
fn a_decoder_that_forgets_is_found_out() {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Forgetful {
        #[serde(skip_serializing, default)]
        kept: Vec<u8>,
    }
    impl Encoded for Forgetful {
        const KIND: u16 = 0x7f;
    }
    reads_back::<Forgetful>(&[2, 7, 7]);
}
