//! Nodes that come back after a fault: whether they start, what they say if not, and whether they
//! have noticed what was done to their disk.

use carbonmesh_examples::api::Error;

use super::{Active, DISK_FAILED, Faults};
use crate::{cluster::Cluster, fault::Kind, node::Start};

impl Faults {
    /// Starts a node that was stopped, and looks whether it has noticed what was done to its disk.
    pub(super) fn start_again(
        &mut self,
        cluster: &mut Cluster,
        active: &mut Active,
    ) -> Result<(), Error> {
        let (node, fault) = (active.node, &mut active.fault);
        let name = cluster.nodes[node].name.clone();
        if let Start::Ended(status, log) = cluster.try_start(node)? {
            let reason = last(&log);
            let told = status.code() == Some(DISK_FAILED) && log.contains("hint: ")
                || log.contains("is damaged");
            if fault.kind != Kind::Flip || !told {
                active.offence =
                    Some(format!("{name} does not start after {}: {status}: {log}", fault.kind));
            }
            fault.note += &format!("; it refused ({reason}) and began anew");
            fault.destroyed = true;
            cluster.nodes[node].disk.wipe()?;
            return cluster.bring_up(node);
        }
        let before = self.disks.remove(&node);
        if !fault.kind.destroys() {
            return Ok(());
        }
        let same = cluster.disk_id(node) == before;
        let is_new = if same { "the same disk" } else { "a new disk" };
        fault.note += &format!("; it came back as {is_new}");
        if same && fault.kind != Kind::Flip {
            active.offence =
                Some(format!("{name} did not notice that its disk was {}", fault.kind));
        }
        Ok(())
    }

    /// Whether a node may end by itself.
    pub(crate) fn may_end(&self, node: usize, code: Option<i32>) -> bool {
        self.tampered.contains(&node) && code == Some(DISK_FAILED)
    }

    /// Starts a node again that has ended by itself, with an empty folder if need be; says what
    /// became of it, and whether its disk was lost.
    pub(crate) fn revive(
        &mut self,
        cluster: &mut Cluster,
        node: usize,
    ) -> Result<(String, bool), Error> {
        if last(&cluster.nodes[node].log()).contains("is damaged") {
            // It would find the damage again and again.
            cluster.nodes[node].disk.wipe()?;
            cluster.bring_up(node)?;
            return Ok(("it found damage, and began anew".to_owned(), true));
        }
        match cluster.try_start(node)? {
            Start::Serves => Ok(("it was started again".to_owned(), false)),
            Start::Ended(_, log) => {
                cluster.nodes[node].disk.wipe()?;
                cluster.bring_up(node)?;
                Ok((format!("it refused ({}) and began anew", last(&log)), true))
            }
        }
    }
}

/// The line that says why.
pub(super) fn last(log: &str) -> &str {
    let mut lines = log.lines().rev().filter(|line| !line.trim().is_empty());
    lines.find(|line| line.contains("error")).or(log.lines().last()).unwrap_or_default()
}
