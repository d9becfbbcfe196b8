//! A bad link between a node and the others, made in this process: it needs no `netem` in the kernel.
//!
//! ```text
//! node's eth0 ─ v0 ─ bridge of its own ─ TAP a0 ─ wire ─► TAP b0 ─ bridge of all
//!                                            ◄─ wire ─
//! ```
//!
//! The kernel hands out whole frames at a TAP device, with their checksums, so that nothing is to be
//! known of what they carry. The devices, and the thread between them, are there while the link is
//! bad; otherwise frames do not come by here. What becomes of a frame is decided in `wire`.

use std::{io, thread, time::Duration};

use tokio::{
    runtime, select,
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tokio_tun::Tun;

use super::wire::{Counts, Quality, Wire};
use crate::api::Error;

/// The longest frame: all devices here have the usual 1500 bytes of content, and a head.
const FRAME: usize = 2048;

/// A bad link; it is gone with its devices when this is dropped.
#[derive(Debug)]
pub(super) struct Link {
    stop: oneshot::Sender<()>,
    carrier: thread::JoinHandle<io::Result<Counts>>,
}

impl Link {
    /// Makes the devices with these names and carries frames between them: from the first to the second,
    /// and back.
    pub(super) fn start(
        names: [String; 2],
        qualities: [Quality; 2],
        seed: u64,
    ) -> Result<Self, Error> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let taps = {
            let _within = runtime.enter();
            let [a, b] = names.map(tap);
            [a?, b?]
        };
        let [there, back] = qualities;
        let wires = [Wire::new(there, seed), Wire::new(back, seed.wrapping_add(1))];
        let (stop, stopped) = oneshot::channel();
        let carrier = thread::Builder::new()
            .name("link".to_owned())
            .spawn(move || runtime.block_on(carry(&taps, wires, stopped)))?;
        Ok(Self { stop, carrier })
    }

    /// Takes it away; what became of the frames of both directions.
    pub(super) fn stop(self) -> Result<Counts, Error> {
        // If it has ended already, its error is told below.
        let _ = self.stop.send(());
        let counts = self.carrier.join().map_err(|_| "a link has failed")?;
        Ok(counts.map_err(|error| format!("a link carries no frames: {error}"))?)
    }
}

fn tap(name: String) -> Result<Tun, Error> {
    let made = Tun::builder().name(&name).tap().up().build();
    let mut made = made.map_err(|error| format!("TAP device {name}: {error}"))?;
    made.pop().ok_or_else(|| format!("TAP device {name} was not made").into())
}

/// Carries frames until it is told to stop, or whoever could tell it is gone.
async fn carry(
    [a, b]: &[Tun; 2],
    [mut there, mut back]: [Wire; 2],
    mut stopped: oneshot::Receiver<()>,
) -> io::Result<Counts> {
    let began = Instant::now();
    let (mut from_a, mut from_b) = ([0; FRAME], [0; FRAME]);
    loop {
        deliver(&mut there, began, b).await?;
        deliver(&mut back, began, a).await?;
        let next = there.next_at().into_iter().chain(back.next_at()).min();
        select! {
            _ = &mut stopped => return Ok(there.counts() + back.counts()),
            size = a.recv(&mut from_a) => there.push(began.elapsed(), &from_a[..size?]),
            size = b.recv(&mut from_b) => back.push(began.elapsed(), &from_b[..size?]),
            () = sleep_until(began + next.unwrap_or(Duration::MAX / 4)), if next.is_some() => {}
        }
    }
}

/// Hands over what has arrived by now.
async fn deliver(wire: &mut Wire, began: Instant, to: &Tun) -> io::Result<()> {
    while let Some(frame) = wire.pop(began.elapsed()) {
        to.send(&frame).await?;
    }
    Ok(())
}
