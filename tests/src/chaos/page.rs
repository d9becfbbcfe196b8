//! The verdict as one HTML page, which needs nothing beside it.

use std::fmt::Write as _;

use carbonmesh_examples::api::Error;

use crate::{
    chart,
    checker::{Crime, Verdict},
    history::History,
    report,
};

const STYLE: &str = "
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em }
    table { border-collapse: collapse; margin: 1em 0 }
    td, th { border-bottom: 1px solid #ccc; padding: .2em 1em .2em 0; text-align: left }
    .bad { color: #b00020; font-weight: bold }
    .good { color: #1b7f3b; font-weight: bold }
    svg { width: 100%; height: auto }
";

/// The page.
pub(crate) fn html(history: &History, verdict: &Verdict) -> Result<String, Error> {
    let clean = verdict.violations.is_empty();
    let (class, judged) =
        if clean { ("good", "Nothing was violated") } else { ("bad", "Violated") };
    let mut page = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Chaos, seed {seed}</title>\
         <style>{STYLE}</style><h1>Chaos, seed {seed}</h1><p class={class}>{judged}</p>{chart}",
        seed = history.seed,
        chart = chart::timeline(history)?,
    );
    page += "<h2>Violations</h2>";
    let rows = Crime::ALL.map(|crime| [crime.name().to_owned(), verdict.count(crime).to_string()]);
    table(&mut page, &rows);
    for violation in &verdict.violations {
        let detail = escape(&violation.detail);
        let _ = write!(page, "<p><span class=bad>{}</span> {detail}</p>", violation.crime);
    }
    page += "<h2>Counts</h2>";
    let rows: Vec<_> = report::counts(verdict).into_iter().map(|(a, b)| [a, b]).collect();
    table(&mut page, &rows);
    page += "<h2>Time without progress, median / worst, in ms</h2>";
    table(&mut page, &report::recovery_rows(history));
    page += "<h2>Faults</h2>";
    table(&mut page, &faults(history));
    Ok(page)
}

fn faults(history: &History) -> Vec<[String; 5]> {
    let second = |at_ms: u64| format!("{:.1}", at_ms.saturating_sub(history.began_ms) as f64 / 1e3);
    let mut rows = vec![["from (s)", "until (s)", "fault", "nodes", "note"].map(str::to_owned)];
    rows.extend(history.faults.iter().map(|fault| {
        let (from, until) = (second(fault.from_ms), second(fault.until_ms));
        [from, until, fault.kind.to_string(), fault.nodes.join(", "), fault.note.clone()]
    }));
    rows
}

fn table<const N: usize>(page: &mut String, rows: &[[String; N]]) {
    page.push_str("<table>");
    for row in rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}", escape(cell));
        }
    }
    page.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
