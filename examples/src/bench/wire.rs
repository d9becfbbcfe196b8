//! Bytes between the nodes, as the kernel counts them for each connection (`ss`, of iproute2).
//!
//! Every connection between two nodes has one end at a port where a node listens for others; what
//! that end has sent and received is all that went over it: encrypted frames, without the headers
//! of TCP and IP. Clients are not counted, as they come to another port.

use std::process::Command;

use crate::api::Error;

/// What went over all connections that are open at this listening port, in MiB; `ss` is the program,
/// where the node is.
pub(super) fn mib(mut ss: Command, port: u16) -> Result<f64, Error> {
    let output = ss.args(["-tinHO", "sport", "=", &format!(":{port}")]).output();
    let output = output.map_err(|error| format!("`ss` of iproute2 does not run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counted = |word: &str| {
        let number = ["bytes_sent:", "bytes_received:"].iter();
        number.filter_map(|name| word.strip_prefix(*name)?.parse::<u64>().ok()).next()
    };
    let bytes: u64 = text.split_whitespace().filter_map(counted).sum();
    Ok(bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn both_directions_of_a_connection_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let mut client = TcpStream::connect(address).expect("listening");
        let (mut server, _) = listener.accept().expect("connected");
        let mut bytes = vec![0; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| client.write_all(&vec![1; 1 << 20]).expect("sent"));
            server.read_exact(&mut bytes).expect("received");
        });
        server.write_all(&bytes[..1 << 10]).expect("sent");
        client.read_exact(&mut bytes[..1 << 10]).expect("received");
        // No `ss`, no figure: the benchmark says so, and goes on.
        if let Ok(mib) = mib(Command::new("ss"), address.port()) {
            assert!((mib - 1.0 - 1.0 / 1024.0).abs() < 1e-6, "{mib}");
        }
    }
}
