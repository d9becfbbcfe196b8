//! Which nodes keep a pipeline: rendezvous hashing.
//!
//! Each node's score for a pipeline depends on these two alone, so that a member which leaves moves
//! only the pipelines that it kept. Source: Thaler and Ravishankar, "Using Name-Based Mappings to
//! Increase Hit Rates", 1998.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::id::{NodeId, PipelineId};

/// The nodes in the order in which they should keep `pipeline`: best first.
pub fn rank(pipeline: PipelineId, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let bytes = pipeline.to_be_bytes();
    let mut scored: Vec<(u64, NodeId)> =
        nodes.into_iter().map(|node| (score(&bytes, node), node)).collect();
    scored.sort_unstable_by(|left, right| right.cmp(left));
    scored.into_iter().map(|(_, node)| node).collect()
}

fn score(pipeline: &[u8], node: NodeId) -> u64 {
    xxh3_64_with_seed(node.as_bytes(), xxh3_64_with_seed(pipeline, 0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn node(number: u32) -> NodeId {
        NodeId::of_public_key(&number.to_be_bytes())
    }

    fn placed(nodes: u32, without: Option<u32>, pipeline: u32) -> BTreeSet<NodeId> {
        let pipeline = PipelineId::of_name(&format!("pipeline-{pipeline}"));
        let nodes = (0..nodes).filter(|number| Some(*number) != without).map(node);
        rank(pipeline, nodes).into_iter().take(3).collect()
    }

    #[test]
    fn a_member_that_leaves_moves_only_what_it_kept() {
        for pipeline in 0..500 {
            let before = placed(10, None, pipeline);
            let after = placed(10, Some(4), pipeline);
            let moved = before.difference(&after).count();
            assert_eq!(moved, usize::from(before.contains(&node(4))));
        }
    }

    #[test]
    fn pipelines_spread_evenly() {
        let mut kept = vec![0u32; 10];
        for pipeline in 0..2000 {
            let placed = placed(10, None, pipeline);
            for (number, count) in kept.iter_mut().enumerate() {
                *count += u32::from(placed.contains(&node(number as u32)));
            }
        }
        // 600 each on average; five standard deviations of a binomial are about 102.
        assert!(kept.iter().all(|count| (498..=702).contains(count)), "{kept:?}");
    }
}
