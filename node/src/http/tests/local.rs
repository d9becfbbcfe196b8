//! What operators ask of one node.

use super::*;

#[tokio::test]
async fn a_node_without_a_folder_for_backups_makes_none() {
    let url = silent().await;
    let (status, kind, detail) = problem(client().post(format!("{url}/v1/backups"))).await;
    assert_eq!((status, kind.as_str()), (403, "no-backup-folder"));
    assert!(detail.contains("--backup-dir"), "{detail}");
    let unknown = post(&format!("{url}/v1/backups"), JSON, r#"{"path":"/etc"}"#);
    assert_eq!(problem(unknown).await.0, 400);
}

#[tokio::test]
async fn a_recovery_names_who_is_given_up() {
    let asked = Arc::new(Mutex::new(None));
    let seen = asked.clone();
    let url = node(move |request| {
        *seen.lock().expect("not poisoned") = Some(request.clone());
        match request {
            Request::Recover { accept_loss: true, lost, .. } => {
                Response::Recovered { members: [fake::NODE].into(), lost }
            }
            _ => Response::Refused(Refusal::NotRecoverable("two groups may act".to_owned())),
        }
    })
    .await;
    let url = format!("{url}/v1/pipelines/p/recover");
    let (status, kind, detail) = problem(client().post(&url)).await;
    assert_eq!((status, kind.as_str()), (409, "not-recoverable"));
    assert!(detail.contains("two groups"), "{detail}");
    let lost = "01".repeat(16);
    let body = json!({ "lost": [&lost], "accept_loss": true }).to_string();
    let (status, _, done) = json_of(post(&url, JSON, body)).await;
    assert_eq!((status, &done["lost"][0]), (200, &json!(lost)), "{done}");
    let request = asked.lock().expect("not poisoned").clone();
    assert!(matches!(request, Some(Request::Recover { lost, .. }) if lost.len() == 1));
    for wrong in ["elm", "01", ""] {
        let body = json!({ "lost": [wrong] }).to_string();
        let (status, kind, _) = problem(post(&url, JSON, body)).await;
        assert_eq!((status, kind.as_str()), (400, "bad-node-id"));
    }
}

#[tokio::test]
async fn logs_of_a_program_that_has_its_own_are_not_changed() {
    let url = silent().await;
    let url = format!("{url}/v1/node/log-levels");
    assert_eq!(problem(client().get(&url)).await.1, "foreign-logs");
    let set = client().put(&url).body(r#"{"set":["debug"]}"#);
    assert_eq!(problem(set).await.1, "foreign-logs");
}
