//! `carbonmesh secret ...`: values and secrets for phases that the cluster keeps, sealed.
//!
//! They are sealed here, before anything is sent: no node hears what they say, and what is shown of them
//! later never says it.

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::{
    name::Namespace,
    secret::{MAX_SECRET_BYTES, Pattern, Place},
};
use clap::{Args, Subcommand};
use data_encoding::BASE64;
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean, table, values},
    token::write_new,
    trust::ask,
};
use crate::{
    config::scope_key_in,
    http::view::{SecretDoc, SecretPutDoc, SecretsDoc},
    scope::{SHORTEST_SECRET, ScopeKey},
};

/// How much of standard input is read, in bytes.
const MOST_READ: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a key that seals values and secrets: a new file, which only you may read
    Key {
        /// The file
        file: PathBuf,
    },
    /// Keep what standard input has (or what is typed) as a secret for phases, in place of the one before
    Put {
        #[command(flatten)]
        place: PlaceArgs,
        /// It is no secret: it may be seen in logs
        #[arg(long)]
        value: bool,
        /// The key that seals it, as nodes that run the phases have it
        #[arg(long, env = "CARBONMESH_SCOPE_KEY_FILE", value_name = "FILE")]
        scope_key_file: PathBuf,
    },
    /// List what there is, without what it says
    Ls,
    /// Show what is known of one, but for what it says
    Show {
        #[command(flatten)]
        place: PlaceArgs,
    },
    /// Remove one: attempts that begin from now on go without it
    Rm {
        #[command(flatten)]
        place: PlaceArgs,
    },
}

// No doc comment: it would be taken for what the commands are about. The namespace is `--namespace`.
#[derive(Debug, Args)]
pub(super) struct PlaceArgs {
    /// What phases know it by: an environment variable
    name: String,
    /// Of which pipelines: a name, or how it begins and a `*`
    #[arg(long, value_name = "PIPELINE", default_value = "*", value_parser = Pattern::new)]
    pipeline: Pattern,
    /// Of which phases, likewise
    #[arg(long, value_name = "PHASE", default_value = "*", value_parser = Pattern::new)]
    phase: Pattern,
}

impl PlaceArgs {
    fn place(self, client: &Client) -> Result<Place, Failure> {
        let namespace: Namespace = client.namespace().cloned().unwrap_or_default();
        let place =
            Place { namespace, pipeline: self.pipeline, phase: self.phase, name: self.name };
        place.check().map_err(Failure::Usage)?;
        Ok(place)
    }
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Key { file } => make_key(&file, out),
        Command::Put { place, value, scope_key_file } => {
            let place = place.place(client)?;
            let key = scope_key_in(&scope_key_file);
            let key = key.map_err(|error| Failure::Usage(error.to_string()))?;
            put(&place, !value, &key, client, out).await
        }
        Command::Ls => {
            let answer = client.get::<SecretsDoc>(&["secrets"], &[]).await?;
            let own = client.namespace();
            out.answer(&answer, |found| list(&found.secrets, own))
        }
        Command::Show { place } => {
            let place = place.place(client)?;
            let answer =
                client.answer::<SecretDoc>(at(&place, Method::GET, client), Duration::ZERO);
            out.answer(&answer.await?, show)
        }
        Command::Rm { place } => {
            let place = place.place(client)?;
            client.text(at(&place, Method::DELETE, client), Duration::ZERO).await?;
            let document = json!({
                "removed": place.name, "namespace": place.namespace.as_str(),
                "pipeline": place.pipeline.as_str(), "phase": place.phase.as_str(),
            });
            out.document(&document, || format!("{place} is removed"))
        }
    }
}

/// A request about a place.
fn at(place: &Place, method: Method, client: &Client) -> RequestBuilder {
    let path = ["secrets", place.namespace.as_str(), place.name.as_str()];
    let query = [("pipeline", place.pipeline.as_str()), ("phase", place.phase.as_str())];
    client.request(method, &path, &query)
}

pub(super) fn make_key(file: &Path, out: &Output) -> Result<(), Failure> {
    let usage = |error: String| Failure::Usage(format!("{}: {error}", file.display()));
    let text = ScopeKey::make();
    let key = ScopeKey::new(text.as_bytes()).map_err(|error| usage(error.to_string()))?;
    write_new(file, &text)?;
    let (id, file) = (key.id().to_string(), file.display().to_string());
    out.document(&json!({ "file": file, "key": id }), || {
        format!(
            "{file} has the new key {id}: give it to nodes that run phases (carbonmesh up \
             --scope-key-file), and keep a copy elsewhere; nothing else opens what it seals"
        )
    })
}

async fn put(
    place: &Place,
    hidden: bool,
    key: &ScopeKey,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let text = read(place)?;
    check(&text, hidden).map_err(|why| Failure::Usage(format!("{}: {why}", place.name)))?;
    let sealed = key.seal(place, hidden, &text);
    let sealed = sealed.ok_or_else(|| Failure::Usage("it is too long to be sealed".to_owned()))?;
    drop(text);
    let document = json!({
        "key": key.id().to_string(), "hidden": hidden, "sealed": BASE64.encode(&sealed.bytes),
    });
    let request = at(place, Method::PUT, client).json(&document);
    let answer = client.answer::<SecretPutDoc>(request, Duration::ZERO).await?;
    out.answer(&answer, |put| {
        let kind = kind_of(&put.secret);
        format!(
            "the {kind} {place} is kept on {} nodes, sealed with key {}",
            put.copies, put.secret.key
        )
    })
}

/// From standard input, but for a line end behind it; typed, if that is a terminal.
fn read(place: &Place) -> Result<Zeroizing<String>, Failure> {
    if std::io::stdin().is_terminal() {
        return ask(&format!("{}: ", place.name));
    }
    let mut text = Zeroizing::new(String::new());
    // Much more than is possible: what is cut off is told as too long.
    let read = std::io::stdin().take(MOST_READ).read_to_string(&mut text);
    read.map_err(|error| Failure::Usage(format!("standard input: {error}")))?;
    let end = text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    let end = end.len();
    text.truncate(end);
    Ok(text)
}

fn check(text: &str, hidden: bool) -> Result<(), String> {
    if text.len() > MAX_SECRET_BYTES || text.contains('\0') {
        return Err(format!("at most {MAX_SECRET_BYTES} bytes and no zeros are possible"));
    }
    if hidden && text.len() < SHORTEST_SECRET {
        return Err(format!(
            "a secret of less than {SHORTEST_SECRET} bytes cannot be hidden in logs: make it longer, or a \
             value (--value)"
        ));
    }
    Ok(())
}

const fn kind_of(secret: &SecretDoc) -> &'static str {
    if secret.hidden { "secret" } else { "value" }
}

fn list(secrets: &[SecretDoc], own: Option<&Namespace>) -> String {
    let is_own = |one: &&SecretDoc| own.is_none_or(|own| own.as_str() == one.namespace);
    let rows = secrets.iter().filter(is_own).map(|one| {
        [
            clean(&one.name),
            kind_of(one).to_owned(),
            clean(&one.namespace),
            clean(&one.pipeline),
            clean(&one.phase),
            clean(&one.key),
            clean(&one.changed_at),
        ]
    });
    table(["NAME", "KIND", "NAMESPACE", "PIPELINE", "PHASE", "KEY", "CHANGED"], rows)
}

fn show(secret: &SecretDoc) -> String {
    values([
        ("name", Some(clean(&secret.name))),
        ("kind", Some(kind_of(secret).to_owned())),
        ("namespace", Some(clean(&secret.namespace))),
        ("pipeline", Some(clean(&secret.pipeline))),
        ("phase", Some(clean(&secret.phase))),
        ("key", Some(clean(&secret.key))),
        ("changed", Some(clean(&secret.changed_at))),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_told_without_it() {
        assert_eq!((check("hunter2", true), check("no", false)), (Ok(()), Ok(())));
        let long = "x".repeat(MAX_SECRET_BYTES + 1);
        for (text, hidden, reason) in [
            ("short", true, "less than 6 bytes"),
            ("a\0bcdefgh", true, "no zeros"),
            (long.as_str(), false, "at most 16384 bytes"),
        ] {
            let error = check(text, hidden).unwrap_err();
            assert!(error.contains(reason) && !error.contains(text), "{error}");
        }
    }
}
