//! `carbonmesh backup` and `carbonmesh restore`.

use std::{path::PathBuf, time::Duration};

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean, values},
};
use crate::{
    backup::{self, Manifest},
    config::{EncryptionArgs, encryption_key},
    http::local::BackupDoc,
};

/// How long a backup may take: each byte is read once.
const PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Copy a node's data folder while the node runs.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The backup's name: a folder below the node's --backup-dir [default: the node's name and the time]
    name: Option<String>,
}

/// Make a data folder of a backup.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The backup: a folder that `backup` has made
    backup: PathBuf,
    /// The new data folder, which must not exist yet
    #[arg(long, value_name = "FOLDER", required_unless_present = "check")]
    data_dir: Option<PathBuf>,
    /// Only look whether the backup is whole and as it was written
    #[arg(long, conflicts_with = "data_dir")]
    check: bool,
    #[command(flatten)]
    encryption: EncryptionArgs,
}

pub(super) async fn back_up(
    args: BackupArgs,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let request = client.request(Method::POST, &["backups"], &[]);
    let request = request.json(&json!({ "name": args.name }));
    out.answer(&client.answer::<BackupDoc>(request, PATIENCE).await?, |made| {
        values([
            ("backup", Some(clean(&made.path))),
            ("node", Some(made.node.clone())),
            ("holds what was acknowledged before", Some(made.began_at.clone())),
            ("bytes", Some(made.bytes.to_string())),
            ("files", Some(made.files.to_string())),
        ])
    })
}

pub(super) fn restore(mut args: RestoreArgs, out: &Output) -> Result<(), Failure> {
    let key = encryption_key(std::mem::take(&mut args.encryption));
    let key = key.map_err(|error| Failure::Usage(error.to_string()))?;
    let args = &args;
    let done = match &args.data_dir {
        Some(folder) => backup::restore(&args.backup, folder, key.as_ref()),
        None => backup::verify(&args.backup),
    };
    let manifest = done.map_err(|error| Failure::Restore(error.to_string()))?;
    let document = serde_json::to_value(&manifest)
        .map_err(|error| Failure::Restore(format!("the manifest cannot be shown: {error}")))?;
    out.document(&document, || told(args, &manifest))
}

fn told(args: &RestoreArgs, manifest: &Manifest) -> String {
    let head = values([
        ("node", Some(format!("{} ({})", clean(&manifest.name), clean(&manifest.node)))),
        ("cluster", Some(clean(&manifest.cluster))),
        ("made by release", Some(clean(&manifest.program))),
        ("holds what was acknowledged before", Some(clean(&manifest.began_at))),
        ("bytes", Some(manifest.bytes.to_string())),
        ("files", Some(manifest.files.len().to_string())),
    ]);
    match &args.data_dir {
        None => format!("{head}\n\nthe backup is whole"),
        Some(folder) => format!(
            "{head}\n\n{} is a new disk of this node: start it with --data-dir, and never beside the \
             one that the backup was made of",
            folder.display()
        ),
    }
}
