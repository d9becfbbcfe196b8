//! A listener that keeps the number of open connections bounded: at the limit, new clients wait in
//! the kernel's queue until one leaves. No address of another machine gets more than its part of them.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::serve::Listener;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// How many clients one node serves at once: a connection costs a file descriptor and some tens of
/// KiB, and the usual limit of descriptors is 1024 at least.
pub(super) const MAX_CONNECTIONS: usize = 512;

/// How many of them one address of another machine may have: a fourth.
const OF_ONE: usize = MAX_CONNECTIONS / 4;

/// A listener with a limit.
pub(super) struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
    places: Places,
}

/// How many connections each address of another machine has.
#[derive(Clone, Default)]
struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of an address's places; dropped, it is free again.
struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// A place for one more; none if its address has all that it may.
    fn take(&self, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        if !address.is_loopback() {
            let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let of_it = taken.entry(address).or_default();
            if *of_it >= OF_ONE {
                return None;
            }
            *of_it += 1;
        }
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_it) = taken.get_mut(&self.address) {
            *of_it -= 1;
            if *of_it == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

impl Bounded {
    pub(super) fn new(listener: TcpListener, connections: usize) -> Self {
        let free = Arc::new(Semaphore::new(connections));
        Self { listener, free, places: Places::default() }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let Ok(permit) = self.free.clone().acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        let (stream, address, place) = loop {
            // The trait's own `accept` waits and tries again when the process has no descriptor left.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match self.places.take(address.ip()) {
                Some(place) => break (stream, address, place),
                None => tracing::debug!(%address, "this address has too many connections"),
            }
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%address, %error, "cannot set TCP_NODELAY");
        }
        (Connection { stream, _permit: permit, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection; when it is dropped, the next client gets in.
pub(super) struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
    _place: Place,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_its_part_and_this_machine_all() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let places = Places::default();
        let mut taken: Vec<_> = (0..OF_ONE).map(|_| places.take(ip("10.0.0.1"))).collect();
        assert!(taken.iter().all(Option::is_some));
        assert!(places.take(ip("10.0.0.1")).is_none());
        assert!(places.take(ip("::ffff:10.0.0.1")).is_none());
        assert!(places.take(ip("10.0.0.2")).is_some());
        taken.pop();
        assert!(places.take(ip("10.0.0.1")).is_some());
        drop(taken);
        assert!(places.0.lock().expect("not poisoned").is_empty());
        let near: Vec<_> = (0..MAX_CONNECTIONS).map(|_| places.take(ip("127.0.0.1"))).collect();
        assert!(near.iter().all(Option::is_some));
    }
}
