//! Two namespaces in one cluster: equal names, apart from each other in jobs, workers, values and tokens.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::World;
use serde_json::{Value, json};

const SECRETS: &str = r#"
[[scope]]
secrets = { WHOSE = "the default one" }

[[scope]]
namespace = "team"
secrets = { WHOSE = "that of the team" }
"#;

const CONFIG: &str = r#"
[phases.say]
command = ['sh', '-c', 'cat >/dev/null; printf "{\"node\": \"NODE\", \"whose\": \"%s\"}" "$WHOSE"']
"#;

fn run(world: &World, words: &[&str], token: Option<&str>) -> Output {
    let mut command = Command::new(program("carbonmesh").unwrap());
    command.args(["--api", world.cluster.http("a").unwrap(), "-o", "json"]).args(words);
    command.env_remove("CARBONMESH_NAMESPACE").env_remove("CARBONMESH_TOKEN");
    if let Some(token) = token {
        command.env("CARBONMESH_TOKEN", token);
    }
    command.output().unwrap()
}

fn done(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn names(document: &Value, list: &str, key: &str) -> Vec<String> {
    let all = document[list].as_array().unwrap().iter();
    all.map(|one| one[key].as_str().unwrap_or_default().to_owned()).collect()
}

/// A token for one namespace: its entry is in the file, itself it is given back.
fn token(world: &World, file: &str, name: &str, namespace: &str) -> String {
    let made = Command::new(program("carbonmesh").unwrap())
        .args(["-o", "json", "token", "create", "--name", name, "--append", file])
        .args(["--scope", "read,enqueue,jobs,pipelines", "--namespaces", namespace])
        .current_dir(world.cluster.folder())
        .output()
        .unwrap();
    done(&made)["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn two_namespaces_with_equal_names_share_a_cluster_and_nothing_else() {
    let mut world = World::default();
    let folder = world.cluster.folder().to_owned();
    let at = |name: &str| folder.join(name);
    let (tokens, secrets) = (at("tokens.toml").display().to_string(), at("secrets.toml"));
    fs::write(&secrets, SECRETS).unwrap();
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o600)).unwrap();
    let own = token(&world, &tokens, "own", "default");
    let team = token(&world, &tokens, "team", "team");
    for (name, args) in [
        ("a", vec!["--role", "gateway,replica", "--tokens-file", &tokens]),
        ("b", vec!["--role", "worker"]),
        ("c", vec!["--role", "worker", "--namespace", "team"]),
    ] {
        let is_worker = name != "a";
        let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        if is_worker {
            args.extend(["--secrets-file".to_owned(), secrets.display().to_string()]);
        }
        let config = if is_worker { CONFIG.replace("NODE", name) } else { String::new() };
        let options = NodeOptions { args, config, ..NodeOptions::default() };
        world.cluster.start(name, options).unwrap();
    }

    // The same file and the same key, in each namespace.
    let pipeline = at("p.json");
    fs::write(&pipeline, json!({ "name": "p", "phases": ["say"] }).to_string()).unwrap();
    let pipeline = pipeline.display().to_string();
    let as_own = |words: &[&str]| run(&world, words, Some(&own));
    let as_team =
        |words: &[&str]| run(&world, &[words, &["--namespace", "team"]].concat(), Some(&team));
    assert_eq!(done(&as_own(&["pipeline", "apply", &pipeline]))["name"], "p");
    assert_eq!(done(&as_team(&["pipeline", "apply", &pipeline]))["name"], "team/p");
    let enqueue = ["enqueue", "p", "{}", "--id", "k", "--wait=60s"];
    let (mine, theirs) = (done(&as_own(&enqueue)), done(&as_team(&enqueue)));
    assert_eq!(mine["result"], json!({ "node": "b", "whose": "the default one" }), "{mine}");
    assert_eq!(theirs["result"], json!({ "node": "c", "whose": "that of the team" }), "{theirs}");
    assert_eq!((&mine["pipeline"], &theirs["pipeline"]), (&json!("p"), &json!("team/p")));

    // Each sees its own.
    let seen = |output: Output| names(&done(&output), "pipelines", "name");
    assert_eq!(seen(as_own(&["pipeline", "ls"])), ["p"]);
    assert_eq!(seen(as_team(&["pipeline", "ls"])), ["team/p"]);
    let offered = |output: Output| names(&done(&output), "phases", "phase");
    assert_eq!(offered(as_own(&["phase", "ls"])), ["say"]);
    assert_eq!(offered(run(&world, &["phase", "ls"], Some(&team))), ["team/say"]);
    let jobs = done(&as_team(&["job", "ls", "p"]));
    assert_eq!(names(&jobs, "jobs", "id"), [theirs["id"].as_str().unwrap()]);

    // And nothing of the other's, by name, by id or by default.
    for words in [
        &["pipeline", "show", "p"] as &[&str],
        &["enqueue", "default/p", "{}"],
        &["pipeline", "rm", "p"],
        &["job", "show", mine["id"].as_str().unwrap()],
        &["job", "retry", mine["id"].as_str().unwrap()],
        &["events", "p"],
        &["handler", "ls"],
    ] {
        let refused = run(&world, words, Some(&team));
        let error = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{words:?}: {error}");
    }
    assert!(as_team(&["events", "p"]).status.success());
}
