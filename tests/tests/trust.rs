//! Clusters of real processes that go by certificates: from the keys to the end of a node.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World, text};
use serde_json::Value;

/// The keys of a cluster, and the program that uses them.
struct Operator {
    folder: PathBuf,
}

impl Operator {
    fn new(world: &World) -> Self {
        let folder = world.cluster.folder().join("operator");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("passphrase"), "correct horse battery\n").unwrap();
        let operator = Self { folder };
        operator.run(&["init", "keys", "--passphrase-file", "passphrase"]);
        operator
    }

    fn try_run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(program("carbonmesh").unwrap());
        command.current_dir(&self.folder).arg("cluster").args(args).output().unwrap()
    }

    fn run(&self, args: &[&str]) -> String {
        let done = self.try_run(args);
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{args:?}: {error}");
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    fn invite(&self, args: &[&str]) -> String {
        // No node is asked for addresses: the tests give their own.
        let fixed = ["--api", "http://127.0.0.1:1", "invite", "--keys", "keys"];
        self.run(&[&fixed[..], args].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn joining(world: &World, node: &str, file: &Path) -> NodeOptions {
    let config = world.phase(node, "step", "echo '{}'");
    let args = vec!["--join-file".to_owned(), file.display().to_string()];
    NodeOptions { config, args, ..NodeOptions::default() }
}

fn invited(world: &World, node: &str, token: &str) -> NodeOptions {
    let config = world.phase(node, "step", "echo '{}'");
    let env = vec![("CARBONMESH_JOIN".to_owned(), token.to_owned())];
    NodeOptions { config, env, ..NodeOptions::default() }
}

async fn await_trust(world: &World, node: &str, what: &str, holds: impl Fn(&Value) -> bool) {
    let api = world.api(node);
    let began = Instant::now();
    loop {
        let trust = api.get("/v1/trust").await.unwrap().body;
        if holds(&trust) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{node}: {what}: {trust}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn three_nodes_join_by_invitation_and_a_revoked_one_is_out() {
    let mut world = World::default();
    let operator = Operator::new(&world);
    for secret in ["root.key", "issuer.key", "first-node.join"] {
        let mode = fs::metadata(operator.path("keys").join(secret)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
    }
    let first = joining(&world, "a", &operator.path("keys/first-node.join"));
    world.cluster.start("a", first).unwrap();
    let all = "worker,replica,gateway";
    let token = operator.invite(&["--role", all, "--expires", "1h"]);
    let options = invited(&world, "b", &token);
    world.cluster.start("b", options).unwrap();
    let options = invited(&world, "c", &token);
    world.cluster.start("c", options).unwrap();
    let token = operator.invite(&["--role", "worker", "--phase", "step"]);
    let options = invited(&world, "w", &token);
    world.cluster.start("w", options).unwrap();
    world.await_members("a", 4).await;

    // The hour that the invitation lasts has become 90 days by itself.
    for name in ["b", "c", "w"] {
        let month = 30 * 24 * 3600;
        await_trust(&world, name, "renewed", |trust| {
            let number = |field: &str| trust[field].as_u64().unwrap_or_default();
            number("expires_s") > number("not_before_s") + month
        })
        .await;
    }
    world.apply("a", 2).await;
    let jobs = world.enqueue("b", 20).await;
    world.await_done("a", &jobs).await;

    // A worker neither takes jobs nor shows them.
    let refused = world.api("w").enqueue_bulk("p", &[serde_json::json!({})]).await;
    let refused = format!("{refused:?}");
    assert!(refused.contains("gateway"), "{refused}");

    // Shut out by its name: the others cut it off, and go on without it.
    let api = world.cluster.http("a").unwrap().to_owned();
    let id = world.cluster.id("c").unwrap().to_owned();
    let said = operator.run(&["--api", &api, "revoke", "c", "--keys", "keys"]);
    assert!(said.contains(&id), "{said}");
    let began = Instant::now();
    world.await_members("c", 1).await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    for name in ["a", "b", "w"] {
        await_trust(&world, name, "knows who is out", |trust| {
            trust["revoked"].as_array().is_some_and(|all| all.iter().any(|one| one["key"] == *id))
        })
        .await;
        let nodes = world.api(name).get("/v1/nodes").await.unwrap().body;
        assert!(!nodes.to_string().contains(&id), "{name} has it still: {nodes}");
    }
    let more = world.enqueue("b", 20).await;
    world.await_done("a", &more).await;

    // Members that start again know it still, and need no invitation.
    world.cluster.stop("b").unwrap();
    let config = world.phase("b", "step", "echo '{}'");
    world.cluster.start("b", NodeOptions { config, ..NodeOptions::default() }).unwrap();
    world.await_members("a", 3).await;
    world.await_members("b", 3).await;
    let last = world.enqueue("b", 5).await;
    world.await_done("a", &last).await;
    let log = world.cluster.log("a");
    assert!(log.contains("shut out of the cluster"), "{log}");
}

#[tokio::test]
async fn what_does_not_belong_together_is_told() {
    let mut world = World::default();
    let operator = Operator::new(&world);
    let again = operator.try_run(&["init", "keys", "--passphrase-file", "passphrase"]);
    assert_eq!(again.status.code(), Some(2));
    fs::write(operator.path("wrong"), "another passphrase").unwrap();
    let wrong = ["issuer", "second", "--keys", "keys", "--passphrase-file", "wrong"];
    let wrong = operator.try_run(&wrong);
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(error.contains("does not open"), "{error}");
    let long =
        operator.try_run(&["invite", "--keys", "keys", "--role", "worker", "--expires", "91d"]);
    assert!(String::from_utf8_lossy(&long.stderr).contains("90d"));

    let token = operator.invite(&["--role", "worker"]);
    let mut refused = |name: &str, roles: &str, more: (&str, &str), words: &str| {
        let mut options = invited(&world, name, &token);
        options.roles = roles.to_owned();
        options.env.push((more.0.to_owned(), more.1.to_owned()));
        let error = world.cluster.start(name, options).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    };
    refused("s", "", ("CARBONMESH_SECRET", "a secret beside it"), "goes by one of both");
    refused("r", "replica", ("NOTHING", ""), "grants worker only");
    refused("n", "", ("CARBONMESH_CLUSTER", "other"), "says which cluster");
    refused("t", "", ("CARBONMESH_JOIN", &token[..token.len() - 9]), "no invitation");
}

#[tokio::test]
async fn an_issuer_is_replaced_while_the_cluster_works() {
    let mut world = World::default();
    let operator = Operator::new(&world);
    let first = joining(&world, "a", &operator.path("keys/first-node.join"));
    world.cluster.start("a", first).unwrap();
    let all = ["--role", "worker,replica,gateway"];
    let options = invited(&world, "b", &operator.invite(&all));
    world.cluster.start("b", options).unwrap();
    world.await_members("a", 2).await;
    world.apply("a", 1).await;

    // Issuers are told apart by age, in seconds.
    let made_at = fs::metadata(operator.path("keys/issuer.key")).unwrap().modified().unwrap();
    while made_at.elapsed().unwrap_or_default() < Duration::from_secs(2) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let made = ["issuer", "second", "--keys", "keys", "--passphrase-file", "passphrase"];
    operator.run(&made);
    let by_second = ["--api", "http://127.0.0.1:1", "invite", "--keys", "second"];
    let token = operator.run(&[&by_second[..], &all].concat());
    let options = invited(&world, "c", &token);
    world.cluster.start("c", options).unwrap();
    world.await_members("a", 3).await;
    let jobs = world.enqueue("c", 10).await;
    world.await_done("b", &jobs).await;

    // One by one the others come over to the new one; somebody is always there.
    world.cluster.stop("a").unwrap();
    let again = joining(&world, "a", &operator.path("second/first-node.join"));
    world.cluster.start("a", again).unwrap();
    let issuers = ["keys", "second"].map(|keys| issuer_of(&operator, keys));
    for name in ["a", "b", "c"] {
        await_trust(&world, name, "the new issuer's", |it| it["chain"][0] == *issuers[1]).await;
    }
    world.cluster.stop("b").unwrap();
    let token = operator.run(&[&by_second[..], &all, &["--renews"]].concat());
    let options = invited(&world, "b", &token);
    world.cluster.start("b", options).unwrap();
    await_trust(&world, "b", "the new issuer's", |trust| trust["chain"][0] == *issuers[1]).await;
    world.await_members("a", 3).await;

    // Nobody needs the old one now.
    let api = world.cluster.http("a").unwrap().to_owned();
    let old = ["--api", &api, "revoke", &issuers[0], "--keys", "keys"];
    let denied = operator.run(&old);
    assert!(denied.contains("shut out"), "an issuer's word about itself is taken, and counts not");
    let root = ["--root", "--passphrase-file", "passphrase"];
    operator.run(&[&old[..], &root].concat());
    let late = invited(&world, "late", &operator.invite(&all));
    world.cluster.start("late", late).unwrap();
    let more = world.enqueue("c", 10).await;
    world.await_done("b", &more).await;
    world.await_members("a", 3).await;
    world.await_members("late", 1).await;
}

/// The id of the issuer whose keys lie there.
fn issuer_of(operator: &Operator, keys: &str) -> String {
    let shown = operator.run(&["-o", "json", "show", "--keys", keys]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    text(&shown["issuer"])
}

#[tokio::test]
async fn the_root_is_changed_while_the_cluster_works() {
    let mut world = World::default();
    let operator = Operator::new(&world);
    let first = joining(&world, "a", &operator.path("keys/first-node.join"));
    world.cluster.start("a", first).unwrap();
    let all = ["--role", "worker,replica,gateway", "--expires", "1h"];
    let token = operator.invite(&all);
    for name in ["b", "c"] {
        let options = invited(&world, name, &token);
        world.cluster.start(name, options).unwrap();
    }
    world.await_members("a", 3).await;
    world.apply("a", 1).await;
    // An issuer that is not taken over: what it gives ends with the old root.
    operator.run(&["issuer", "other", "--keys", "keys", "--passphrase-file", "passphrase"]);
    let no_node = ["--api", "http://127.0.0.1:1"];
    let by_other = operator.run(&[&no_node[..], &["invite", "--keys", "other"], &all].concat());

    fs::write(operator.path("passphrase-2"), "correct horse battery 2\n").unwrap();
    let rotate = [
        "rotate-root",
        "keys-2",
        "--keys",
        "keys",
        "--ends",
        "5s",
        "--passphrase-file",
        "passphrase",
        "--new-passphrase-file",
        "passphrase-2",
    ];
    // Where no node listens it is made all the same, and told later.
    let unheard = operator.try_run(&[&no_node[..], &rotate].concat());
    let error = String::from_utf8_lossy(&unheard.stderr).into_owned();
    assert!(!unheard.status.success() && error.contains("tells it again"), "{error}");
    let api = world.cluster.http("b").unwrap().to_owned();
    let told = operator.run(&[&["--api", &api, "-o", "json"][..], &rotate].concat());
    let told: Value = serde_json::from_str(&told).unwrap();
    let mode = fs::metadata(operator.path("keys-2/root.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let follows = |trust: &Value| {
        let roots = trust["roots"].as_array().map_or(&[][..], Vec::as_slice);
        roots.last().is_some_and(|last| last["id"] == told["root"])
            && trust["cluster"] == told["cluster"]
    };
    for name in ["a", "b", "c"] {
        await_trust(&world, name, "the new root's", follows).await;
    }
    let jobs = world.enqueue("b", 10).await;
    world.await_done("a", &jobs).await;

    // A new node under the new root; one of the old ones starts again.
    let invite = [&no_node[..], &["invite", "--keys", "keys-2"], &all].concat();
    let options = invited(&world, "d", &operator.run(&invite));
    world.cluster.start("d", options).unwrap();
    world.await_members("a", 4).await;
    world.cluster.stop("c").unwrap();
    let config = world.phase("c", "step", "echo '{}'");
    world.cluster.start("c", NodeOptions { config, ..NodeOptions::default() }).unwrap();
    world.await_members("d", 4).await;

    // The old root's time is over: what it alone has signed lets nobody in.
    let trust = world.api("a").get("/v1/trust").await.unwrap().body;
    let ends_s = trust["roots"][0]["ends_s"].as_u64().unwrap();
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    while now_s() <= ends_s {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let options = invited(&world, "x", &by_other);
    world.cluster.start("x", options).unwrap();
    await_log(&world, "x", "this node's certificate is not valid now").await;
    // An older invitation by the issuer that was taken over is still good, and nobody was lost.
    let options = invited(&world, "e", &token);
    world.cluster.start("e", options).unwrap();
    world.await_members("a", 5).await;
    world.await_members("e", 5).await;
    await_trust(&world, "e", "the new root's", follows).await;
    let more = world.enqueue("e", 10).await;
    world.await_done("d", &more).await;
}

async fn await_log(world: &World, node: &str, words: &str) {
    let began = Instant::now();
    while !world.cluster.log(node).contains(words) {
        assert!(began.elapsed() < PATIENCE, "{node} never said: {words}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
