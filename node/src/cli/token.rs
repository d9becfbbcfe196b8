//! `carbonmesh token create` and `token ls`: who may use the HTTP interface of nodes.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use carbonmesh_protocol::name::Namespace;
use clap::Subcommand;
use jiff::Timestamp;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, joined, or_dash, table},
};
use crate::{
    document::parse_duration,
    http::access::{
        scope::{Scope, Verb},
        tokens::{Grants, TokenEntry, check_name, make_token},
    },
    tls::write_private,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a token: it is shown once; nodes get its hash, in their tokens file
    Create {
        /// Who will have it, for people and the audit log
        #[arg(long, value_parser = name)]
        name: String,
        /// What it may do: read:*, enqueue:NAME, jobs:PREFIX*, pipelines:NAME, metrics, admin
        #[arg(long, required = true, value_delimiter = ',', value_name = "VERB:PIPELINE")]
        scope: Vec<Asked>,
        /// In these namespaces alone; then a scope may be a verb without pipelines
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        namespaces: Vec<Namespace>,
        /// For how long, such as 12h or 30d, or `never`
        #[arg(long, default_value = "90d", value_name = "DURATION", value_parser = expiry)]
        expires: Expiry,
        /// Add its entry to this tokens file
        #[arg(long, value_name = "FILE")]
        append: Option<PathBuf>,
        /// Write the token into this new file, which only you may read, rather than show it
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List who a tokens file lets in; or see what is wrong with it
    Ls {
        /// The tokens file
        file: PathBuf,
    },
}

/// A scope, or a verb alone: on all pipelines of the namespaces that are named beside.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    scope: Scope,
    text: String,
    is_bare: bool,
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_bare = Verb::ALL.iter().any(|verb| verb.has_pipelines() && verb.name() == text);
        let scope = if is_bare { format!("{text}:*").parse()? } else { text.parse()? };
        Ok(Self { scope, text: text.to_owned(), is_bare })
    }
}

/// What a token gets.
fn scopes(asked: &[Asked], namespaces: &[Namespace]) -> Result<Vec<Scope>, String> {
    if namespaces.is_empty() {
        // A verb alone says what to write in its place.
        let whole = |one: &Asked| match one.is_bare {
            true => one.text.parse(),
            false => Ok(one.scope.clone()),
        };
        return asked.iter().map(whole).collect();
    }
    let each = asked.iter().flat_map(|one| namespaces.iter().map(|name| one.scope.within(name)));
    each.collect()
}

/// When a token ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expiry(Option<Timestamp>);

fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned())
}

fn expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry(None));
    }
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    // Whole seconds are enough for people.
    let now = Timestamp::now().as_second();
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let end = now.checked_add(seconds).and_then(|end| Timestamp::from_second(end).ok());
    end.filter(|_| seconds > 0).map(|end| Expiry(Some(end))).ok_or_else(|| {
        format!("`{text}` ends at once, or not before the end of time: write `never`")
    })
}

pub(super) fn run(command: Command, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Create {
            name,
            scope,
            namespaces,
            expires: Expiry(expires),
            append,
            out: file,
        } => {
            let scopes = scopes(&scope, &namespaces)
                .map_err(|reason| Failure::Usage(format!("--scope: {reason}")))?;
            let token = make_token();
            let entry = TokenEntry::new(&name, &token, &scopes, expires);
            // The token comes last: nobody has one that no node will know.
            let entry = entry.to_toml();
            if let Some(path) = &append {
                add(path, &entry)?;
            }
            if let Some(path) = &file {
                write_new(path, &format!("{}\n", &*token))?;
            }
            let shown = file.is_none().then(|| token.as_str());
            let document = json!({ "name": name, "token": shown, "entry": entry });
            out.document(&document, || told(shown, &entry, append.as_deref(), file.as_deref()))
        }
        Command::Ls { file } => {
            let (grants, _) = Grants::read(&file)
                .map_err(|reason| Failure::Usage(format!("{}: {reason}", file.display())))?;
            let now = crate::clock::unix_ms();
            let entries: Vec<_> = grants.entries().collect();
            let json = entries.iter().map(|(kind, grant)| {
                json!({
                    "kind": kind, "name": &*grant.name, "scopes": grant.scopes.texts(),
                    "expires": grant.expires(), "expired": grant.is_over(now),
                })
            });
            let json = json!({ "entries": json.collect::<Vec<_>>() });
            out.document(&json, || {
                let rows = entries.iter().map(|(kind, grant)| {
                    let end = grant
                        .expires()
                        .map(|end| if grant.is_over(now) { format!("{end} (over)") } else { end });
                    let kind = (*kind).to_owned();
                    [grant.name.to_string(), kind, joined(grant.scopes.texts()), or_dash(end)]
                });
                table(["NAME", "BY", "SCOPES", "EXPIRES"], rows)
            })
        }
    }
}

fn told(token: Option<&str>, entry: &str, append: Option<&Path>, file: Option<&Path>) -> String {
    let mut text = match (token, file) {
        (Some(token), _) => format!("token: {token}\n\nIt is shown this once, and kept nowhere.\n"),
        (None, Some(path)) => format!("The token is in {}, and nowhere else.\n", path.display()),
        (None, None) => String::new(),
    };
    text.push_str(&match append {
        Some(path) => format!("Its entry was added to {}, for each node.\n", path.display()),
        None => format!("Its entry, for the tokens file of each node:\n\n{entry}"),
    });
    text
}

/// Adds an entry to a tokens file, which must be one that nodes can use before and after.
fn add(path: &Path, entry: &str) -> Result<(), Failure> {
    let wrong = |reason: String| Failure::Usage(format!("{}: {reason}", path.display()));
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let gap = if before.is_empty() || before.ends_with("\n\n") {
        ""
    } else if before.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    let after = format!("{before}{gap}{entry}");
    Grants::parse(&after).map_err(wrong)?;
    write_private(path, after.as_bytes()).map_err(|error| wrong(error.to_string()))
}

/// Writes a file that was not there, which only its owner may read.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let mut options = fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::Usage(format!("cannot write {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_to_what_nodes_can_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let scopes = ["read:*".parse().unwrap()];
        let entry = |name: &str, token: &str| TokenEntry::new(name, token, &scopes, None).to_toml();
        add(&path, &entry("a", "a")).unwrap();
        add(&path, &entry("b", "b")).unwrap();
        let (grants, _) = Grants::read(&path).unwrap();
        assert_eq!(grants.len(), 2);
        assert!(grants.by_token(b"b").is_some());
        // A second one of the same name is refused, and the file stays as it was.
        assert!(add(&path, &entry("a", "c")).unwrap_err().to_string().contains("twice"));
        assert_eq!(Grants::read(&path).unwrap().0.len(), 2);
    }

    #[test]
    fn a_verb_alone_is_for_the_namespaces_that_are_named() {
        let asked = |texts: &[&str]| -> Vec<Asked> {
            texts.iter().map(|text| text.parse().unwrap()).collect()
        };
        let names = ["a".parse().unwrap(), "b".parse().unwrap()];
        let made = scopes(&asked(&["read", "enqueue:x"]), &names).unwrap();
        let made: Vec<String> = made.iter().map(ToString::to_string).collect();
        assert_eq!(made, ["read:a/*", "read:b/*", "enqueue:a/x", "enqueue:b/x"]);
        assert!(scopes(&asked(&["read"]), &[]).unwrap_err().contains("read:NAMESPACE/*"));
        assert!(scopes(&asked(&["admin"]), &names).unwrap_err().contains("whole cluster"));
        assert_eq!(scopes(&asked(&["read:*"]), &[]).unwrap()[0].to_string(), "read:*");
    }

    #[test]
    fn a_token_ends_at_some_time_unless_somebody_says_never() {
        assert_eq!(expiry("never"), Ok(Expiry(None)));
        assert!(expiry("30d").unwrap().0.unwrap() > Timestamp::now());
        for wrong in ["0s", "soon", "500ms", "4000000000d"] {
            assert!(expiry(wrong).is_err(), "{wrong}");
        }
    }
}
