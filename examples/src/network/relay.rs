//! The way of clients into a namespace: what connects here is handed on to a port on loopback there.

use std::{
    fs::File,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    runtime, select,
    sync::oneshot::{self, Receiver},
    task::JoinSet,
};

use crate::api::Error;

/// A port here that stands for one in a namespace, until this is dropped.
#[derive(Debug)]
pub struct Relay {
    url: String,
    _stop: oneshot::Sender<()>,
}

impl Relay {
    /// Stands for what is at `http://HOST:PORT` in a namespace of the network.
    ///
    /// # Errors
    /// There is no such namespace, or the address is none.
    pub fn start(namespace: &Path, url: &str) -> Result<Self, Error> {
        let to: SocketAddr = url.trim_start_matches("http://").parse()?;
        let namespace = File::open(namespace)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let url = format!("http://{}", listener.local_addr()?);
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("relay".to_owned()).spawn(move || {
            // Sockets belong to the namespace of the thread that makes them: from now on, to that one.
            if let Err(error) = setns(namespace, CloneFlags::CLONE_NEWNET) {
                return eprintln!("cannot enter a node's namespace: {error}");
            }
            if let Err(error) = runtime.block_on(serve(listener, to, stopped)) {
                eprintln!("a relay into a node's namespace has failed: {error}");
            }
        })?;
        Ok(Self { url, _stop: stop })
    }

    /// Where it is here: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// Hands on connections until nobody wants it any more. As many as the far end takes are open.
async fn serve(
    listener: TcpListener,
    to: SocketAddr,
    mut stopped: Receiver<()>,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut open = JoinSet::new();
    loop {
        select! {
            // Nothing is ever sent: the other end is dropped.
            _ = &mut stopped => return Ok(()),
            Some(_) = open.join_next() => {}
            accepted = listener.accept() => {
                let (near, _) = accepted?;
                open.spawn(hand_on(near, to));
            }
        }
    }
}

async fn hand_on(mut near: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut far = TcpStream::connect(to).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    copy_bidirectional(&mut near, &mut far).await.map(|_| ())
}
