//! Man pages, and the reference of all commands in `docs/cli.md`: both made of the commands themselves.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Arg, Command};

use super::{failure::Failure, output::Output};

/// Writes a man page for each command into a folder.
pub(super) fn man(command: Command, folder: &Path, out: &Output) -> Result<(), Failure> {
    let failed = |path: &Path, error: &std::io::Error| {
        Failure::Usage(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut Vec::new(), &mut |names, page| {
        pages.push((names.join("-"), page.clone()));
    });
    let count = pages.len();
    for (name, page) in pages {
        let path: PathBuf = folder.join(format!("{name}.1"));
        let mut text = Vec::new();
        let man = clap_mangen::Man::new(page);
        man.title(name.to_uppercase()).render(&mut text).map_err(|error| failed(&path, &error))?;
        fs::write(&path, text).map_err(|error| failed(&path, &error))?;
    }
    out.text(&format!("{count} pages in {}", folder.display()))
}

/// The reference as Markdown, a section for each command.
pub(super) fn markdown(mut command: Command) -> String {
    command.build();
    let mut text = String::new();
    collect(&command, &mut Vec::new(), &mut |names, command| section(names, command, &mut text));
    text
}

/// Calls `each` for a command and all below it that people call.
fn collect(command: &Command, names: &mut Vec<String>, each: &mut impl FnMut(&[String], &Command)) {
    names.push(command.get_name().to_owned());
    each(names, command);
    let below = command.get_subcommands();
    let shown = below.filter(|it| !it.is_hide_set() && it.get_name() != "help");
    for inner in shown {
        collect(inner, names, each);
    }
    names.pop();
}

fn section(names: &[String], command: &Command, text: &mut String) {
    let name = names.join(" ");
    *text += &format!("\n### `{name}`\n\n");
    if let Some(about) = command.get_about() {
        *text += &format!("{}.\n", one_line(&about.to_string()));
    }
    let arguments = command.get_positionals().map(positional);
    let usage: Vec<String> = std::iter::once(name).chain(arguments).collect();
    *text += &format!("\n```text\n{}\n```\n", usage.join(" "));
    let top = names.len() == 1;
    // Those of all commands are told once, at the top.
    let of_its_own = |arg: &&Arg| {
        !arg.is_hide_set()
            && !["help", "version"].contains(&arg.get_id().as_str())
            && (top || !arg.is_global_set())
    };
    let rows: Vec<String> = command.get_arguments().filter(of_its_own).map(row).collect();
    if !rows.is_empty() {
        *text += "\n| argument | meaning |\n|---|---|\n";
        *text += &rows.concat();
    }
}

fn positional(arg: &Arg) -> String {
    let name = value(arg);
    match arg.is_required_set() {
        true => format!("<{name}>"),
        false => format!("[{name}]"),
    }
}

fn value(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    match names {
        [] => arg.get_id().as_str().to_uppercase(),
        names => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

fn row(arg: &Arg) -> String {
    let flags = [
        arg.get_short().map(|short| format!("-{short}")),
        arg.get_long().map(|long| format!("--{long}")),
    ];
    let flags: Vec<String> = flags.into_iter().flatten().collect();
    let takes = arg.get_action().takes_values();
    let name = match (flags.is_empty(), takes) {
        (true, _) => positional(arg),
        (false, false) => flags.join(", "),
        (false, true) => format!("{} {}", flags.join(", "), value(arg)),
    };
    let mut help = arg.get_help().map(|help| one_line(&help.to_string())).unwrap_or_default();
    let possible: Vec<String> = match takes {
        true => arg.get_possible_values().iter().map(|it| it.get_name().to_owned()).collect(),
        false => Vec::new(),
    };
    if !possible.is_empty() {
        help += &format!(" ({})", possible.join(", "));
    }
    let defaults: Vec<String> =
        arg.get_default_values().iter().map(|it| it.to_string_lossy().into_owned()).collect();
    if takes && !defaults.is_empty() {
        help += &format!("; default `{}`", defaults.join(","));
    }
    if let Some(variable) = arg.get_env() {
        help += &format!("; or `{}`", variable.to_string_lossy());
    }
    format!("| `{}` | {} |\n", escaped(&name), escaped(&help))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A bar would end the table's cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}
