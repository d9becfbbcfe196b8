//! What goes to stdout: tables for people, the interface's JSON for programs, or the same as YAML.

use std::{
    cell::Cell,
    io::{self, ErrorKind, IsTerminal, Write},
};

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
    /// The same, for programs and people
    Yaml,
}

/// Whether to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    fn is_on(self) -> bool {
        let unwanted = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        match self {
            Self::Auto => io::stdout().is_terminal() && !unwanted(),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Stdout, and how to print to it.
pub(super) struct Output {
    format: Format,
    colors: bool,
    /// Whether what is printed is drawn over what was before.
    redraws: bool,
    /// Whether one document was printed: another is set apart from it.
    printed: Cell<bool>,
}

impl Output {
    pub(super) fn new(format: Format, color: Color) -> Self {
        let colors = format == Format::Table && color.is_on();
        Self { format, colors, redraws: false, printed: Cell::new(false) }
    }

    /// The same, drawn over what was on the terminal before.
    pub(super) fn redrawn(self) -> Self {
        Self { redraws: true, ..self }
    }

    /// A round of `--watch` begins.
    pub(super) fn begin(&self) -> Result<(), Failure> {
        // Home; each line clears its own rest, so that nothing flickers.
        if self.redraws { self.raw("\x1b[H") } else { Ok(()) }
    }

    /// A round of `--watch` ends.
    pub(super) fn end(&self) -> Result<(), Failure> {
        match (self.redraws, self.format) {
            (true, _) => self.raw("\x1b[J"),
            (false, Format::Table) => self.raw("\n"),
            (false, Format::Json) => Ok(()),
            (false, Format::Yaml) => self.raw("---\n"),
        }
    }

    /// Whether programs read this.
    pub(super) fn is_json(&self) -> bool {
        self.format != Format::Table
    }

    /// Prints an answer: as it came, or as people like it.
    pub(super) fn answer<T>(
        &self,
        answer: &Answer<T>,
        for_people: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json | Format::Yaml => self.row(&answer.text),
            Format::Table => self.text(&self.painted(for_people(&answer.document))),
        }
    }

    /// Prints a document: as it is, or as people like it.
    pub(super) fn document(
        &self,
        document: &serde_json::Value,
        for_people: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        match self.format {
            Format::Json | Format::Yaml => self.row(&document.to_string()),
            Format::Table => self.text(&self.painted(for_people())),
        }
    }

    /// Prints one JSON document of possibly many, as programs want it.
    pub(super) fn row(&self, json: &str) -> Result<(), Failure> {
        if self.format != Format::Yaml {
            return self.text(json);
        }
        let separator = if self.printed.replace(true) { "---\n" } else { "" };
        // Read as YAML's own value, so that fields keep their order.
        let yaml = serde_json::from_str::<serde_yaml_ng::Value>(json)
            .map_err(|error| error.to_string())
            .and_then(|value| serde_yaml_ng::to_string(&value).map_err(|error| error.to_string()));
        match yaml {
            Ok(yaml) => self.text(&format!("{separator}{yaml}")),
            Err(error) => Err(Failure::Output(io::Error::other(error))),
        }
    }

    fn painted(&self, text: String) -> String {
        if self.colors { painted(&text) } else { text }
    }

    /// Prints a text and ends its last line.
    pub(super) fn text(&self, text: &str) -> Result<(), Failure> {
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        let text = format!("{text}{end}");
        match self.redraws {
            true => self.raw(&text.replace('\n', "\x1b[K\n")),
            false => self.raw(&text),
        }
    }

    fn raw(&self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let written = write!(stdout, "{text}").and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::Output(error),
        })
    }
}

/// Colours states where they fill a cell.
fn painted(text: &str) -> String {
    const RED: &str = "31";
    const GREEN: &str = "32";
    const YELLOW: &str = "33";
    const COLOURS: [(&str, &str); 11] = [
        ("alive", GREEN),
        ("ok", GREEN),
        ("succeeded", GREEN),
        ("running", YELLOW),
        ("suspect", YELLOW),
        ("WARNING", YELLOW),
        ("cancelled", YELLOW),
        ("retired", YELLOW),
        ("dead", RED),
        ("down", RED),
        ("BROKEN", RED),
    ];
    let cell = |cell: &str| {
        let word = cell.trim();
        match COLOURS.iter().find(|(name, _)| *name == word) {
            Some((_, colour)) => cell.replacen(word, &format!("\x1b[{colour}m{word}\x1b[0m"), 1),
            None => cell.to_owned(),
        }
    };
    // Cells are apart by two spaces at least.
    let line = |line: &str| line.split("  ").map(cell).collect::<Vec<_>>().join("  ");
    let lines: Vec<String> = text.split('\n').map(line).collect();
    lines.join("\n")
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
    fn states_are_coloured_and_nothing_else_changes() {
        let plain = "NAME  STATE  ERROR\na     dead   it is dead\nok    file: all\nb     alive  ";
        let coloured = painted(plain);
        assert!(coloured.contains("\x1b[31mdead\x1b[0m"), "{coloured:?}");
        assert!(coloured.contains("\x1b[32malive\x1b[0m"), "{coloured:?}");
        assert!(coloured.contains("it is dead"), "text is not touched: {coloured:?}");
        let without = coloured.replace("\x1b[0m", "").replace("\x1b[31m", "");
        assert_eq!(without.replace("\x1b[32m", ""), plain);
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("a\x1b[31mb\nc"), "a [31mb c");
        assert_eq!(short(&"ä".repeat(100)).chars().count(), TEXT_CHARS + 1);
    }
}
