//! Redis Streams: a stream and a consumer group for each stage.

use std::{process::Command, time::Duration};

use carbonmesh_peers::figures::Figures;
use futures::future::BoxFuture;
use redis::{AsyncConnectionConfig, Client, Pipeline, aio::MultiplexedConnection, cmd, pipe};

use crate::{
    peer::{Effort, Error, Peer, Tools, first_line},
    sandbox::{Sandbox, free_ports},
    work::{self, Producer, Server, Stage, Worker, number},
};

const GROUP: &str = "workers";

/// How often a worker that has nothing to do asks again.
const BLOCK: Duration = Duration::from_secs(5);

/// Both ways to sync the log of writes.
pub(crate) fn modes() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(Redis {
            name: "redis-always",
            promise: "1 copy, synced before the answer",
            appendfsync: "always",
        }),
        Box::new(Redis {
            name: "redis-everysec",
            promise: "1 copy in the page cache, synced every second",
            appendfsync: "everysec",
        }),
    ]
}

struct Redis {
    name: &'static str,
    promise: &'static str,
    appendfsync: &'static str,
}

impl Peer for Redis {
    fn name(&self) -> &str {
        self.name
    }

    fn promise(&self) -> &str {
        self.promise
    }

    fn version(&self) -> Result<String, String> {
        version()
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let mut sandbox = Sandbox::new()?;
            let port = start(&mut sandbox, self.appendfsync).await?;
            let client = Client::open(format!("redis://127.0.0.1:{port}/"))?;
            work::measure(&Connector { client }, effort).await
        })
    }
}

/// The version of Redis that is installed.
///
/// # Errors
/// None is; the text says what to install.
pub(crate) fn version() -> Result<String, String> {
    let program = Tools::new(None).find("redis-server");
    let line = program.and_then(|program| first_line(&program, &["--version"]));
    let line = line.ok_or("install Debian's redis-server, or run `make setup-peers`")?;
    let version = line.split(' ').find_map(|word| word.strip_prefix("v="));
    Ok(version.unwrap_or(&line).to_owned())
}

/// Starts a server that logs every write; its port.
///
/// # Errors
/// It does not start.
pub(crate) async fn start(sandbox: &mut Sandbox, appendfsync: &str) -> Result<u16, Error> {
    let [port] = free_ports()?;
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", appendfsync]);
    sandbox.start("redis", &mut command)?;
    sandbox.await_port(port).await?;
    Ok(port)
}

struct Connector {
    client: Client,
}

impl Connector {
    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(BLOCK * 6));
        Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?)
    }
}

impl Server for Connector {
    type Producer = StreamProducer;
    type Worker = StreamWorker;

    async fn create(&self, queue: &str) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(queue).arg(GROUP).arg("0").arg("MKSTREAM");
        Ok(create.exec_async(&mut connection).await?)
    }

    async fn producer(&self, queue: &str) -> Result<StreamProducer, Error> {
        Ok(StreamProducer { connection: self.connect().await?, queue: queue.to_owned() })
    }

    async fn worker(&self, stage: &Stage, batch: usize) -> Result<StreamWorker, Error> {
        let connection = self.connect().await?;
        let name = cmd("CLIENT").arg("ID").query_async(&mut connection.clone()).await?;
        Ok(StreamWorker { connection, name, stage: stage.clone(), batch })
    }
}

struct StreamProducer {
    connection: MultiplexedConnection,
    queue: String,
}

impl Producer for StreamProducer {
    async fn put(&mut self, jobs: &[String]) -> Result<(), Error> {
        let mut commands = pipe();
        for job in jobs {
            add(&mut commands, &self.queue, job.as_bytes());
        }
        Ok(commands.exec_async(&mut self.connection).await?)
    }
}

struct StreamWorker {
    connection: MultiplexedConnection,
    name: u64,
    stage: Stage,
    batch: usize,
}

/// What XREADGROUP answers: of each stream, each entry's id and its one field.
type Entries = Option<Vec<(String, Vec<(String, (String, Vec<u8>))>)>>;

impl Worker for StreamWorker {
    async fn step(&mut self) -> Result<Vec<usize>, Error> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(GROUP).arg(self.name).arg("COUNT").arg(self.batch);
        read.arg("BLOCK").arg(BLOCK.as_millis() as u64);
        read.arg("STREAMS").arg(&self.stage.queue).arg(">");
        let entries: Entries = read.query_async(&mut self.connection).await?;
        let entries: Vec<_> = entries.into_iter().flatten().flat_map(|(_, of)| of).collect();
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        // One transaction: a job is handed over and taken off, or neither.
        let mut commands = pipe();
        commands.atomic();
        if let Some(next) = &self.stage.next {
            for (_, (_, job)) in &entries {
                add(&mut commands, next, job);
            }
        }
        commands.cmd("XACK").arg(&self.stage.queue).arg(GROUP);
        for (id, _) in &entries {
            commands.arg(id);
        }
        commands.exec_async(&mut self.connection).await?;
        entries.iter().map(|(_, (_, job))| number(job)).collect()
    }
}

fn add(commands: &mut Pipeline, stream: &str, job: &[u8]) {
    commands.cmd("XADD").arg(stream).arg("*").arg("job").arg(job).ignore();
}
