//! A program with phases of its own is a node like any other.

use carbonmesh_tests::World;
use serde_json::json;

#[tokio::test]
async fn phases_in_rust_run_and_fail_as_commands_do() {
    let mut world = World::of("rust-node");
    world.start("a", "", String::new());
    let api = world.api("a");
    api.apply(&json!({ "name": "hello", "phases": ["greet"] })).await.unwrap();
    let done = api.enqueue_with("hello", &json!({ "name": "Ada" }), "?wait=30s").await.unwrap();
    assert_eq!(done.body["result"]["greeting"], "Hello, Ada!", "{:?}", done.body);
    let dead = api.enqueue_with("hello", &json!({ "name": 7 }), "?wait=30s").await.unwrap();
    assert_eq!(dead.body["state"], "dead", "{:?}", dead.body);
    assert!(
        dead.body.to_string().contains("at `name`: invalid type: integer `7`"),
        "{:?}",
        dead.body
    );
}
