//! What the load is made with, cheap, since it shares the cores with the nodes that it measures.
//!
//! Bodies are built beforehand, connections stay open, and of an answer no more is read than what
//! says that it is good.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    sync::Semaphore,
};

use crate::api::Error;

/// Connections to one node: below its own limit (512), and with three nodes below the usual limit
/// of descriptors in this process (1,024).
const CONNECTIONS: usize = 300;

/// How long an idle connection is used again: less than nodes keep one (30 s).
const IDLE: Duration = Duration::from_secs(20);

/// Jobs as lines of JSON, each of about `bytes` bytes, or as short as can be.
///
/// The text in them neither repeats nor shrinks when it is compressed.
pub(super) fn lines(jobs: usize, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(jobs * (bytes + 16));
    // A generator of numbers (xorshift64): any seed but zero will do.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in 0..jobs {
        out.extend_from_slice(format!("{{\"at\":{at}").as_bytes());
        if bytes > 0 {
            out.extend_from_slice(b",\"text\":\"");
            for _ in 0..bytes.saturating_sub(25).div_ceil(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                // Letters of 6 bits each: `0` to `o`, without the backslash.
                let letter = |byte: u8| if byte & 63 == 44 { b'z' } else { b'0' + (byte & 63) };
                out.extend(state.to_le_bytes().map(letter));
            }
            out.push(b'"');
        }
        out.extend_from_slice(b"}\n");
    }
    out
}

/// POSTs jobs in bulk, and checks that each of them is taken.
pub(super) async fn enqueue(
    http: &reqwest::Client,
    url: &str,
    lines: Vec<u8>,
    jobs: usize,
) -> Result<(), Error> {
    let request = http.post(url).header("content-type", "application/x-ndjson").body(lines);
    let answer = request.send().await?.error_for_status()?.text().await?;
    if let Some(refused) = answer.lines().find(|line| line.contains("\"error\"")) {
        return Err(format!("a job was refused: {refused}").into());
    }
    let taken = answer.lines().count();
    (taken == jobs).then_some(()).ok_or_else(|| format!("{taken} of {jobs} jobs taken").into())
}

/// Connections to one node, for one request at a time each.
#[derive(Debug)]
pub(super) struct Gateway {
    address: String,
    idle: Mutex<Vec<(Instant, Connection)>>,
    free: Semaphore,
}

impl Gateway {
    /// The HTTP interface at `http://HOST:PORT`.
    pub(super) fn new(base: &str) -> Self {
        Self {
            address: base.trim_start_matches("http://").to_owned(),
            idle: Mutex::default(),
            free: Semaphore::new(CONNECTIONS),
        }
    }

    /// A request that can be sent any number of times.
    pub(super) fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let (address, length) = (&self.address, body.len());
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Sends a request: the status of the answer, and its body.
    pub(super) async fn send(&self, request: &[u8]) -> Result<(u16, Vec<u8>), Error> {
        let _permit = self.free.acquire().await?;
        let mut connection = match self.take() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await?,
        };
        let answer = connection.send(request).await?;
        self.idle.lock().map_err(|_| "a sender panicked")?.push((Instant::now(), connection));
        Ok(answer)
    }

    /// The connection that was used last.
    fn take(&self) -> Option<Connection> {
        let (since, connection) = self.idle.lock().ok()?.pop()?;
        (since.elapsed() < IDLE).then_some(connection)
    }
}

#[derive(Debug)]
struct Connection(BufReader<TcpStream>);

impl Connection {
    async fn open(address: &str) -> Result<Self, Error> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    async fn send(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>), Error> {
        self.0.write_all(request).await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).ok_or("no answer")?.parse()?;
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = text.trim().parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        Ok((status, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_json_of_about_the_size_that_is_asked_for() {
        for bytes in [0, 100, 10_000] {
            let lines = String::from_utf8(lines(100, bytes)).expect("text");
            assert_eq!(lines.lines().count(), 100);
            for line in lines.lines() {
                let job: serde_json::Value = serde_json::from_str(line).expect("JSON");
                assert!(job["at"].is_u64());
                assert!(bytes == 0 || line.len().abs_diff(bytes) <= 10, "{}", line.len());
            }
        }
    }
}
