//! `carbonmesh rekey`: another key for a folder that is encrypted at rest.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{failure::Failure, output::Output};
use crate::config::{EncryptionArgs, encryption_key, encryption_key_in};

/// Have another key open an encrypted data folder.
#[derive(Debug, Args)]
pub(super) struct RekeyArgs {
    /// The data folder, or that of a backup (NAME/data)
    #[arg(long, value_name = "FOLDER")]
    data_dir: PathBuf,
    /// The file with the new key, at least 32 random bytes
    #[arg(long, value_name = "FILE")]
    new_key_file: PathBuf,
    #[command(flatten)]
    encryption: EncryptionArgs,
}

pub(super) fn run(args: RekeyArgs, out: &Output) -> Result<(), Failure> {
    let usage = |error: String| Failure::Usage(error);
    let old = encryption_key(args.encryption).map_err(|error| usage(error.to_string()))?;
    let old = old.ok_or_else(|| {
        usage(
            "the key that opens the folder now is missing: give it with --encryption-key-file, \
             --encryption-key-command or CARBONMESH_ENCRYPTION_KEY"
                .to_owned(),
        )
    })?;
    let new = encryption_key_in("--new-key-file", &args.new_key_file);
    let new = new.map_err(|error| usage(error.to_string()))?;
    let folder = args.data_dir.display().to_string();
    carbonmesh_storage::rekey(&args.data_dir, &old, &new)
        .map_err(|error| usage(format!("cannot change the key of {folder}: {error}")))?;
    let (from, to) = (old.id(), new.id());
    out.document(&json!({ "data_dir": folder, "from": from, "to": to }), || {
        format!("key {to} opens {folder} from its next start on, and key {from} no more")
    })
}
