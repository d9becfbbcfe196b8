//! Beanstalkd's protocol, as far as the benchmark speaks it.
//!
//! Commands are written one after another without waiting; the server answers them in their order.

use std::{fmt::Write, str};

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// A job was put, and is in the log as the server's mode says.
    Inserted,
    /// A job was deleted.
    Deleted,
    /// A job that is now this connection's.
    Reserved {
        /// The server's number of it.
        id: u64,
        /// What was put.
        body: Vec<u8>,
    },
    /// There was no job to reserve.
    TimedOut,
    /// A tube was chosen.
    Tube,
}

/// Why an answer cannot be understood. The connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadReply(
    /// The line that was not expected.
    pub String,
);

impl std::fmt::Display for BadReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "beanstalkd answered: {}", self.0)
    }
}

impl std::error::Error for BadReply {}

/// Reads the answer at the start of `bytes`: it, and how many bytes it takes; nothing if more bytes
/// are needed.
///
/// # Errors
/// It is an error of the server, or none of the protocol.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, BadReply> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = str::from_utf8(&bytes[..end]).unwrap_or("no text");
    let bad = || BadReply(line.to_owned());
    let mut words = line.split(' ');
    let mut taken = end + 2;
    let reply = match words.next() {
        Some("INSERTED") => Reply::Inserted,
        Some("DELETED") => Reply::Deleted,
        Some("TIMED_OUT") => Reply::TimedOut,
        Some("USING" | "WATCHING") => Reply::Tube,
        Some("RESERVED") => {
            let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
            let (Some(id), Some(length)) = (number(), number()) else { return Err(bad()) };
            let length = usize::try_from(length).map_err(|_| bad())?;
            let whole =
                taken.checked_add(length).and_then(|at| at.checked_add(2)).ok_or_else(bad)?;
            if bytes.len() < whole {
                return Ok(None);
            }
            let body = bytes[taken..whole - 2].to_vec();
            taken = whole;
            Reply::Reserved { id, body }
        }
        _ => return Err(bad()),
    };
    Ok(Some((reply, taken)))
}

/// Appends the command that puts a job: no delay, and time to run that no phase exceeds.
pub fn put(commands: &mut String, body: &str) {
    // Writing to a string cannot fail.
    let _ = write!(commands, "put 0 0 600 {}\r\n{body}\r\n", body.len());
}

/// Appends the command that deletes a job which this connection has reserved.
pub fn delete(commands: &mut String, id: u64) {
    let _ = write!(commands, "delete {id}\r\n");
}

/// Commands that wait for a job, and then take what else is there: up to `count` together.
pub fn reserve(count: usize) -> String {
    "reserve\r\n".to_owned() + &"reserve-with-timeout 0\r\n".repeat(count.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_after_another() {
        let bytes = b"INSERTED 7\r\nRESERVED 8 5\r\n{\r\n1}\r\nTIMED_OUT\r\nDELETED\r\nUSING x\r\n";
        let (mut at, mut replies) = (0, Vec::new());
        while let Some((reply, taken)) = parse(&bytes[at..]).unwrap() {
            at += taken;
            replies.push(reply);
        }
        let reserved = Reply::Reserved { id: 8, body: b"{\r\n1}".to_vec() };
        let expected =
            [Reply::Inserted, reserved, Reply::TimedOut, Reply::Deleted, Reply::Tube].to_vec();
        assert_eq!((replies, at), (expected, bytes.len()));
    }

    #[test]
    fn an_answer_that_is_cut_short_is_waited_for() {
        let whole = b"RESERVED 12 8\r\n{\"at\":1}\r\n";
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Ok(None), "{length} bytes");
        }
        assert!(parse(whole).unwrap().is_some());
    }

    #[test]
    fn errors_of_the_server_are_errors() {
        for line in ["OUT_OF_MEMORY", "BURIED 3", "RESERVED 1", "RESERVED x 1", "", "NOT_FOUND"] {
            let answer = parse(format!("{line}\r\n").as_bytes());
            assert_eq!(answer, Err(BadReply(line.to_owned())));
        }
        assert!(parse(format!("RESERVED 1 {}\r\n", u64::MAX).as_bytes()).is_err());
    }

    #[test]
    fn commands_are_those_of_the_protocol() {
        let mut commands = String::new();
        put(&mut commands, "{}");
        delete(&mut commands, 9);
        assert_eq!(commands, "put 0 0 600 2\r\n{}\r\ndelete 9\r\n");
        assert_eq!(reserve(3), "reserve\r\nreserve-with-timeout 0\r\nreserve-with-timeout 0\r\n");
        assert_eq!(reserve(1), "reserve\r\n");
    }
}
