//! Results into files below one folder: written beside, synced, then put in place.

use std::{
    fs::{self, File},
    io::Write,
    path::{Component, Path, PathBuf},
};

use async_trait::async_trait;
use serde_json::Value;

use super::Delivery;
use crate::phase::{Fields, Phase, PhaseContext, PhaseError};

/// Where files may be written.
#[derive(Clone, Debug)]
pub struct FileSettings {
    /// The folder below which all of them lie; it has to be there.
    pub folder: PathBuf,
}

/// The phase.
pub(super) struct FileWriter {
    folder: PathBuf,
}

impl FileWriter {
    pub(super) fn new(FileSettings { folder }: FileSettings) -> Result<Self, String> {
        let found = fs::canonicalize(&folder);
        let folder = found.map_err(|error| format!("cannot use {}: {error}", folder.display()))?;
        if !folder.is_dir() {
            return Err(format!("{} is no folder", folder.display()));
        }
        Ok(Self { folder })
    }
}

#[async_trait]
impl Phase for FileWriter {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let Delivery { to, result, .. } = Delivery::of(&context, component)?;
        let path = relative(to.strip_prefix("file:").unwrap_or(&to))?;
        let (folder, shown, token) = (self.folder.clone(), path.clone(), context.token());
        let write = move || write(&folder, &path, &token, &result);
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written?,
            Err(error) => return Err(PhaseError::Retry(error.to_string())),
        }
        let shown = shown.to_string_lossy().into_owned();
        Ok(Fields::from_iter([("written".to_owned(), Value::String(shown))]))
    }
}

/// A value as one part of a path: what could be more becomes `_`.
fn component(value: &str) -> String {
    let plain = |one: char| one.is_alphanumeric() || matches!(one, '-' | '_' | '.' | '@' | '+');
    let text: String = value.chars().map(|one| if plain(one) { one } else { '_' }).collect();
    match text.as_str() {
        "" => "_".to_owned(),
        dots if dots.chars().all(|one| one == '.') => "_".repeat(dots.len()),
        _ => text,
    }
}

/// A path that leads down only.
fn relative(text: &str) -> Result<PathBuf, PhaseError> {
    let path = PathBuf::from(text);
    let down = path.components().all(|part| matches!(part, Component::Normal(_)));
    if !down || path.file_name().is_none() || text.ends_with('/') || text.contains('\0') {
        return Err(PhaseError::Fatal(format!(
            "file:{text}: the path must lead down from the node's folder for results, to a file"
        )));
    }
    Ok(path)
}

fn write(folder: &Path, path: &Path, token: &str, result: &[u8]) -> Result<(), PhaseError> {
    let shown = path.display();
    let failed =
        |error: std::io::Error| PhaseError::Retry(format!("cannot write {shown}: {error}"));
    let target = folder.join(path);
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(PhaseError::Fatal(format!("{shown} is no file")));
    };
    // A link in the folder may lead out of it: nothing is made there.
    let there = parent.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(folder);
    if !fs::canonicalize(there).map_err(failed)?.starts_with(folder) {
        return Err(PhaseError::Fatal(format!("{shown} leads out of the folder for results")));
    }
    fs::create_dir_all(parent).map_err(failed)?;
    let parent = fs::canonicalize(parent).map_err(failed)?;
    // Its own for each attempt: two that run at once must not write into one file.
    let digits: String = token.chars().filter(char::is_ascii_alphanumeric).collect();
    let fresh = parent.join(format!(".{}.{digits}.part", name.to_string_lossy()));
    let written = File::create(&fresh).and_then(|mut file| {
        file.write_all(result)?;
        file.write_all(b"\n")?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&fresh, parent.join(name)));
    if placed.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    placed.and_then(|()| File::open(&parent)?.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_one_part_of_a_path() {
        for (value, expected) in
            [("a/b", "a_b"), ("..", "__"), ("", "_"), ("it's ä", "it_s_ä"), ("k-1.x", "k-1.x")]
        {
            assert_eq!(component(value), expected);
        }
    }

    #[test]
    fn paths_lead_down() {
        assert!(relative("a/b.json").is_ok());
        for bad in ["/etc/passwd", "../x", "a/../b", "", ".", "a/", "a\0b", "./a"] {
            assert!(relative(bad).is_err(), "{bad}");
        }
    }
}
