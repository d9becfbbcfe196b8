//! Notifications on their way, to a real HTTP server and a real mail server on this machine.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::post,
};
use serde_json::Value;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

use super::{target::Tally, *};
use crate::{
    http::fake,
    node::Node,
    phase::{Context, Failure, Fields, PhaseRegistry, phase_fn},
    results::{MailSettings, MailTls, tests::mail_server},
};

const SECRET: &[u8] = b"0123456789abcdef";

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request as it came.
struct Got {
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).expect(name).to_str().expect("text")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

/// Answers in their turn, the last again and again; what comes is handed on.
#[derive(Clone)]
struct Receiver {
    answers: Arc<Mutex<VecDeque<u16>>>,
    got: mpsc::UnboundedSender<Got>,
    /// Answers are held back while this is true.
    held: watch::Receiver<bool>,
}

struct Received {
    url: String,
    got: mpsc::UnboundedReceiver<Got>,
    hold: watch::Sender<bool>,
}

impl Received {
    async fn next(&mut self) -> Got {
        timeout(PATIENCE, self.got.recv()).await.expect("in time").expect("a request")
    }
}

async fn take(State(to): State<Receiver>, headers: HeaderMap, body: Bytes) -> impl IntoResponse {
    let body = String::from_utf8(body.to_vec()).expect("text");
    to.got.send(Got { headers, body }).expect("somebody looks");
    let mut held = to.held.clone();
    held.wait_for(|held| !held).await.expect("the test goes on");
    let mut answers = to.answers.lock().expect("not poisoned");
    let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().copied() };
    StatusCode::from_u16(answer.expect("an answer")).expect("a status")
}

async fn receiver(answers: &[u16]) -> Received {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hooks/0123456789abcdef", listener.local_addr().expect("bound"));
    let (got, requests) = mpsc::unbounded_channel();
    let (hold, held) = watch::channel(false);
    let answers = Arc::new(Mutex::new(answers.iter().copied().collect()));
    let router = Router::new().route("/hooks/{key}", post(take));
    let router = router.with_state(Receiver { answers, got, held });
    tokio::spawn(async move { axum::serve(listener, router).await });
    Received { url, got: requests, hold }
}

/// A target with short waits.
pub(super) fn webhook(url: &str, change: impl FnOnce(&mut TargetSettings)) -> TargetSettings {
    let to = To::Webhook(WebhookSettings {
        url: url.parse().expect("a URL"),
        secret: Some(SECRET.to_vec()),
        timeout: Duration::from_secs(10),
        content_type: "application/json".to_owned(),
    });
    let mut settings = TargetSettings {
        name: "ops".to_owned(),
        to,
        events: None,
        pipelines: Vec::new(),
        level: Level::Warning,
        template: None,
        subject: None,
        queue_age: None,
        queue: 100,
        max_attempts: 4,
        backoff: Duration::from_millis(2),
        per_minute: 60_000,
        cluster: "test".to_owned(),
    };
    change(&mut settings);
    settings
}

fn start(settings: Vec<TargetSettings>) -> (Notifier, CancellationToken) {
    let cancel = CancellationToken::new();
    let notifier = Notifier::start(settings, &fake::handle(fake::answer), &cancel);
    (notifier.expect("targets"), cancel)
}

fn notice(kind: Kind, pipeline: Option<&str>, name: &str) -> Notice {
    let error = Some("no room".to_owned());
    let pipeline = pipeline.map(str::to_owned);
    Notice { pipeline, error, ..Notice::new(kind, &[name], 1, format!("it is {name}")) }
}

/// The tally of the one target, once it is as wanted.
async fn until(notifier: &Notifier, wanted: impl Fn(&Tally, usize) -> bool) -> Tally {
    let target = &notifier.targets()[0];
    let began = Instant::now();
    loop {
        let (tally, waiting) = (target.tally(), target.waiting());
        if wanted(&tally, waiting) {
            return tally;
        }
        assert!(began.elapsed() < PATIENCE, "{waiting} wait, {tally:?}");
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_notification_is_delivered_once_and_signed() {
    let mut received = receiver(&[204]).await;
    let (notifier, cancel) = start(vec![webhook(&received.url, |_| {})]);
    let sent = notice(Kind::Dead, Some("p"), "a");
    notifier.tell(&sent);
    let got = received.next().await;
    assert_eq!(got.header("webhook-id"), sent.id);
    let at: u64 = got.header("webhook-timestamp").parse().expect("seconds");
    assert!(at.abs_diff(crate::clock::unix_ms() / 1000) < 60, "{at}");
    let expected = deliver::signature(SECRET, &sent.id, &at.to_string(), got.body.as_bytes());
    assert_eq!(got.header("webhook-signature"), expected);
    let other =
        deliver::signature(b"another secret..", &sent.id, &at.to_string(), got.body.as_bytes());
    assert_ne!(got.header("webhook-signature"), other);
    let body = got.json();
    assert_eq!((&body["type"], &body["data"]["level"]), (&"dead".into(), &"error".into()));
    assert_eq!(
        (&body["data"]["error"], &body["data"]["cluster"]),
        (&"no room".into(), &"test".into())
    );
    assert_eq!(body["data"].get("job"), None, "what is not said is left out");
    let tally = until(&notifier, |tally, waiting| tally.delivered == 1 && waiting == 0).await;
    assert_eq!((tally.failed, tally.dead, tally.dropped), (0, 0, 0));
    cancel.cancel();
    assert!(received.got.try_recv().is_err(), "it came once");
}

#[tokio::test]
async fn what_fails_is_tried_again_with_the_same_id_and_does_not_hold_up_others() {
    let mut received = receiver(&[500, 503, 200]).await;
    let (notifier, _cancel) = start(vec![webhook(&received.url, |_| {})]);
    let sent = notice(Kind::Dead, Some("p"), "a");
    notifier.tell(&sent);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(received.next().await.header("webhook-id").to_owned());
    }
    assert_eq!(ids, vec![sent.id; 3]);
    let tally = until(&notifier, |tally, _| tally.delivered == 1).await;
    assert_eq!((tally.failed, tally.dead), (2, 0));
    assert!(tally.error.expect("the last error").1.contains("503"));
}

#[tokio::test]
async fn after_its_last_try_it_is_dead_and_shown_without_the_secret() {
    let mut received = receiver(&[500]).await;
    let (notifier, _cancel) = start(vec![webhook(&received.url, |it| it.max_attempts = 3)]);
    let sent = notice(Kind::Dead, Some("p"), "a");
    notifier.tell(&sent);
    for _ in 0..3 {
        received.next().await;
    }
    let tally = until(&notifier, |tally, waiting| tally.dead == 1 && waiting == 0).await;
    assert_eq!((tally.delivered, tally.failed, tally.given_up.len()), (0, 3, 1));
    let dead = &tally.given_up[0];
    assert_eq!((&dead.id, dead.attempts, dead.kind), (&sent.id, 3, Kind::Dead));
    assert!(dead.error.contains("500") && !dead.error.contains("hooks"), "{}", dead.error);
    assert!(received.got.try_recv().is_err(), "nobody tries it again");
    // Nor is the path anywhere where people look.
    let target = &notifier.targets()[0];
    let shown = format!("{} {:?} {:?}", target.shown(), target, tally);
    assert!(!shown.contains("hooks") && !shown.contains("0123456789abcdef"), "{shown}");
}

#[tokio::test]
async fn what_is_refused_for_good_is_not_tried_again() {
    let mut received = receiver(&[410]).await;
    let (notifier, _cancel) = start(vec![webhook(&received.url, |_| {})]);
    notifier.tell(&notice(Kind::Dead, None, "a"));
    received.next().await;
    let tally = until(&notifier, |tally, _| tally.dead == 1).await;
    assert_eq!((tally.failed, tally.given_up[0].attempts), (1, 1));
}

#[tokio::test]
async fn a_slow_receiver_costs_notifications_and_nobody_waits() {
    let mut received = receiver(&[200]).await;
    received.hold.send_replace(true);
    let (notifier, _cancel) = start(vec![webhook(&received.url, |it| it.queue = 5)]);
    notifier.tell(&notice(Kind::Dead, None, "first"));
    received.next().await;
    // The receiver holds its answer back until all of them are told.
    for at in 0..50 {
        notifier.tell(&notice(Kind::Dead, None, &at.to_string()));
    }
    let tally = until(&notifier, |_, waiting| waiting == 5).await;
    assert_eq!((tally.delivered, tally.dropped), (0, 46));
    received.hold.send_replace(false);
    let tally = until(&notifier, |tally, waiting| tally.delivered == 5 && waiting == 0).await;
    assert_eq!(tally.dropped, 46);
    notifier.tell(&notice(Kind::Dead, None, "later"));
    until(&notifier, |tally, _| tally.delivered == 6).await;
}

#[tokio::test]
async fn each_gets_what_it_wants_by_kind_level_and_pipeline() {
    let kinds = |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect());
    let by_name = |name: &str, change: fn(&mut TargetSettings)| {
        let mut settings = webhook("http://127.0.0.1:1/", change);
        settings.name = name.to_owned();
        settings
    };
    let mut by_kind = by_name("by_kind", |_| {});
    by_kind.events = kinds(&["attempt_failed", "node_down"]);
    by_kind.level = Level::Info;
    let (notifier, _cancel) = start(vec![
        by_name("usual", |_| {}),
        by_name("errors", |it| it.level = Level::Error),
        by_name("all", |it| it.level = Level::Info),
        by_name("orders", |it| it.pipelines = vec!["orders*".parse().unwrap()]),
        by_kind,
    ]);
    let wanted = |kind: Kind, pipeline: Option<&str>| {
        let notice = notice(kind, pipeline, "a");
        let wants = notifier.targets().iter().filter(|target| target.wants(&notice));
        wants.map(|target| target.name().to_owned()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(wanted(Kind::Dead, Some("p")), "usual errors all");
    assert_eq!(wanted(Kind::Dead, Some("orders-eu")), "usual errors all orders");
    assert_eq!(wanted(Kind::AttemptFailed, Some("orders")), "all by_kind");
    assert_eq!(wanted(Kind::Coordinator, Some("p")), "usual all");
    assert_eq!(wanted(Kind::NodeDown, None), "usual errors all orders by_kind");
    assert_eq!(wanted(Kind::NodeReturned, None), "all");
}

#[tokio::test]
async fn a_template_makes_the_body_and_its_slips_are_named_at_the_start() {
    let mut received = receiver(&[200]).await;
    let (notifier, _cancel) = start(vec![webhook(&received.url, |it| {
        it.template =
            Some(r#"{"text": {{ summary | tojson }}, "at": "{{ phase or '-' }}"}"#.into());
    })]);
    notifier.tell(&Notice { summary: "a \"b\"\n".into(), ..notice(Kind::Dead, None, "a") });
    let got = received.next().await;
    assert_eq!(got.json(), serde_json::json!({ "text": "a \"b\"\n", "at": "-" }));
    for (template, said) in [
        ("{{ summary", "template: line 1: syntax error"),
        ("x\n{{ sumary }}", "template: line 2: undefined value"),
        ("{{ node.name.first.second }}", "template: line 1: "),
        ("{{ summary | shorter }}", "template: line 1: unknown filter"),
    ] {
        let settings = webhook(&received.url, |it| it.template = Some(template.to_owned()));
        let error = Notifier::check(&settings).unwrap_err();
        assert!(error.starts_with(said), "{template}: {error}");
    }
    let settings = webhook(&received.url, |it| it.subject = Some("{{ nothing }}".to_owned()));
    assert!(Notifier::check(&settings).unwrap_err().starts_with("subject: "));
}

#[tokio::test]
async fn a_test_says_what_the_receiver_made_of_it_and_goes_around_what_waits() {
    let mut received = receiver(&[204]).await;
    let (notifier, _cancel) = start(vec![webhook(&received.url, |it| it.level = Level::Error)]);
    let target = notifier.target("ops").expect("it is there");
    let tried = target.test("oak").await;
    assert!(tried.delivered && tried.detail.contains("204"), "{tried:?}");
    assert_eq!(received.next().await.json()["type"], "test");
    let (notifier, _cancel) =
        start(vec![webhook("http://127.0.0.1:1/hooks/0123456789abcdef", |_| {})]);
    let tried = notifier.target("ops").expect("it is there").test("oak").await;
    assert!(!tried.delivered && tried.detail.contains("127.0.0.1:1"), "{tried:?}");
    assert!(!tried.detail.contains("hooks"), "{tried:?}");
    assert!(notifier.target("other").is_none());
}

#[tokio::test]
async fn e_mails_have_a_subject_and_what_is_known_in_their_text() {
    let mail = |port, to: &str| {
        let settings = MailSettings {
            host: "127.0.0.1".to_owned(),
            port,
            tls: MailTls::None,
            login: None,
            from: "CarbonMesh <mesh@example.org>".to_owned(),
            to: vec![to.to_owned()],
        };
        webhook("http://127.0.0.1:1/", |it| it.to = To::Mail(settings))
    };
    let (port, got) = mail_server(None).await;
    let (notifier, _cancel) = start(vec![mail(port, "ops@example.org")]);
    let mut sent = notice(Kind::Dead, Some("p"), "a");
    sent.summary = "it is\r\nBcc: evil@example.net".to_owned();
    notifier.tell(&sent);
    until(&notifier, |tally, _| tally.delivered == 1).await;
    let text = got.lock().unwrap().remove(0);
    let id = format!("Message-ID: <{}@carbonmesh>", sent.id);
    let subject = "Subject: [test] error: it is  Bcc: evil@example.net";
    for part in ["RCPT TO:<ops@example.org>", subject, &id, "error:     no room", "pipeline:  p"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let head = text.split("\r\n\r\n").next().expect("a head");
    assert!(!head.contains("\r\nBcc:"), "{head}");
    // A refusal is final.
    let (port, _) = mail_server(Some("550 no such user")).await;
    let (notifier, _cancel) = start(vec![mail(port, "who@example.org")]);
    notifier.tell(&sent);
    let tally = until(&notifier, |tally, _| tally.dead == 1).await;
    assert_eq!(tally.given_up[0].attempts, 1);
    // What passes is tried again.
    let (port, _) = mail_server(Some("451 come back later")).await;
    let (notifier, _cancel) = start(vec![mail(port, "who@example.org")]);
    notifier.tell(&sent);
    let tally = until(&notifier, |tally, _| tally.dead == 1).await;
    assert_eq!(tally.given_up[0].attempts, 4);
    assert!(Notifier::check(&mail(1, "no address")).unwrap_err().contains("no address"));
}

#[tokio::test]
async fn a_node_tells_of_its_dead_letters_and_of_queues_that_are_too_old() {
    let mut received = receiver(&[200]).await;
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    crate::tls::write_private(&secret, SECRET).unwrap();
    let config = folder.path().join("node.toml");
    let text = format!(
        "[notify.ops]\nurl = \"{}\"\nsecret_file = \"{}\"\nevents = [\"dead\", \"queue_age\"]\n\
         pipelines = [\"bad*\"]\nqueue_age = \"200ms\"\n",
        received.url,
        secret.display(),
    );
    std::fs::write(&config, text).unwrap();
    let fails = phase_fn("fails", |_: Context, _: Fields| async {
        Err::<(), _>(Failure::fatal("no room"))
    });
    let node = Node::builder(folder.path().join("data"))
        .http("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .config(&config)
        .phases(PhaseRegistry::default().with_phase(fails.slots(1)))
        .pipeline(r#"{"name": "bad", "phases": ["fails"]}"#)
        .pipeline(r#"{"name": "other", "phases": ["fails"]}"#)
        .pipeline(r#"{"name": "bad-queue", "phases": ["offered-by-nobody"]}"#)
        .start()
        .await
        .unwrap();
    let url = format!("http://{}", node.http_address());
    let client = crate::outbound::client().no_proxy().build().unwrap();
    let mut ids = Vec::new();
    for pipeline in ["other", "bad", "bad-queue"] {
        let began = Instant::now();
        loop {
            let url = format!("{url}/v1/pipelines/{pipeline}/jobs");
            let answer = client.post(url).json(&serde_json::json!({})).send().await.unwrap();
            let is_done = answer.status().is_success();
            let answer: Value = answer.json().await.unwrap();
            if is_done {
                ids.push(answer["id"].as_str().expect("an id").to_owned());
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut told = [received.next().await, received.next().await].map(|got| got.json());
    told.sort_by_key(|body| body["type"].to_string());
    let [dead, age] = told;
    assert_eq!((&dead["type"], &dead["data"]["job"]), (&"dead".into(), &ids[1].as_str().into()));
    assert!(dead["data"]["error"].as_str().is_some_and(|it| it.contains("no room")), "{dead}");
    assert_eq!(
        (&age["type"], &age["data"]["pipeline"]),
        (&"queue_age".into(), &"bad-queue".into())
    );
    assert_eq!(age["data"]["depth"], 1);
    // The interface tells the same, and nothing of the secret.
    let text = client.get(format!("{url}/v1/notify")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("\"delivered\":") && !text.contains("0123456789abcdef"), "{text}");
    let tried = client.post(format!("{url}/v1/notify/ops/test")).send().await.unwrap();
    let tried: Value = tried.json().await.unwrap();
    assert_eq!((&tried["delivered"], &tried["target"]), (&true.into(), &"ops".into()));
    let none = client.post(format!("{url}/v1/notify/who/test")).send().await.unwrap();
    assert_eq!(none.status().as_u16(), 404);
    let metrics = client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    let line = r#"carbonmesh_notifications_total{target="ops",outcome="delivered"} 3"#;
    assert!(metrics.contains(line), "{metrics}");
    node.stop().await.unwrap();
}
