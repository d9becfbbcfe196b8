//! Secrets of a node: its phases have them, and nobody else ever sees them.

use std::{fs, os::unix::fs::PermissionsExt};

use carbonmesh_examples::local::NodeOptions;
use carbonmesh_tests::{World, text};
use serde_json::json;

const SECRET: &str = "hunter2-hunter2";

const SECRETS: &str = r#"
[[scope]]
values = { REGION = "eu" }

[[scope]]
pipeline = "orders*"
secrets = { LEDGER_KEY = "hunter2-hunter2" }
"#;

const HANDLERS: &str = r#"
from carbonmesh import Fatal, Phase

class Book(Phase):
    job_type = 'book'
    def execute(self, instructions):
        scope = self.context.scope
        self.logger.info('the key is %s', scope.get('LEDGER_KEY'))
        print('printed', scope.get('LEDGER_KEY'))
        if instructions.get('fail'):
            raise Fatal('refused: %s' % scope.get('LEDGER_KEY'))
        return {'region': scope.get('REGION'), 'length': len(scope.get('LEDGER_KEY', ''))}
"#;

const CONFIG: &str = r#"
[phases.check]
command = ['sh', '-c', 'cat >/dev/null; echo key $LEDGER_KEY >&2; printf "{\"chars\": %d}" ${#LEDGER_KEY}; [ ${#LEDGER_KEY} -gt 0 ]']
"#;

#[tokio::test]
async fn phases_have_their_secrets_and_nobody_else_sees_them() {
    let mut world = World::default();
    let at = |name: &str| world.cluster.folder().join(name);
    let (secrets, handlers) = (at("secrets.toml"), at("handlers.py"));
    fs::write(&secrets, SECRETS).unwrap();
    fs::write(&handlers, HANDLERS).unwrap();
    let options = |secrets: &std::path::Path| NodeOptions {
        config: format!("{CONFIG}[hosts.book]\nfile = {:?}\n", handlers.display()),
        args: vec!["--secrets-file".to_owned(), secrets.display().to_string()],
        env: vec![("XDG_CACHE_HOME".to_owned(), at("cache").display().to_string())],
        ..NodeOptions::default()
    };

    // One that others may read is none.
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).unwrap();
    let started = options(&secrets);
    let allowed = options(&secrets);
    let error = world.cluster.start("a", started).unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    fs::set_permissions(&secrets, fs::Permissions::from_mode(0o600)).unwrap();
    world.cluster.start("a", allowed).unwrap();

    let api = world.api("a");
    for (name, phase) in [("orders", "book"), ("orders-check", "check"), ("others", "check")] {
        api.apply(&json!({ "name": name, "phases": [{ "name": phase, "max_attempts": 1 }] }))
            .await
            .unwrap();
    }
    let run = async |pipeline: &str, job| {
        api.enqueue_with(pipeline, &job, "?wait=30s").await.unwrap().body
    };
    let booked = run("orders", json!({})).await;
    assert_eq!(booked["result"], json!({ "region": "eu", "length": SECRET.len() }), "{booked}");
    let checked = run("orders-check", json!({})).await;
    assert_eq!(checked["result"]["chars"], SECRET.len(), "{checked}");
    // Another pipeline's phase of the same name has none, and says so by failing.
    let other = run("others", json!({})).await;
    assert_eq!(other["state"], "dead", "{other}");

    let failed = run("orders", json!({ "fail": true })).await;
    let error = text(&failed["invocations"][0]["attempts"][0]["error"]);
    assert!(error.contains("refused: [hidden]"), "{failed}");
    assert!(!failed.to_string().contains(SECRET), "{failed}");
    let log = world.cluster.log("a");
    assert!(log.contains("the key is [hidden]") && log.contains("printed [hidden]"), "{log}");
    assert!(log.contains("key [hidden]") && !log.contains(SECRET), "{log}");
}
