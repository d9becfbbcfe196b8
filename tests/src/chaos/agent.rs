//! The hands of the test inside one node's namespace: a thread from which the node's HTTP interface,
//! which is on loopback only, can be reached.

use std::{fs::File, path::PathBuf, thread, time::Duration};

use carbonmesh_examples::api::{Answer, Error};
use nix::sched::{CloneFlags, setns};
use reqwest::Method;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::LocalSet,
};

/// How long a client waits before it calls an outcome unknown.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// A node's HTTP interface, as a client beside it has it.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    fn new(http: &str) -> Result<Self, Error> {
        // Connections do not outlive the process at their other end.
        let client = carbonmesh_examples::api::http_client()
            .pool_idle_timeout(Duration::from_secs(2))
            .build()?;
        Ok(Self { base: format!("http://{http}"), http: client })
    }

    /// Sends a request; `key` is the idempotency key.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        key: Option<&str>,
        timeout: Duration,
    ) -> Result<Answer, Error> {
        let url = format!("{}{path}", self.base);
        let mut request = self.http.request(method, url).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let text = response.text().await?;
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok(Answer { status, body })
    }
}

#[derive(Debug)]
struct Ask {
    method: Method,
    path: String,
    body: Option<Value>,
    reply: oneshot::Sender<Result<Answer, Error>>,
}

/// A thread in a node's namespace.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    asks: mpsc::UnboundedSender<Ask>,
}

impl Agent {
    /// Starts the thread; `background` runs on it beside what is asked.
    pub(crate) fn start<F>(
        namespace: Option<PathBuf>,
        http: &str,
        background: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<Self, Error>
    where
        F: Future<Output = ()> + 'static,
    {
        let (asks, asked) = mpsc::unbounded_channel();
        let client = Client::new(http)?;
        let namespace = namespace.map(File::open).transpose()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("agent".to_owned()).spawn(move || {
            // Sockets belong to the namespace of the thread that makes them.
            if let Some(Err(error)) = namespace.map(|file| setns(file, CloneFlags::CLONE_NEWNET)) {
                return eprintln!("cannot enter a node's namespace: {error}");
            }
            let local = LocalSet::new();
            local.spawn_local(background(client.clone()));
            local.block_on(&runtime, serve(client, asked));
        })?;
        Ok(Self { asks })
    }

    /// GETs a path.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Error> {
        self.ask(Method::GET, path, None)
    }

    /// PUTs a document.
    pub(crate) fn put(&self, path: &str, body: Value) -> Result<Answer, Error> {
        self.ask(Method::PUT, path, Some(body))
    }

    fn ask(&self, method: Method, path: &str, body: Option<Value>) -> Result<Answer, Error> {
        let (reply, answer) = oneshot::channel();
        let path = path.to_owned();
        self.asks.send(Ask { method, path, body, reply }).map_err(|_| "the agent has ended")?;
        answer.blocking_recv()?
    }
}

async fn serve(client: Client, mut asked: mpsc::UnboundedReceiver<Ask>) {
    while let Some(Ask { method, path, body, reply }) = asked.recv().await {
        let client = client.clone();
        tokio::task::spawn_local(async move {
            let answer = client.send(method, &path, body.as_ref(), None, REQUEST_TIMEOUT).await;
            // Whoever asked may have given up.
            let _ = reply.send(answer);
        });
    }
}
