//! `carbonmesh doctor`: judges what nodes find out about themselves and their ways to each other.
//!
//! Nodes tell facts, and this program says what they mean and what to do. Every finding is one
//! sentence, and each that is not well has a way out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use reqwest::Method;
use serde::Serialize;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean},
    pipeline::node,
};
use crate::{
    facts::{Facts, FactsOf, Reach},
    http::{
        local::FactsDoc,
        view::{NodesDoc, PipelineDoc, StatusDoc},
    },
};
use carbonmesh_protocol::view::Liveness;

/// How long the asked node may take beside: it asks the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Clocks that are further apart make deadlines, schedules and lists hard to read.
const CLOCK_WARN_MS: u64 = 500;

/// Beyond that, deadlines pass early or late, and schedules run twice or not at all.
const CLOCK_BAD_MS: u64 = 30_000;

/// A node needs a few files for each peer, client, attempt and table.
const FEW_FILES: u64 = 4096;

/// How good a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// All is well.
    Ok,
    /// It works, but look at it.
    Warning,
    /// It does not work.
    Broken,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    level: Level,
    /// What was looked at.
    check: &'static str,
    /// Where, if that is one node.
    node: Option<String>,
    /// What there is.
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

pub(super) async fn run(client: &Client, out: &Output) -> Result<(), Failure> {
    let request = client.request(Method::GET, &["facts"], &[]);
    let facts = client.answer::<FactsDoc>(request, PATIENCE).await?.document;
    let nodes = client.get::<NodesDoc>(&["nodes"], &[]).await?.document;
    let status = client.get::<StatusDoc>(&["status"], &[]).await?.document;
    let own_ms = crate::clock::unix_ms();
    let mut findings = judge(&facts, &nodes, &status.pipelines);
    findings.push(own_clock(facts.unix_ms, own_ms));
    let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    let document = serde_json::json!({ "worst": worst, "findings": findings });
    out.document(&document, || {
        let lines: Vec<String> = findings.iter().map(line).collect();
        lines.join("\n")
    })?;
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    match worst {
        Level::Ok => Ok(()),
        Level::Warning => Err(Failure::Unwell { warnings: count(worst), broken: 0 }),
        Level::Broken => {
            Err(Failure::Unwell { warnings: count(Level::Warning), broken: count(worst) })
        }
    }
}

fn line(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "ok     ",
        Level::Warning => "WARNING",
        Level::Broken => "BROKEN ",
    };
    let at = finding.node.as_deref().map(|node| format!("{}: ", clean(node))).unwrap_or_default();
    let advice = finding.advice.as_deref();
    let advice = advice.map(|advice| format!("\n         {}", clean(advice))).unwrap_or_default();
    format!("{level}  {}: {at}{}{advice}", finding.check, clean(&finding.found))
}

/// All that can be said of the cluster from these.
fn judge(facts: &FactsDoc, nodes: &NodesDoc, pipelines: &[PipelineDoc]) -> Vec<Finding> {
    let names: BTreeMap<&str, &str> =
        nodes.nodes.iter().map(|one| (one.id.as_str(), one.name.as_str())).collect();
    let told: Vec<&Facts> = std::iter::once(&facts.asked)
        .chain(facts.others.iter().filter_map(|other| other.facts.as_ref()))
        .collect();
    let mut findings = Vec::new();
    members(nodes, &mut findings);
    versions(&told, &mut findings);
    for one in &told {
        folder(one, &mut findings);
        files(one, &mut findings);
        port(one, nodes.nodes.len(), &mut findings);
    }
    reachable(&told, &mut findings);
    for other in &facts.others {
        let name = names.get(other.id.as_str()).copied().unwrap_or(&other.id);
        clock(name, other, &mut findings);
    }
    for pipeline in pipelines {
        coordinated(pipeline, &mut findings);
    }
    findings
}

fn ok(check: &'static str, node: Option<&str>, found: impl Into<String>) -> Finding {
    let node = node.map(str::to_owned);
    Finding { level: Level::Ok, check, node, found: found.into(), advice: None }
}

fn wrong(
    level: Level,
    check: &'static str,
    node: Option<&str>,
    found: impl Into<String>,
    advice: impl Into<String>,
) -> Finding {
    let (node, advice) = (node.map(str::to_owned), Some(advice.into()));
    Finding { level, check, node, found: found.into(), advice }
}

fn members(nodes: &NodesDoc, findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    for one in nodes.nodes.iter().filter(|one| one.liveness != Liveness::Retired) {
        if !seen.insert(one.name.as_str()) {
            findings.push(wrong(
                Level::Warning,
                "members",
                Some(&one.name),
                "two nodes have this name",
                "give each its own with --name, or logs and lists cannot tell them apart",
            ));
        }
        if let Some(reason) = &one.refusing {
            let advice = "mend that, or let the others take the jobs";
            let found = format!("it takes no jobs: {reason}");
            findings.push(wrong(Level::Broken, "members", Some(&one.name), found, advice));
        }
    }
    let away: Vec<_> = nodes
        .nodes
        .iter()
        .filter(|one| matches!(one.liveness, Liveness::Down | Liveness::Suspect))
        .collect();
    for one in &away {
        let advice = "start it, or look below for who cannot reach it; a node that never comes back \
                      is replaced after timing.replace_after";
        let found = format!("it is {}", one.liveness);
        findings.push(wrong(Level::Broken, "members", Some(&one.name), found, advice));
    }
    if away.is_empty() {
        let found = match seen.len() {
            1 => "one node, alone".to_owned(),
            count => format!("{count} nodes, all connected to the one that was asked"),
        };
        findings.push(ok("members", None, found));
    }
}

fn versions(told: &[&Facts], findings: &mut Vec<Finding>) {
    let own = env!("CARGO_PKG_VERSION");
    let there: BTreeSet<&str> = told.iter().map(|one| one.version.as_str()).collect();
    let list = there.iter().copied().collect::<Vec<_>>().join(", ");
    if there.len() > 1 {
        let advice = "end the upgrade: restart the nodes of the older release one after another";
        let found = format!("nodes run different releases: {list}");
        findings.push(wrong(Level::Warning, "versions", None, found, advice));
    } else if !there.contains(own) {
        let advice = "use the program that the nodes run, or upgrade them";
        let found = format!("nodes run {list}, this program is {own}");
        findings.push(wrong(Level::Warning, "versions", None, found, advice));
    } else {
        findings.push(ok("versions", None, format!("all run {own}")));
    }
}

fn folder(one: &Facts, findings: &mut Vec<Finding>) {
    let name = Some(one.name.as_str());
    let mib = |bytes: u64| bytes >> 20;
    let (free, all) = (mib(one.free_bytes), mib(one.disk_bytes));
    let found = format!("{free} of {all} MiB are free at {}", one.data_dir.display());
    let advice = "free some space, move the folder to a larger disk, or shorten the retention of \
                  finished jobs";
    let finding = if one.free_bytes < one.least_free_bytes {
        let found = format!("{found}, less than limits.free_bytes: it takes no jobs");
        wrong(Level::Broken, "disk", name, found, advice)
    } else if one.free_bytes < one.least_free_bytes.saturating_mul(2)
        || one.free_bytes < one.disk_bytes / 20
    {
        wrong(Level::Warning, "disk", name, found, advice)
    } else {
        ok("disk", name, found)
    };
    findings.push(finding);
    if one.encrypted {
        findings.push(ok("encryption", name, "its folder is encrypted at rest".to_owned()));
    }
    if let Some(reason) = &one.amnesia {
        let advice = "this is as it should be after a restore or a move, and over once its copies are \
                      up to date; otherwise look after the disk: something took it back";
        let found = format!("since its start its folder counts as a new disk: {reason}");
        findings.push(wrong(Level::Warning, "data folder", name, found, advice));
    }
}

fn files(one: &Facts, findings: &mut Vec<Finding>) {
    let name = Some(one.name.as_str());
    let found = format!("{} of {} files are open", one.open_files, one.open_files_limit);
    let advice = "raise the limit: LimitNOFILE= of its unit, or `ulimit -Hn` of whoever starts it";
    let level = match one.open_files_limit {
        limit if one.open_files > limit / 10 * 9 => Level::Broken,
        limit if limit < FEW_FILES => Level::Warning,
        _ => return findings.push(ok("file limit", name, found)),
    };
    findings.push(wrong(level, "file limit", name, found, advice));
}

fn port(one: &Facts, members: usize, findings: &mut Vec<Finding>) {
    let name = Some(one.name.as_str());
    if one.port_was_taken {
        let advice = "choose a port with --listen, and tell it to the others with --peer";
        let found = format!("port 7401 was taken: it listens at {}", one.listen.join(", "));
        return findings.push(wrong(Level::Warning, "ports", name, found, advice));
    }
    let mut found = format!("it listens at {}", one.listen.join(", "));
    if !one.has_secret && members == 1 {
        found += "; without a cluster secret only nodes of its own machine can join";
    }
    findings.push(ok("ports", name, found));
}

/// Who reaches whom, each way as the node at its beginning found it.
fn reachable(told: &[&Facts], findings: &mut Vec<Finding>) {
    let mut ways = 0;
    for one in told {
        for to in &one.reach {
            match judge_way(to) {
                None => ways += 1,
                Some((level, found, advice)) => {
                    findings.push(wrong(level, "reachability", Some(&one.name), found, advice));
                }
            }
        }
    }
    if ways > 0 {
        findings.push(ok("reachability", None, format!("{ways} ways between nodes are open")));
    }
}

fn judge_way(to: &Reach) -> Option<(Level, String, String)> {
    let level = if to.connected { Level::Warning } else { Level::Broken };
    let beside = match to.connected {
        true => "; they are connected, since the other side began",
        false => "",
    };
    if to.tried.is_empty() {
        let found = format!("nobody says where {} listens{beside}", to.name);
        return Some((level, found, "give it an address with --advertise".to_owned()));
    }
    let failed: Vec<_> = to.tried.iter().filter(|tried| tried.error.is_some()).collect();
    if failed.len() < to.tried.len() {
        return None;
    }
    let tried: Vec<String> = failed
        .iter()
        .map(|tried| format!("{} ({})", tried.address, tried.error.as_deref().unwrap_or_default()))
        .collect();
    let silent = failed
        .iter()
        .any(|it| it.error.as_deref().is_some_and(|error| error.starts_with("no answer")));
    let advice = match silent {
        true => format!(
            "something drops the packets: let the firewall of {} take TCP connections to that port, \
             from this node too",
            to.name
        ),
        false => format!(
            "nothing listens there: start {}, or let it tell where it can be reached with \
             --advertise",
            to.name
        ),
    };
    Some((level, format!("it cannot reach {} at {}{beside}", to.name, tried.join(", ")), advice))
}

fn clock(name: &str, other: &FactsOf, findings: &mut Vec<Finding>) {
    if let Some(error) = &other.error {
        let advice = "see its log; nodes of older releases tell nothing of themselves";
        let found = format!("it did not tell how it is: {error}");
        findings.push(wrong(Level::Warning, "facts", Some(name), found, advice));
    }
    let (Some(ahead), within) = (other.clock_ahead_ms, other.clock_within_ms.unwrap_or_default())
    else {
        return;
    };
    let off = ahead.unsigned_abs().saturating_sub(within);
    let way = if ahead < 0 { "behind" } else { "ahead" };
    let found = format!(
        "its clock is {} ms {way} of the asked node's, known to {within} ms",
        ahead.unsigned_abs()
    );
    let advice = "let chrony or systemd-timesyncd set the clocks: jobs stay safe, but deadlines, \
                  delays, schedules and times in lists follow them";
    findings.push(match off {
        off if off > CLOCK_BAD_MS => wrong(Level::Broken, "clocks", Some(name), found, advice),
        off if off > CLOCK_WARN_MS => wrong(Level::Warning, "clocks", Some(name), found, advice),
        _ => ok("clocks", Some(name), found),
    });
}

/// This program's clock beside that of the node that it asked.
fn own_clock(node_ms: u64, own_ms: u64) -> Finding {
    let off = own_ms.abs_diff(node_ms);
    // The node's answer is some seconds old by now.
    if off > CLOCK_BAD_MS + 20_000 {
        let found = format!("this machine's clock and the asked node's are {off} ms apart");
        let advice = "let chrony or systemd-timesyncd set the clocks";
        return wrong(Level::Warning, "clocks", None, found, advice);
    }
    ok("clocks", None, "this machine's clock and the asked node's fit")
}

fn coordinated(pipeline: &PipelineDoc, findings: &mut Vec<Finding>) {
    let name = clean(&pipeline.name);
    match (pipeline.leaderless(), &pipeline.coordinator) {
        (0, Some(by)) => {
            findings.push(ok("pipelines", None, format!("{name} is coordinated by {}", node(by))));
        }
        (count, _) if count < pipeline.partitions.len() => findings.push(wrong(
            Level::Broken,
            "pipelines",
            None,
            format!(
                "{count} of {} partitions of {name} have no coordinator: nothing of these runs",
                pipeline.partitions.len()
            ),
            "start those that keep their jobs: `carbonmesh pipeline show` names them",
        )),
        _ => findings.push(wrong(
            Level::Broken,
            "pipelines",
            None,
            format!("{name} has no coordinator: nothing of it runs"),
            "start those that keep its jobs (`carbonmesh pipeline show` names them); if a majority of \
             a strict pipeline's is lost for good, see `carbonmesh pipeline recover --help`",
        )),
    }
    if !pipeline.unoffered.is_empty() {
        let found = format!("{name}: nobody offers {}", pipeline.unoffered.join(", "));
        let advice = "start a worker that has these phases, and what they require";
        findings.push(wrong(Level::Warning, "pipelines", None, found, advice));
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_fuzz::{Corpus, target};

    use super::*;
    use crate::facts::Tried;

    fn facts(name: &str) -> Facts {
        Facts {
            id: name.repeat(32),
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: String::new(),
            boot: 1,
            data_dir: "/data".into(),
            amnesia: None,
            encrypted: false,
            free_bytes: 50 << 30,
            disk_bytes: 100 << 30,
            least_free_bytes: 512 << 20,
            open_files: 100,
            open_files_limit: 65_536,
            listen: vec!["/ip4/127.0.0.1/tcp/7401".to_owned()],
            port_was_taken: false,
            http: String::new(),
            has_secret: true,
            reach: vec![],
        }
    }

    fn reach(connected: bool, errors: &[Option<&str>]) -> Reach {
        let tried = errors.iter().map(|error| Tried {
            address: "/ip4/10.0.0.7/tcp/7401".to_owned(),
            error: error.map(str::to_owned),
        });
        Reach { id: "b".repeat(32), name: "b".to_owned(), connected, tried: tried.collect() }
    }

    fn levels(findings: &[Finding]) -> Vec<Level> {
        findings.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn whatever_a_node_says_of_itself_is_judged_and_shown_as_text() {
        let words =
            ["\"\\u001b[2J\"", "-9223372036854775808", "18446744073709551615", "null", "[", "]"];
        let seed = FactsOf {
            id: "b".repeat(32),
            clock_ahead_ms: Some(-3),
            clock_within_ms: Some(1),
            facts: Some(Facts { reach: vec![reach(true, &[Some("refused"), None])], ..facts("b") }),
            error: Some("it is silent".to_owned()),
        };
        let seed = serde_json::to_vec(&seed).unwrap();
        let nodes = NodesDoc { nodes: Vec::new(), next: None };
        target!(Corpus::of("facts", vec![seed]).words(words), |input: &[u8]| {
            let Ok(other) = serde_json::from_slice::<FactsOf>(input) else { return };
            let told = FactsDoc { unix_ms: 0, asked: facts("a"), others: vec![other] };
            for finding in judge(&told, &nodes, &[]) {
                // The way out stands in a line of its own.
                let shown = match &finding.advice {
                    Some(_) => line(&finding).replacen("\n         ", "", 1),
                    None => line(&finding),
                };
                assert!(!shown.chars().any(char::is_control), "{shown:?}");
            }
        });
    }

    #[test]
    fn a_way_that_is_open_by_one_address_is_open() {
        assert_eq!(judge_way(&reach(true, &[Some("refused"), None])), None);
    }

    #[test]
    fn a_way_that_is_open_from_one_side_only_is_a_warning_that_names_the_firewall() {
        let (level, found, advice) =
            judge_way(&reach(true, &[Some("no answer within 2 s")])).unwrap();
        assert_eq!(level, Level::Warning);
        assert!(found.contains("the other side began"), "{found}");
        assert!(advice.contains("firewall"), "{advice}");
        let (level, _, advice) = judge_way(&reach(false, &[Some("Connection refused")])).unwrap();
        assert_eq!(level, Level::Broken);
        assert!(advice.contains("--advertise"), "{advice}");
    }

    #[test]
    fn clocks_are_judged_beyond_what_is_known_of_them() {
        let of = |ahead, within| FactsOf {
            id: String::new(),
            clock_ahead_ms: Some(ahead),
            clock_within_ms: Some(within),
            facts: None,
            error: None,
        };
        for (ahead, within, level) in [
            (3, 1, Level::Ok),
            (-700, 400, Level::Ok),
            (-700, 10, Level::Warning),
            (60_000, 10, Level::Broken),
        ] {
            let mut findings = Vec::new();
            clock("b", &of(ahead, within), &mut findings);
            assert_eq!(levels(&findings), [level], "{findings:?}");
        }
    }

    #[test]
    fn disks_and_files_run_out() {
        let judge = |facts: Facts| {
            let mut findings = Vec::new();
            folder(&facts, &mut findings);
            files(&facts, &mut findings);
            levels(&findings)
        };
        assert_eq!(judge(facts("a")), [Level::Ok, Level::Ok]);
        let full = Facts { free_bytes: 100 << 20, ..facts("a") };
        assert_eq!(judge(full), [Level::Broken, Level::Ok]);
        let nearly = Facts { free_bytes: 600 << 20, open_files_limit: 1024, ..facts("a") };
        assert_eq!(judge(nearly), [Level::Warning, Level::Warning]);
        let many = Facts { open_files: 1000, open_files_limit: 1024, ..facts("a") };
        assert_eq!(judge(many), [Level::Ok, Level::Broken]);
    }

    #[test]
    fn every_finding_that_is_not_well_has_a_way_out() {
        let mut one = facts("a");
        one.amnesia = Some("a copy".to_owned());
        one.port_was_taken = true;
        one.version = "9.9.9".to_owned();
        one.reach = vec![reach(false, &[])];
        let asked = FactsDoc { unix_ms: 0, asked: one, others: vec![] };
        let nodes = NodesDoc { nodes: vec![], next: None };
        let status: StatusDoc = serde_json::from_value(serde_json::json!({
            "node": { "id": "a", "name": null }, "version": "0", "unoffered_phases": [],
            "members": { "alive": 1, "suspect": 0, "down": 0, "retired": 0 },
            "pipelines": [], "refusing": [],
        }))
        .unwrap();
        let findings = judge(&asked, &nodes, &status.pipelines);
        let unwell: Vec<_> = findings.iter().filter(|it| it.level != Level::Ok).collect();
        assert_eq!(unwell.len(), 4, "{findings:?}");
        assert!(unwell.iter().all(|finding| finding.advice.is_some()));
    }
}
