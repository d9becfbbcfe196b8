//! RabbitMQ: a durable queue for each stage, persistent messages, publisher confirms.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use carbonmesh_peers::figures::Figures;
use futures::{
    StreamExt,
    future::{BoxFuture, try_join_all},
    stream::ReadyChunks,
};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions, QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable, ShortString},
};

use crate::{
    peer::{Effort, Error, Peer, Tools},
    sandbox::{Sandbox, free_ports},
    work::{self, BATCH, Producer, Server, Stage, Worker, number},
};

/// How AMQP calls a message that is kept on disk.
const PERSISTENT: u8 = 2;

/// The classic queue, and the replicated one on one node and on three.
pub(crate) fn modes() -> Vec<Box<dyn Peer>> {
    let mode = |name, promise, kind, nodes| -> Box<dyn Peer> {
        Box::new(RabbitMq { name, promise, kind, nodes })
    };
    vec![
        mode("rabbitmq-classic", "1 copy, written to disk before the confirm", "classic", 1),
        mode("rabbitmq-quorum-r1", "1 copy, synced before the confirm", "quorum", 1),
        mode("rabbitmq-quorum-r3", "3 copies, a majority synced before the confirm", "quorum", 3),
    ]
}

struct RabbitMq {
    name: &'static str,
    promise: &'static str,
    kind: &'static str,
    nodes: usize,
}

impl Peer for RabbitMq {
    fn name(&self) -> &str {
        self.name
    }

    fn promise(&self) -> &str {
        self.promise
    }

    fn version(&self) -> Result<String, String> {
        let missing = "install Debian's rabbitmq-server, or run `make setup-peers`";
        let program = program().ok_or(missing)?.canonicalize().map_err(|_| missing)?;
        // The program lies in a folder that is named after its version.
        let mut folders = program.iter().filter_map(|folder| folder.to_str());
        let version = folders.find_map(|folder| folder.strip_prefix("rabbitmq_server-"));
        Ok(version.unwrap_or("unknown").to_owned())
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let mut sandbox = Sandbox::new()?;
            let port = self.start(&mut sandbox).await?;
            let server = Connector {
                url: format!("amqp://guest:guest@127.0.0.1:{port}/%2f"),
                kind: self.kind,
            };
            work::measure(&server, effort).await
        })
    }
}

/// The server itself: the wrapper beside it changes the user, and lets nobody choose folders.
fn program() -> Option<PathBuf> {
    let wrapped = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server");
    Some(wrapped).filter(|path| path.is_file()).or_else(|| Tools::new(None).find("rabbitmq-server"))
}

impl RabbitMq {
    /// Starts the nodes, and a port mapper of their own; the first node's port.
    async fn start(&self, sandbox: &mut Sandbox) -> Result<u16, Error> {
        let program = program().ok_or("no rabbitmq-server")?;
        let [mapper, ports @ ..]: [u16; 7] = free_ports()?;
        let mut command = Command::new("epmd");
        command.args(["-port", &mapper.to_string(), "-address", "127.0.0.1"]);
        sandbox.start("epmd", &mut command)?;
        sandbox.await_port(mapper).await?;
        let cookie = sandbox.folder().join(".erlang.cookie");
        fs::write(&cookie, "carbonmesh-bench")?;
        fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400))?;
        let mut config = "cluster_formation.peer_discovery_backend = classic_config\n".to_owned();
        for at in 0..self.nodes {
            config +=
                &format!("cluster_formation.classic_config.nodes.{} = n{at}@localhost\n", at + 1);
        }
        let folder = sandbox.folder().to_owned();
        fs::write(folder.join("rabbitmq.conf"), config)?;
        fs::write(folder.join("env.conf"), "")?;
        fs::write(folder.join("plugins"), "[].\n")?;
        for at in 0..self.nodes {
            let own = folder.join(format!("n{at}"));
            fs::create_dir(&own)?;
            let mut command = Command::new(&program);
            command
                .env("HOME", &folder)
                .env("ERL_EPMD_PORT", mapper.to_string())
                .env("ERL_EPMD_ADDRESS", "127.0.0.1")
                .env("RABBITMQ_NODENAME", format!("n{at}@localhost"))
                .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
                .env("RABBITMQ_NODE_PORT", ports[2 * at].to_string())
                .env("RABBITMQ_DIST_PORT", ports[2 * at + 1].to_string())
                .env(
                    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                    "-kernel inet_dist_use_interface {127,0,0,1}",
                )
                .env("RABBITMQ_CONF_ENV_FILE", folder.join("env.conf"))
                .env("RABBITMQ_CONFIG_FILE", folder.join("rabbitmq.conf"))
                .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder.join("plugins"))
                .env("RABBITMQ_MNESIA_BASE", own.join("mnesia"))
                .env("RABBITMQ_GENERATED_CONFIG_DIR", own.join("config"))
                .env("RABBITMQ_SCHEMA_DIR", own.join("schema"))
                .env("RABBITMQ_LOG_BASE", own.join("log"))
                .env("RABBITMQ_LOGS", "-")
                // The script then becomes the server, and stays nobody's parent.
                .env("RUNNING_UNDER_SYSTEMD", "true");
            sandbox.start(&format!("n{at}"), &mut command)?;
            // A node listens once it has joined the others.
            sandbox.await_port(ports[2 * at]).await?;
        }
        Ok(ports[0])
    }
}

struct Connector {
    url: String,
    kind: &'static str,
}

impl Connector {
    async fn connect(&self, queue: &str) -> Result<Publisher, Error> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Publisher { _connection: connection, channel, queue: queue.into() })
    }
}

impl Server for Connector {
    type Producer = Publisher;
    type Worker = Subscriber;

    async fn create(&self, queue: &str) -> Result<(), Error> {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(self.kind.into()));
        let publisher = self.connect(queue).await?;
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        publisher.channel.queue_declare(queue.into(), options, arguments).await?;
        Ok(())
    }

    async fn producer(&self, queue: &str) -> Result<Publisher, Error> {
        self.connect(queue).await
    }

    async fn worker(&self, stage: &Stage, batch: usize) -> Result<Subscriber, Error> {
        let next = stage.next.clone();
        let publisher = self.connect(next.as_ref().unwrap_or(&stage.queue)).await?;
        let channel = &publisher.channel;
        channel.basic_qos(2 * BATCH as u16, BasicQosOptions::default()).await?;
        let (queue, options) = (stage.queue.as_str().into(), BasicConsumeOptions::default());
        let deliveries =
            channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        Ok(Subscriber {
            publisher,
            deliveries: deliveries.ready_chunks(batch),
            last: next.is_none(),
        })
    }
}

struct Publisher {
    /// Is closed when it is dropped.
    _connection: Connection,
    channel: Channel,
    queue: ShortString,
}

impl Publisher {
    async fn publish<'a>(&self, jobs: impl Iterator<Item = &'a [u8]>) -> Result<(), Error> {
        let properties = BasicProperties::default().with_delivery_mode(PERSISTENT);
        let mut confirms = Vec::new();
        for job in jobs {
            let options = BasicPublishOptions::default();
            let (exchange, key) = (ShortString::default(), self.queue.clone());
            let sent = self.channel.basic_publish(exchange, key, options, job, properties.clone());
            confirms.push(sent.await?);
        }
        if try_join_all(confirms).await?.iter().all(|confirm| confirm.is_ack()) {
            Ok(())
        } else {
            Err("RabbitMQ did not confirm a message".into())
        }
    }
}

impl Producer for Publisher {
    async fn put(&mut self, jobs: &[String]) -> Result<(), Error> {
        self.publish(jobs.iter().map(String::as_bytes)).await
    }
}

struct Subscriber {
    publisher: Publisher,
    deliveries: ReadyChunks<Consumer>,
    last: bool,
}

impl Worker for Subscriber {
    async fn step(&mut self) -> Result<Vec<usize>, Error> {
        let deliveries = self.deliveries.next().await.ok_or("the consumer was cancelled")?;
        let deliveries = deliveries.into_iter().collect::<Result<Vec<_>, _>>()?;
        if !self.last {
            self.publisher.publish(deliveries.iter().map(|delivery| &delivery.data[..])).await?;
        }
        if let Some(last) = deliveries.last() {
            last.acker.ack(BasicAckOptions { multiple: true }).await?;
        }
        deliveries.iter().map(|delivery| number(&delivery.data)).collect()
    }
}
