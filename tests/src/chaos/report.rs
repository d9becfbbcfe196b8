//! The verdict as text.

use std::fmt::Write as _;

use crate::{
    checker::{Crime, Verdict},
    history::History,
    recovery::{self, median_and_worst},
};

/// How many cases of one kind are shown.
const SHOWN: usize = 5;

/// The whole report.
pub(crate) fn text(history: &History, verdict: &Verdict) -> String {
    let mut text = format!("\nSeed {}, {} faults\n\n", history.seed, history.faults.len());
    for (name, value) in counts(verdict) {
        line(&mut text, &name, &value);
    }
    text.push('\n');
    for crime in Crime::ALL {
        line(&mut text, crime.name(), &verdict.count(crime).to_string());
    }
    if history.copies.is_empty() {
        text.push_str(
            "\n  Nodes could not be asked one by one: whether they agree is not known.\n",
        );
    }
    text.push_str("\nTime without progress, median and worst, in ms\n");
    for row in recovery_rows(history) {
        let [kind, count, acks, starts, back] = row;
        let _ = writeln!(text, "  {kind:23} {count:>4} {acks:>15} {starts:>15} {back:>15}");
    }
    for crime in Crime::ALL.into_iter().filter(|crime| verdict.count(*crime) > 0) {
        let _ = writeln!(text, "\nViolated: {crime}");
        let cases = verdict.violations.iter().filter(|case| case.crime == crime);
        for case in cases.take(SHOWN) {
            let _ = writeln!(text, "  {}", case.detail);
        }
    }
    let violated =
        if verdict.violations.is_empty() { "Nothing was violated." } else { "VIOLATED." };
    let _ = writeln!(text, "\n{violated}");
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "  {name:40} {value}");
}

/// What was counted, in words.
pub(crate) fn counts(verdict: &Verdict) -> Vec<(String, String)> {
    let counts = &verdict.counts;
    let mut all: Vec<(String, String)> = [
        ("jobs asked for", counts.invoked),
        ("acknowledged", counts.acknowledged),
        ("refused", counts.failed),
        ("outcome unknown", counts.unknown),
        ("of these, recovered", counts.recovered),
        ("at their end", counts.terminal),
        ("lost with every disk that held them", counts.lost_with_disk),
        ("phases with two ends, explained", counts.completed_twice),
        ("started after the end, explained", counts.revived),
    ]
    .map(|(name, count)| (name.to_owned(), count.to_string()))
    .into();
    for (times, phases) in &counts.runs {
        all.push((format!("phases that ran {times} times"), phases.to_string()));
    }
    for (fault, runs) in &counts.explained {
        all.push((format!("run again because of {fault}"), runs.to_string()));
    }
    all
}

/// The table of recovery times, heading first.
pub(crate) fn recovery_rows(history: &History) -> Vec<[String; 5]> {
    let heading = ["fault", "n", "no job taken", "no phase begun", "node works again"];
    let mut rows = vec![heading.map(str::to_owned)];
    let show = |values: &[u64]| match median_and_worst(values) {
        Some((median, worst)) => format!("{median} / {worst}"),
        None => "-".to_owned(),
    };
    for ((kind, of_coordinator), times) in recovery::measure(history) {
        let hit = if of_coordinator { ", coordinator" } else { "" };
        rows.push([
            format!("{kind}{hit}"),
            times.acknowledged.len().to_string(),
            show(&times.acknowledged),
            show(&times.dispatched),
            show(&times.returned),
        ]);
    }
    rows
}
