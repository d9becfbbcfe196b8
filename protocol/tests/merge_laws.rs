//! The laws of the job record: a join does not mind order, grouping or repetition, and never goes
//! back.

use bytes::Bytes;
use carbonmesh_protocol::{
    id::{NodeId, Term, Token},
    record::{
        Component, Control, JobOptions, JobRecord, JobSpec, PAYLOADS, Progress, Reaped, SPEC, TRACE,
    },
    view::AttemptView,
};
use proptest::{collection::vec, prelude::*};

fn node() -> impl Strategy<Value = NodeId> {
    (0u8..3).prop_map(|number| NodeId::of_public_key(&[number]))
}

fn term() -> impl Strategy<Value = Term> {
    (1u64..4, node(), 1u64..3).prop_map(|(counter, node, boot)| Term { counter, node, boot })
}

fn token() -> impl Strategy<Value = Token> {
    (term(), 0u64..4).prop_map(|(term, sequence)| Token { term, sequence })
}

fn progress() -> impl Strategy<Value = Progress> {
    prop_oneof![
        (0u64..3).prop_map(|not_before_ms| Progress::Waiting { not_before_ms }),
        (node(), token()).prop_map(|(worker, token)| Progress::Running { worker, token }),
        Just(Progress::Cancelled),
        Just(Progress::Dead),
        (token(), 0u8..3).prop_map(|(token, result)| Progress::Succeeded {
            token,
            result: Bytes::copy_from_slice(&[result]),
        }),
    ]
}

fn attempt() -> impl Strategy<Value = AttemptView> {
    (1u32..4, node(), token(), 0u64..9).prop_map(|(number, worker, token, started_ms)| {
        AttemptView {
            number,
            worker,
            token,
            started_ms,
            finished_ms: None,
            error: None,
            lost: false,
        }
    })
}

fn control() -> impl Strategy<Value = Control> {
    let stamp = (0u32..2, term(), 0u64..4, any::<bool>());
    let session = proptest::option::of((0u8..2).prop_map(|byte| Box::new(vec![byte].into())));
    (stamp, progress(), 0u32..3, vec(attempt(), 0..2), session).prop_map(
        |((generation, term, sequence, strict), progress, attempt_count, attempts, session)| {
            Control {
                generation,
                term,
                sequence,
                strict,
                progress,
                attempt_count,
                lost_count: 0,
                late_count: 0,
                items: 0,
                written_ms: 7,
                since_ms: 5,
                note: None,
                attempts,
                session,
            }
        },
    )
}

/// A component that a later version wrote: a tag or a schema that is not known here.
fn foreign() -> impl Strategy<Value = Component> {
    (
        prop_oneof![Just(7u16), Just(9), Just(0x100), Just(SPEC), Just(PAYLOADS), Just(TRACE)],
        vec(any::<u8>(), 0..4),
    )
        .prop_map(|(tag, body)| {
            let mut bytes = b"CM\x01\x01\xee\x00".to_vec();
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
            bytes.extend_from_slice(&crc.to_le_bytes());
            bytes.extend_from_slice(&body);
            Component { tag, bytes: bytes.into() }
        })
}

fn spec(taken: impl Strategy<Value = Option<Term>>) -> impl Strategy<Value = JobSpec> {
    (0u32..2, 0u64..3, taken, vec(0u8..2, 0..2)).prop_map(|(generation, created_ms, term, body)| {
        JobSpec {
            generation,
            revision: 1,
            phases: 3,
            created_ms,
            term,
            options: JobOptions::default(),
            key: None,
            parent: None,
            compensates: None,
            instructions: body.into(),
        }
    })
}

/// A record that may have been forgotten, up to a generation.
fn reapable() -> impl Strategy<Value = Vec<Component>> {
    let reaped = proptest::option::of((0u32..2, 0u64..3));
    let parts = (proptest::option::of(spec(Just(None))), vec((0u16..3, control()), 0..4), reaped);
    parts.prop_map(|(spec, controls, reaped)| {
        let mut record = spec.map_or_else(JobRecord::default, JobRecord::new);
        for (step, control) in controls {
            record.merge_control(step, control);
        }
        if let Some((generation, at_ms)) = reaped {
            record.merge_reaped(Reaped { generation, at_ms });
        }
        record.components()
    })
}

fn record() -> impl Strategy<Value = Vec<Component>> {
    let taken = proptest::option::of(term());
    let spec = spec(taken);
    let controls = vec((0u16..3, control()), 0..4);
    (proptest::option::of(spec), controls, vec(foreign(), 0..2)).prop_map(
        |(spec, controls, foreign)| {
            let mut record = spec.map_or_else(JobRecord::default, JobRecord::new);
            for (step, control) in controls {
                record.merge_control(step, control);
            }
            let mut components = record.components();
            components.extend(foreign);
            components
        },
    )
}

fn join(parts: &[&[Component]]) -> JobRecord {
    let mut record = JobRecord::default();
    for component in parts.iter().flat_map(|part| part.iter()) {
        record.merge(component).expect("it was encoded here");
    }
    record
}

proptest! {
    #[test]
    fn what_was_forgotten_joins_like_all_else(a in reapable(), b in reapable(), c in reapable()) {
        prop_assert_eq!(join(&[&a, &b]), join(&[&b, &a]));
        let left = join(&[&join(&[&a, &b]).components(), &c]);
        let right = join(&[&a, &join(&[&b, &c]).components()]);
        prop_assert_eq!(&left, &right);
        prop_assert_eq!(join(&[&left.components(), &a, &b, &c, &c]), left);
    }

    #[test]
    fn nothing_up_to_the_forgotten_generation_comes_back(a in reapable(), b in reapable()) {
        let record = join(&[&a, &b]);
        if let Some(reaped) = record.reaped {
            prop_assert!(record.spec.iter().all(|spec| spec.generation > reaped.generation));
            let mut controls = record.controls.values();
            prop_assert!(controls.all(|control| control.generation > reaped.generation));
        }
    }

    #[test]
    fn merge_is_commutative(a in record(), b in record()) {
        prop_assert_eq!(join(&[&a, &b]), join(&[&b, &a]));
    }

    #[test]
    fn merge_is_associative(a in record(), b in record(), c in record()) {
        let left = join(&[&join(&[&a, &b]).components(), &c]);
        let right = join(&[&a, &join(&[&b, &c]).components()]);
        prop_assert_eq!(left, right);
    }

    #[test]
    fn merge_is_idempotent(a in record(), b in record()) {
        let once = join(&[&a, &b]);
        prop_assert_eq!(&join(&[&once.components(), &a, &b, &b]), &once);
        prop_assert_eq!(join(&[&once.components(), &once.components()]), once);
    }

    #[test]
    fn equal_records_have_equal_digests(a in record(), b in record()) {
        let joined = join(&[&a, &b]);
        let read_back = join(&[&joined.components()]);
        prop_assert_eq!(joined.digest(), read_back.digest());
    }

    #[test]
    fn a_phase_that_ended_does_not_reopen_within_its_generation(a in control(), b in control()) {
        let mut record = JobRecord::default();
        record.merge_control(0, a.clone());
        record.merge_control(0, b.clone());
        let end = &record.controls[&0];
        for seen in [a, b] {
            // In a strict group the later term wins: an end that was not committed may go.
            let same = seen.generation == end.generation && !seen.strict && !end.strict;
            if seen.is_terminal() && same {
                prop_assert!(end.is_terminal());
            }
        }
    }

    #[test]
    fn unknown_components_are_kept_byte_for_byte(a in foreign()) {
        prop_assume!(a.tag != 0x100);
        let record = join(&[std::slice::from_ref(&a)]);
        prop_assert_eq!(record.components(), vec![a]);
    }
}
