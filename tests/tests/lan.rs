//! Two hosts on one network find each other without being told where.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

use carbonmesh_examples::local::program;

/// Runs a shell script in namespaces of its own, in which it may make hosts and networks.
fn isolated(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args(["--map-root-user", "--mount", "--net", "sh", "-c", script])
        .env("NODE", program("carbonmesh").unwrap())
        .env("DIR", folder.path())
        .env("CARBONMESH_SECRET", "correct horse battery")
        .output()
        .unwrap()
}

const HOSTS: &str = "
    set -e
    mount -t tmpfs none /run
    ip netns add a; ip netns add b
    ip link add va netns a type veth peer name vb netns b
    n=1
    for host in a b; do
        ip -n $host link set lo up
        ip -n $host addr add 10.99.0.$n/24 dev v$host
        ip -n $host link set v$host up
        ip -n $host route add default dev v$host
        n=2
    done
";

#[test]
fn nodes_on_one_network_find_each_other() {
    if !isolated(HOSTS).status.success() {
        return println!("skipped: this system lets nobody make network namespaces, or has no ip");
    }
    let output = isolated(&format!(
        "{HOSTS}
         for host in a b; do
             ip netns exec $host timeout 60 $NODE up --name $host --data-dir $DIR/$host \
                 >$DIR/$host.log 2>&1 &
         done
         tries=0
         until ip netns exec a $NODE status 2>/dev/null | grep -q '2 alive'; do
             tries=$((tries + 1)); [ $tries -lt 400 ] || break
             sleep 0.1
         done
         ip netns exec a $NODE node ls || cat $DIR/a.log
         kill $(jobs -p); wait || true"
    ));
    let text = String::from_utf8_lossy(&output.stdout);
    let alive = text.lines().filter(|line| line.contains("alive")).count();
    assert_eq!(alive, 2, "{text}\n{output:?}");
}
