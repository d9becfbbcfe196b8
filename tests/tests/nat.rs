//! Two nodes, each behind a router of its own that lets nobody in, run a pipeline through a third that
//! both can dial: by way of it, or directly once they have made a hole through both routers.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

use carbonmesh_examples::local::program;

/// Runs a shell script in namespaces of its own, in which it may make hosts and networks.
fn isolated(nat: &str, script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args(["--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["sh", "-c", script])
        .env("NODE", program("carbonmesh").unwrap())
        .env("DIR", folder.path())
        .env("NAT", nat)
        .env("CARBONMESH_SECRET", "correct horse battery")
        .output()
        .unwrap()
}

/// The public host `r`, and the hosts `a` and `b` behind the routers `ra` and `rb`. Both have the same
/// address, as so many do; what comes to a router from outside and was not asked for is dropped.
const HOSTS: &str = r#"
    set -e
    PATH=$PATH:/usr/sbin:/sbin
    mount -t tmpfs none /run
    for host in r ra rb a b; do
        ip netns add $host; ip -n $host link set lo up
    done
    ip -n r link add br0 type bridge; ip -n r link set br0 up
    ip -n r addr add 203.0.113.1/24 dev br0
    n=11
    for host in a b; do
        ip link add wan netns r$host type veth peer name to_$host netns r
        ip -n r link set to_$host master br0 up
        ip -n r$host addr add 203.0.113.$n/24 dev wan; ip -n r$host link set wan up
        n=$((n + 1))
        ip link add lan netns r$host type veth peer name eth0 netns $host
        ip -n r$host addr add 192.168.1.1/24 dev lan; ip -n r$host link set lan up
        ip -n $host addr add 192.168.1.2/24 dev eth0; ip -n $host link set eth0 up
        ip -n $host route add default via 192.168.1.1
        ip netns exec r$host sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
        ip netns exec r$host nft -f - <<RULES
            table ip nat {
                chain out { type nat hook postrouting priority 100; oifname "wan" $NAT; }
            }
            table ip filter {
                chain in {
                    type filter hook input priority 0;
                    iifname "wan" ct state established,related accept
                    iifname "wan" drop
                }
                chain through {
                    type filter hook forward priority 0;
                    iifname "wan" ct state established,related accept
                    iifname "wan" drop
                }
            }
RULES
    done
"#;

/// `r` does no work and keeps nothing: all that is work goes between `a` and `b`, who each have one of
/// the pipeline's two phases.
const CLUSTER: &str = r#"
    nodes=
    up() {
        host=$1; shift
        ip netns exec $host $NODE up --name $host --data-dir $DIR/$host --no-mdns "$@" \
            >$DIR/$host.log 2>&1 &
        nodes="$nodes $!"
    }
    metric() {
        ip netns exec $1 python3 -c '
import sys, urllib.request
text = urllib.request.urlopen("http://127.0.0.1:7400/metrics", timeout=5).read().decode()
lines = [line for line in text.splitlines() if line.startswith("carbonmesh_" + sys.argv[1])]
print(lines[0].split()[-1] if lines else 0)' "$2"
    }
    await() {
        tries=0
        until "$@"; do
            tries=$((tries + 1))
            if [ $tries -ge 300 ]; then
                echo "gave up: $*"; tail -n 40 $DIR/*.log; exit 1
            fi
            sleep 0.2
        done
    }
    alive() { ip netns exec $1 $NODE status 2>/dev/null | grep -q "$2 alive"; }
    is() { [ "$(metric "$1" "$2" 2>/dev/null)" = "$3" ]; }

    printf '[phases.left]\nslots = 4\ncommand = ["sed", "s/left/right/"]\n' >$DIR/a.toml
    printf '[phases.right]\nslots = 4\ncommand = ["sed", "s/right/done/"]\n' >$DIR/b.toml
    up r --role gateway --relay
    await alive r 1
    up a --config $DIR/a.toml --peer 203.0.113.1:7401
    up b --config $DIR/b.toml --peer 203.0.113.1:7401
    for host in r a b; do await alive $host 3; done
"#;

const WORK: &str = r#"
    cat >$DIR/p.toml <<PIPELINE
name = "p"
[[phases]]
name = "one"
phase = "left"
[[phases]]
name = "two"
phase = "right"
PIPELINE
    ip netns exec a $NODE pipeline apply $DIR/p.toml
    for number in 1 2 3 4 5 6 7 8 9 10; do
        ip netns exec r $NODE enqueue p "{\"say\": \"left\", \"number\": $number}" --wait=60s \
            || { tail -n 40 $DIR/*.log; exit 1; }
    done
"#;

const END: &str = "
    kill $nodes; wait || true
";

fn run(nat: &str, then: &str) -> Option<String> {
    if !isolated(nat, HOSTS).status.success() {
        println!(
            "skipped: this system lets nobody make network namespaces that translate addresses, or \
             has no ip or nft (Debian: iproute2, nftables)"
        );
        return None;
    }
    let output = isolated(nat, &format!("{HOSTS}{CLUSTER}{then}{WORK}{END}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// How many jobs have gone through both phases.
fn done(text: &str) -> usize {
    text.matches(r#""say":"done""#).count()
}

#[test]
fn behind_routers_that_change_every_port_nodes_work_through_a_relay() {
    // A port that is another for each destination cannot be guessed.
    let relayed = r#"
        await is a network_peers_relayed 1; await is b network_peers_relayed 1
        relays() { [ "$(metric r relay_circuits)" -ge 1 ]; }
        await relays
        echo RELAYED
    "#;
    let Some(text) = run("masquerade fully-random", relayed) else { return };
    assert!(text.contains("RELAYED") && done(&text) == 10, "{text}");
}

#[test]
fn behind_routers_that_keep_ports_nodes_connect_directly() {
    let direct = "
        await is a network_peers_relayed 0; await is b network_peers_relayed 0
        grep -hc 'connected directly' $DIR/a.log $DIR/b.log | sort -n | tail -n 1 | grep -vq '^0'
        echo DIRECT
    ";
    let Some(text) = run("masquerade", direct) else { return };
    assert!(text.contains("DIRECT") && done(&text) == 10, "{text}");
}
