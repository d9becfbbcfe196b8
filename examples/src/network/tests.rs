//! A real link between two namespaces. The test starts itself again within namespaces of its own; where
//! nobody may make them, it says so.

use std::{
    collections::BTreeSet,
    env,
    net::{SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use super::{isolation::ISOLATE, *};

const PATIENCE: Duration = Duration::from_secs(30);
const DELAY: Duration = Duration::from_millis(150);

/// A datagram that only the end of the test sends.
const END: [u8; 4] = [255; 4];

#[test]
fn frames_are_late_lost_doubled_and_overtaken_between_namespaces() {
    if !can_isolate() || !can_worsen() {
        return println!("not tried: this user may make no namespaces or TAP devices here");
    }
    let own = "network::tests::within_namespaces";
    let done = Command::new(ISOLATE[0])
        .args(&ISOLATE[1..])
        .arg(env::current_exe().unwrap())
        .args(["--ignored", "--exact", own, "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    assert!(told.contains("1 passed"), "{told}");
}

#[test]
#[ignore = "the test above starts it within namespaces"]
fn within_namespaces() {
    let mut network = Network::new(2).unwrap();
    let (near, far) = (socket(&network, 0), socket(&network, 1));
    let echo = far.try_clone().unwrap();
    thread::spawn(move || {
        let mut datagram = [0; 4];
        while let Ok((_, from)) = echo.recv_from(&mut datagram) {
            echo.send_to(&datagram, from).unwrap();
        }
    });
    let peer = far.local_addr().unwrap();
    assert!(round_trip(&near, peer) < DELAY);

    let slow = Quality { delay_ms: DELAY.as_millis() as u64, ..Quality::default() };
    network.worsen(0, [slow; 2], 1).unwrap();
    assert!(round_trip(&near, peer) >= DELAY * 2);
    let counts = network.heal().unwrap();
    assert!(counts[0].1.sent > 0, "{counts:?}");
    let began = Instant::now();
    while round_trip(&near, peer) >= DELAY {
        assert!(began.elapsed() < PATIENCE, "it stays slow");
    }

    // Percentages that leave nothing to chance with so many datagrams.
    let lossy = Quality { delay_ms: 5, jitter_ms: 1, lost: 20, twice: 20, overtaken: 20 };
    network.worsen(1, [lossy; 2], 2).unwrap();
    let numbers = echoes(&near, peer, 400);
    let distinct: BTreeSet<u32> = numbers.iter().copied().collect();
    assert!(distinct.len() < 400, "none is lost");
    assert!(distinct.len() < numbers.len(), "none comes twice");
    assert!(!numbers.is_sorted(), "none is overtaken");
    network.heal().unwrap();
}

/// A socket of a node.
fn socket(network: &Network, node: usize) -> UdpSocket {
    let address: SocketAddr = network.listen(node).parse().unwrap();
    let within = move || {
        setns(File::open(Network::namespace(node)).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        UdpSocket::bind((address.ip(), 0)).unwrap()
    };
    thread::spawn(within).join().unwrap()
}

/// How long a datagram takes there and back; it is sent again now and then, since the first ones may
/// be lost while the network learns where everybody is.
fn round_trip(near: &UdpSocket, peer: SocketAddr) -> Duration {
    near.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let began = Instant::now();
    for number in 0_u32.. {
        let sent = Instant::now();
        near.send_to(&number.to_be_bytes(), peer).unwrap();
        let mut datagram = [0; 4];
        // Late answers to earlier ones are none.
        while let Ok(4) = near.recv(&mut datagram) {
            if datagram == number.to_be_bytes() {
                return sent.elapsed();
            }
        }
        assert!(began.elapsed() < PATIENCE, "nothing comes back");
    }
    unreachable!()
}

/// Sends so many numbers; those that come back, as they do.
fn echoes(near: &UdpSocket, peer: SocketAddr, count: u32) -> Vec<u32> {
    near.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut numbers = Vec::new();
    let mut datagram = [0; 4];
    for number in 0..count {
        near.send_to(&number.to_be_bytes(), peer).unwrap();
        thread::sleep(Duration::from_micros(500));
    }
    let began = Instant::now();
    loop {
        match near.recv(&mut datagram) {
            Ok(_) if datagram == END => return numbers,
            Ok(_) => numbers.push(u32::from_be_bytes(datagram)),
            // All that came is read; the end may be lost too.
            Err(_) => {
                near.send_to(&END, peer).unwrap();
            }
        }
        assert!(began.elapsed() < PATIENCE, "the end does not come back");
    }
}
