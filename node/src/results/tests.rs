//! Results on their way, to real files, a real HTTP server and a real mail server on this machine.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{JobId, NodeId, PipelineId, Term, Token},
    io::{Attempt, Outcome},
    pipeline::Handling,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;
use crate::{
    metrics::Metrics,
    phase::{News, OfferedPhase, Phase, PhaseRunner},
};

/// What a phase gave, or how it failed: the error, and whether it is tried again.
type Ended = Result<Value, (String, bool, Option<Duration>)>;

/// Runs one attempt of a phase of job `k/1` of pipeline `p` to its end.
async fn run_with(phase: Arc<dyn Phase>, input: String) -> Outcome {
    let pipeline = PipelineId::of_name("p");
    let term = Term { counter: 1, node: NodeId::from_bytes([1; 16]), boot: 1 };
    let attempt = Attempt {
        token: Token { term, sequence: 1 },
        job: JobId::of_key(pipeline, "k/1"),
        pipeline: "p".parse().unwrap(),
        step: "step".parse().unwrap(),
        phase: "phase".parse().unwrap(),
        number: 1,
        timeout: None,
        key: Some("k/1".to_owned()),
        instructions: input.into(),
        results: Vec::new(),
        names: None,
        gathered: Vec::new(),
        gives_items: false,
        handling: Handling::default(),
        sessions: Vec::new(),
        trace: None,
    };
    let (news, mut told) = mpsc::channel(1);
    let name = "phase".parse().unwrap();
    let offered = vec![OfferedPhase { name, slots: 1, timeout: None, phase }];
    let runner = PhaseRunner::new(offered, (1 << 20, 1 << 20), news, Metrics::default()).unwrap();
    runner.start(attempt);
    match told.recv().await.unwrap() {
        News::Ended(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

/// Runs a writer once, as a pipeline's `result` has it run.
async fn deliver(registry: &PhaseRegistry, phase: &str, input: Value) -> Ended {
    let registered = registry.iter().find(|(name, _)| *name == phase);
    let phase = registered.expect("it is offered").1.phase.clone();
    match run_with(phase, input.to_string()).await {
        Outcome::Succeeded(json) => Ok(serde_json::from_slice(&json).unwrap()),
        Outcome::Failed { error, retry, after } => Err((error, retry, after)),
        Outcome::Cancelled => panic!("nobody cancels it"),
    }
}

fn job() -> Value {
    let instructions = json!({ "n": 1, "a": "x" });
    json!({ "instructions": instructions, "results": [{ "a": "y" }, null, { "b": [1] }],
            "gathered": { "items": { "c": 3 }, "none": null } })
}

fn with(to: &str) -> Value {
    let mut input = job();
    input["to"] = to.into();
    input
}

fn merged() -> Value {
    json!({ "n": 1, "a": "y", "b": [1], "items": { "c": 3 } })
}

fn files(folder: &Path) -> PhaseRegistry {
    let file = Some(FileSettings { folder: folder.to_owned() });
    let settings = ResultSettings { file, ..ResultSettings::default() };
    settings.register(PhaseRegistry::default()).unwrap()
}

fn read(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[tokio::test]
async fn a_result_is_written_to_its_file_and_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let registry = files(folder.path());
    for _ in 0..2 {
        let given = deliver(&registry, WRITE_FILE, with("file:{pipeline}/{key}.json")).await;
        assert_eq!(given.unwrap(), json!({ "written": "p/k_1.json" }));
        assert_eq!(read(folder.path().join("p/k_1.json")), merged());
    }
    // No half of it is left beside.
    assert_eq!(fs::read_dir(folder.path().join("p")).unwrap().count(), 1);
    let alone = json!({ "to": "file:x", "result": { "only": true } });
    deliver(&registry, WRITE_FILE, alone).await.unwrap();
    assert_eq!(read(folder.path().join("x")), json!({ "only": true }));
}

#[tokio::test]
async fn no_file_is_written_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(other.path(), folder.path().join("link")).unwrap();
    let registry = files(folder.path());
    for to in ["file:../x", "file:/tmp/x", "file:link/x", "file:a/../../x", "file:d/"] {
        let (error, retry, _) = deliver(&registry, WRITE_FILE, with(to)).await.unwrap_err();
        assert!(!retry && error.contains("folder"), "{to}: {error}");
    }
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    let (error, retry, _) = deliver(&registry, WRITE_FILE, json!({ "a": 1 })).await.unwrap_err();
    assert!(!retry && error.contains("no `to`"), "{error}");
    // What passes is tried again.
    fs::write(folder.path().join("taken"), "").unwrap();
    let (error, retry, _) = deliver(&registry, WRITE_FILE, with("file:taken/x")).await.unwrap_err();
    assert!(retry && error.contains("cannot write"), "{error}");
}

/// A request as it came: its head, and its body.
type Got = (String, Vec<u8>);

/// An HTTP server that answers by turns; what comes is kept.
async fn receiver(answers: &[&str]) -> (String, Arc<Mutex<Vec<Got>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (got, mut answers) =
        (kept.clone(), answers.iter().map(|it| (*it).to_owned()).collect::<VecDeque<String>>());
    tokio::spawn(async move {
        while let (Ok((stream, _)), Some(answer)) = (listener.accept().await, answers.pop_front()) {
            let mut stream = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                stream.read_line(&mut head).await.unwrap();
            }
            let length = head.to_ascii_lowercase();
            let length = length.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            got.lock().unwrap().push((head, body));
            let answer =
                format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (url, kept)
}

fn posts(url: &str) -> PhaseRegistry {
    let post = PostSettings {
        urls: vec![url.to_owned()],
        secret: b"a secret".to_vec(),
        timeout: Duration::from_secs(5),
    };
    let settings = ResultSettings { post: Some(post), ..ResultSettings::default() };
    settings.register(PhaseRegistry::default()).unwrap()
}

#[tokio::test]
async fn a_result_is_posted_and_signed() {
    let (url, got) = receiver(&["204 No Content"]).await;
    let given =
        deliver(&posts(&url), HTTP_POST, with(&format!("{url}/{{key}}?p={{pipeline}}"))).await;
    assert_eq!(given.unwrap(), json!({ "posted": format!("{url}/k%2F1?p=p"), "answer": 204 }));
    let got = got.lock().unwrap();
    let [(head, body)] = got.as_slice() else { panic!("{got:?}") };
    assert!(head.starts_with("POST /in/k%2F1?p=p HTTP/1.1\r\n"), "{head}");
    assert_eq!(serde_json::from_slice::<Value>(body).unwrap(), merged());
    let header = |name: &str| {
        let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
        line.unwrap_or_else(|| panic!("{name}: {head}")).split_once(": ").unwrap().1
    };
    assert!(header("idempotency-key").ends_with("/step"));
    assert_eq!(header("content-type"), "application/json");
    let signature = header("carbonmesh-signature");
    let seconds = signature.strip_prefix("t=").unwrap().split(',').next().unwrap();
    assert_eq!(post::signature(b"a secret", seconds.parse().unwrap(), body), signature);
}

#[tokio::test]
async fn what_the_receiver_answers_decides() {
    let answers = [
        ("503 Busy\r\nretry-after: 7", true, Some(Duration::from_secs(7))),
        ("500 Oh", true, None),
        ("429 Slow\r\nretry-after: 999999", true, Some(Duration::from_secs(3600))),
        ("404 Where", false, None),
        ("302 There\r\nlocation: http://127.0.0.1:1/", false, None),
    ];
    let (url, got) = receiver(&answers.map(|(answer, ..)| answer)).await;
    let registry = posts(&url);
    for (answer, again, after) in answers {
        let (error, retry, wait) = deliver(&registry, HTTP_POST, with(&url)).await.unwrap_err();
        assert_eq!((retry, wait), (again, after), "{answer}");
        assert!(error.contains(&answer[..3]), "{error}");
    }
    assert_eq!(got.lock().unwrap().len(), answers.len());
    let (error, retry, _) =
        deliver(&registry, HTTP_POST, with("http://127.0.0.1:1/in")).await.unwrap_err();
    assert!(!retry && error.contains("results.urls"), "{error}");
    // Nobody listens there any more.
    let (error, retry, _) =
        deliver(&posts("http://127.0.0.1:1/"), HTTP_POST, with("http://127.0.0.1:1/x"))
            .await
            .unwrap_err();
    assert!(retry && error.contains("127.0.0.1:1"), "{error}");
}

/// A mail server that keeps what it gets, or refuses the recipient with `refusal`.
pub(crate) async fn mail_server(refusal: Option<&'static str>) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let got = kept.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let got = got.clone();
            tokio::spawn(async move { take_mail(stream, refusal, &got).await });
        }
    });
    (port, kept)
}

async fn take_mail(stream: TcpStream, refusal: Option<&str>, got: &Mutex<Vec<String>>) {
    let mut stream = BufReader::new(stream);
    let mut all = String::new();
    stream.get_mut().write_all(b"220 sink\r\n").await.unwrap();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or_default() == 0 {
            return;
        }
        all.push_str(&line);
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => "250-sink\r\n250 8BITMIME\r\n".to_owned(),
            "RCPT" => format!("{}\r\n", refusal.unwrap_or("250 ok")),
            "DATA" => {
                stream.get_mut().write_all(b"354 go on\r\n").await.unwrap();
                while !all.ends_with("\r\n.\r\n") {
                    stream.read_line(&mut all).await.unwrap();
                }
                got.lock().unwrap().push(std::mem::take(&mut all));
                "250 taken\r\n".to_owned()
            }
            "QUIT" => {
                stream.get_mut().write_all(b"221 bye\r\n").await.unwrap();
                return;
            }
            _ => "250 ok\r\n".to_owned(),
        };
        stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
    }
}

fn mails(port: u16) -> PhaseRegistry {
    let mail = MailSettings {
        host: "127.0.0.1".to_owned(),
        port,
        tls: MailTls::None,
        login: None,
        from: "CarbonMesh <mesh@example.org>".to_owned(),
        to: vec!["@example.org".to_owned(), "one@example.com".to_owned()],
    };
    let settings = ResultSettings { mail: Some(mail), ..ResultSettings::default() };
    settings.register(PhaseRegistry::default()).unwrap()
}

#[tokio::test]
async fn a_result_is_mailed_to_whom_it_may() {
    let (port, got) = mail_server(None).await;
    let registry = mails(port);
    let mut input = with("mailto:ann@example.org, One@example.com");
    input["subject"] = "The\r\nBcc: evil@example.net result".into();
    let given = deliver(&registry, EMAIL, input).await.unwrap();
    assert_eq!(given, json!({ "mailed": "ann@example.org, One@example.com" }));
    let mail = got.lock().unwrap().remove(0);
    for part in [
        "MAIL FROM:<mesh@example.org>",
        "RCPT TO:<ann@example.org>",
        "RCPT TO:<One@example.com>",
        "Subject: TheBcc: evil@example.net result",
        "@carbonmesh>",
        "CarbonMesh-Job: ",
        "\"b\": [",
    ] {
        assert!(mail.contains(part), "{part}: {mail}");
    }
    assert!(!mail.contains("\r\nBcc:"), "{mail}");
    for to in ["mailto:eve@example.net", "mailto:two@example.com", "mailto:no address", "mailto:,"]
    {
        let (error, retry, _) = deliver(&registry, EMAIL, with(to)).await.unwrap_err();
        assert!(
            !retry && error.contains("address") || error.contains("results.mail.to"),
            "{error}"
        );
    }
    assert!(got.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_the_mail_server_answers_decides() {
    let (port, _) = mail_server(Some("550 no such user")).await;
    let (error, retry, _) =
        deliver(&mails(port), EMAIL, with("mailto:a@example.org")).await.unwrap_err();
    assert!(!retry && error.contains("refuses"), "{error}");
    let (port, _) = mail_server(Some("451 come back later")).await;
    let (error, retry, _) =
        deliver(&mails(port), EMAIL, with("mailto:a@example.org")).await.unwrap_err();
    assert!(retry, "{error}");
    let (_, retry, _) = deliver(&mails(1), EMAIL, with("mailto:a@example.org")).await.unwrap_err();
    assert!(retry);
}
