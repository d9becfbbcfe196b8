//! Faults of the network: which links are broken, and for whom.

use carbonmesh_examples::{
    api::Error,
    network::{Network, Quality},
};
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::fault::Kind;

/// Breaks links; those whom it hits.
pub(super) fn separate(
    network: &mut Network,
    rng: &mut ChaCha8Rng,
    kind: Kind,
    node: usize,
    count: usize,
    note: &mut String,
) -> Result<Vec<usize>, Error> {
    let mut others: Vec<usize> = (0..count).filter(|other| *other != node).collect();
    others.shuffle(rng);
    match kind {
        Kind::Slow | Kind::Lossy => {
            let quality = quality(rng, kind);
            network.worsen(node, [quality; 2], rng.random())?;
            *note = quality.to_string();
            Ok(vec![node])
        }
        Kind::Partition => {
            let (with, against) = others.split_at(rng.random_range(0..count / 2));
            let side: Vec<usize> = std::iter::once(node).chain(with.iter().copied()).collect();
            for (from, to) in side.iter().flat_map(|a| against.iter().map(move |b| (*a, *b))) {
                network.cut(from, to)?;
                network.cut(to, from)?;
            }
            *note = format!("{} against {}", side.len(), against.len());
            Ok(side)
        }
        _ => {
            let deaf = rng.random_bool(0.5);
            let to = &others[..rng.random_range(1..count)];
            for other in to {
                let (from, to) = if deaf { (*other, node) } else { (node, *other) };
                network.cut(from, to)?;
            }
            let verb = if deaf { "does not hear" } else { "is not heard by" };
            let names: Vec<String> = to.iter().map(|other| format!("n{other}")).collect();
            *note = format!("n{node} {verb} {}", names.join(", "));
            Ok(std::iter::once(node).chain(to.iter().copied()).collect())
        }
    }
}

/// How bad a link is.
fn quality(rng: &mut ChaCha8Rng, kind: Kind) -> Quality {
    if kind == Kind::Slow {
        let delay_ms = rng.random_range(50..400);
        let jitter_ms = rng.random_range(0..=delay_ms / 2);
        return Quality { delay_ms, jitter_ms, ..Quality::default() };
    }
    let delay_ms = rng.random_range(1..20);
    Quality {
        delay_ms,
        jitter_ms: delay_ms / 2,
        lost: rng.random_range(2..20),
        twice: rng.random_range(1..10),
        overtaken: rng.random_range(2..25),
    }
}
