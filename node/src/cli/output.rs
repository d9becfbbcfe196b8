//! What goes to stdout: tables for people, the interface's JSON for programs.

use std::io::{self, ErrorKind, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};

use super::{client::Answer, failure::Failure};

/// How long a cell for free text may be.
const TEXT_CHARS: usize = 80;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// Stdout, and how to print to it.
pub(super) struct Output {
    format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read this.
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints an answer: as it came, or as people like it.
    pub(super) fn answer<T>(
        &self,
        answer: &Answer<T>,
        for_people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.text(&answer.text),
            Format::Table => self.text(&for_people(&answer.document)),
        }
    }

    /// Prints a document: as it is, or as people like it.
    pub(super) fn document(
        &self,
        document: &serde_json::Value,
        for_people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json => self.text(&document.to_string()),
            Format::Table => self.text(&for_people()),
        }
    }

    /// Prints a text and ends its last line.
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let written = write!(stdout, "{text}{end}").and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Output(error),
        })
    }
}

/// Rows below a header.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = plain(rows);
    table.set_header(header);
    align(&mut table);
    table.trim_fmt()
}

/// Names and their values; those without a value are left out.
pub(super) fn values<const N: usize>(rows: [(&str, Option<String>); N]) -> String {
    let rows = rows.into_iter().filter_map(|(name, value)| Some([format!("{name}:"), value?]));
    let mut table = plain(rows);
    align(&mut table);
    table.trim_fmt()
}

/// One word for something that may be missing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A list in one cell.
pub(super) fn joined(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| clean(item.as_ref())).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

/// Somebody's text, short enough for a cell.
pub(super) fn short(text: &str) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => clean(&text[..end]) + "…",
        None => clean(text),
    }
}

/// Somebody's text without what would move the cursor or colour the terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).collect()
}

fn plain<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).add_rows(rows);
    table
}

fn align(table: &mut Table) {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_borders() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), "2".to_owned()]];
        assert_eq!(table(["NAME", "N"], rows), "NAME  N\na     1\nlong  2");
        assert_eq!(values([("a", Some("1".into())), ("b", None)]), "a:  1");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc"), "a [31mb c");
        assert_eq!(short(&"ä".repeat(100)).chars().count(), TEXT_CHARS + 1);
    }
}
