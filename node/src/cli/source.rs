//! The input of an upload, in chunks of numbered lines.

use std::os::fd::AsFd;

use tokio::{
    fs::File,
    io::{AsyncBufReadExt, BufReader},
};

use super::failure::Failure;

/// How much one chunk holds: what a node takes as one batch.
const CHUNK_LINES: usize = 1000;
const CHUNK_BYTES: usize = 4 << 20;

/// A line of the input: its number, from 1, and what it says.
pub(super) type Line = (u64, Vec<u8>);

/// The input, line by line.
pub(super) struct Source {
    input: BufReader<File>,
    bytes: Option<u64>,
    name: String,
    number: u64,
}

impl Source {
    /// Opens what the command line names: `@FILE`, or `-` for stdin.
    pub(super) fn open(name: &str) -> Result<Self, Failure> {
        let opened = match name.strip_prefix('@') {
            Some(path) => std::fs::File::open(path),
            None if name == "-" => std::io::stdin().as_fd().try_clone_to_owned().map(Into::into),
            None => {
                return Err(Failure::Usage("--ndjson reads @FILE, or `-` for stdin".to_owned()));
            }
        };
        let file =
            opened.map_err(|error| Failure::Usage(format!("cannot read {name}: {error}")))?;
        let bytes = file.metadata().ok().filter(|file| file.is_file()).map(|file| file.len());
        let input = BufReader::new(File::from_std(file));
        Ok(Self { input, bytes, name: name.to_owned(), number: 0 })
    }

    /// Its size, if that is known before it is read.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Leaves out lines.
    pub(super) async fn skip(&mut self, lines: u64) -> Result<(), Failure> {
        while self.number < lines && self.line().await?.is_some() {}
        Ok(())
    }

    /// The next lines that are not blank; none at the end.
    pub(super) async fn chunk(&mut self) -> Result<Vec<Line>, Failure> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
            let Some(line) = self.line().await? else { break };
            if !line.trim_ascii().is_empty() {
                bytes += line.len();
                chunk.push((self.number, line));
            }
        }
        Ok(chunk)
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut line = Vec::new();
        let number = self.number + 1;
        let read = self.input.read_until(b'\n', &mut line).await.map_err(|error| {
            Failure::Usage(format!("cannot read {} at line {number}: {error}", self.name))
        })?;
        self.number = number;
        Ok((read > 0).then_some(line))
    }
}
