//! A rolling upgrade under load: one node after another is asked to end, and goes on as another
//! program on the same data folder.
//!
//! Nothing fails here, so nothing is excused: what was begun ends where it was begun, or was not begun.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use carbonmesh_examples::api::Error;

use crate::{
    clock::now_ms,
    cluster::Cluster,
    fault::Kind,
    history::{Fault, History},
    node::Start,
    recovery,
};

/// How long a node may take to end: attempts have 10 s, and then its store is closed.
const END: Duration = Duration::from_secs(20);

/// How long copies may take to be complete again.
const CONVERGE: Duration = Duration::from_secs(60);

/// How long all run the old program before, and the new one after.
const STEADY: Duration = Duration::from_secs(3);

/// How long no client anywhere may be without an acknowledgement, in ms.
const PAUSE_MS: u64 = 5000;

/// The programs of an upgrade.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
}

/// Replaces the nodes' program, until one of them does not start as the new one.
pub(crate) fn run(
    cluster: &mut Cluster,
    programs: &Programs,
    history: &mut History,
) -> Result<(), Error> {
    println!("  from {}", described(&programs.from)?);
    println!("  to   {}", described(&programs.to)?);
    thread::sleep(STEADY);
    whole(cluster, "before the first is replaced", &mut history.offences);
    for index in 0..cluster.nodes.len() {
        if !replace(cluster, index, programs, history)? {
            return Ok(());
        }
    }
    thread::sleep(STEADY);
    whole(cluster, "after the last was replaced", &mut history.offences);
    Ok(())
}

/// A program by its version and place: builds of one version differ.
fn described(program: &Path) -> Result<String, Error> {
    let told = Command::new(program).arg("--version").output();
    let told = told.map_err(|error| format!("{}: {error}", program.display()))?;
    Ok(format!("{} ({})", String::from_utf8_lossy(&told.stdout).trim(), program.display()))
}

/// One node: asked to end, started as the other program, waited for until all copies are complete. One
/// that does not start goes on as what it was; the answer is then no.
fn replace(
    cluster: &mut Cluster,
    index: usize,
    programs: &Programs,
    history: &mut History,
) -> Result<bool, Error> {
    let name = cluster.nodes[index].name.clone();
    let of_coordinator = cluster.coordinator() == Some(index);
    let (began, from_ms) = (Instant::now(), now_ms());
    let status = cluster.nodes[index].terminate(END)?;
    let ended = began.elapsed();
    match status {
        Some(status) if status.success() => {}
        Some(status) => history.offences.push(format!("{name} was asked to end: {status}")),
        None => {
            history.offences.push(format!("{name} does not end within {} s", END.as_secs()));
            cluster.nodes[index].kill()?;
        }
    }
    cluster.nodes[index].program = programs.to.clone();
    if let Start::Ended(status, log) = cluster.try_start(index)? {
        println!("  {name} does not start as the new program, and goes on as the old one");
        history
            .offences
            .push(format!("{name} refuses to start as the new program: {status}: {log}"));
        cluster.nodes[index].program = programs.from.clone();
        cluster.bring_up(index)?;
        return Ok(false);
    }
    let serves = began.elapsed();
    let copies = whole(cluster, &format!("after {name}"), &mut history.offences);
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let copies = copies.map_or("never".to_owned(), |at_ms| {
        seconds(Duration::from_millis(at_ms.saturating_sub(from_ms)))
    });
    let coordinator = if of_coordinator { ", which coordinated," } else { "" };
    let note = format!(
        "ended after {}, served after {}, copies complete after {copies}",
        seconds(ended),
        seconds(serves)
    );
    println!("  {name}{coordinator} {note}");
    history.faults.push(Fault {
        kind: Kind::Replace,
        nodes: vec![name],
        of_coordinator,
        from_ms,
        until_ms: from_ms + serves.as_millis() as u64,
        destroyed: false,
        converged_ms: None,
        note,
    });
    Ok(true)
}

/// Waits until all copies are complete; when they were. Nodes that end by themselves do not come back.
fn whole(cluster: &mut Cluster, when: &str, offences: &mut Vec<String>) -> Option<u64> {
    let converged = cluster.await_converged(CONVERGE);
    if converged.is_none() {
        println!("  copies are not complete {when}");
        offences.push(format!("copies are not complete {when}, in {} s", CONVERGE.as_secs()));
    }
    converged
}

/// What clients had to wait for too long.
pub(crate) fn judge(history: &mut History) {
    let (from, until) = (history.began_ms, history.healed_ms);
    let Some(gap) = recovery::longest_pause(history, from, until) else {
        return history.offences.push("no job was acknowledged".to_owned());
    };
    println!("longest time in which no job was acknowledged anywhere: {gap} ms");
    if gap > PAUSE_MS {
        let limit = format!("{PAUSE_MS} ms are allowed");
        history.offences.push(format!("no job was acknowledged anywhere for {gap} ms: {limit}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Op, Outcome};

    /// A history with acknowledgements at these times.
    fn acknowledged(times_ms: &[u64]) -> History {
        let ops = times_ms.iter().map(|at_ms| Op {
            at_ms: *at_ms,
            number: *at_ms,
            node: "n0".to_owned(),
            keyed: false,
            outcome: Outcome::Ok { id: at_ms.to_string(), copies: 3 },
        });
        History { ops: ops.collect(), began_ms: 0, healed_ms: 20_000, ..History::default() }
    }

    #[test]
    fn clients_that_wait_too_long_are_an_offence() {
        let mut history = acknowledged(&[100, 5000, 9900, 14_000, 19_000]);
        judge(&mut history);
        assert!(history.offences.is_empty(), "{:?}", history.offences);
        let mut history = acknowledged(&[100, 5000, 10_001, 15_000, 20_000]);
        judge(&mut history);
        assert!(history.offences[0].contains("5001 ms"), "{:?}", history.offences);
        let mut history = acknowledged(&[]);
        judge(&mut history);
        assert_eq!(history.offences.len(), 1);
    }
}
