//! Beanstalkd with its log of writes: a tube for each stage.

use std::{fs, process::Command};

use carbonmesh_peers::{
    beanstalk::{self, Reply, delete, put, reserve},
    figures::Figures,
};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    peer::{Effort, Error, Peer, Tools, first_line},
    sandbox::{Sandbox, free_ports},
    work::{self, Producer, Server, Stage, Worker, number},
};

/// Both ways to sync the log of writes.
pub(crate) fn modes() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(Beanstalkd {
            name: "beanstalkd-sync",
            promise: "1 copy, each write synced before the answer",
            sync_ms: "0",
        }),
        Box::new(Beanstalkd {
            name: "beanstalkd-50ms",
            promise: "1 copy in the page cache, synced every 50 ms",
            sync_ms: "50",
        }),
    ]
}

struct Beanstalkd {
    name: &'static str,
    promise: &'static str,
    sync_ms: &'static str,
}

impl Peer for Beanstalkd {
    fn name(&self) -> &str {
        self.name
    }

    fn promise(&self) -> &str {
        self.promise
    }

    fn version(&self) -> Result<String, String> {
        let program = Tools::new(None).find("beanstalkd");
        let line = program.and_then(|program| first_line(&program, &["-v"]));
        let line = line.ok_or("install Debian's beanstalkd, or run `make setup-peers`")?;
        Ok(line.trim_start_matches("beanstalkd ").to_owned())
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let mut sandbox = Sandbox::new()?;
            let log = sandbox.folder().join("data");
            fs::create_dir(&log)?;
            let [port] = free_ports()?;
            let mut command = Command::new("beanstalkd");
            command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-f", self.sync_ms]);
            command.arg("-b").arg(log);
            sandbox.start("beanstalkd", &mut command)?;
            sandbox.await_port(port).await?;
            work::measure(&Connector { port }, effort).await
        })
    }
}

struct Connector {
    port: u16,
}

impl Server for Connector {
    type Producer = Connection;
    type Worker = TubeWorker;

    async fn create(&self, _: &str) -> Result<(), Error> {
        // A tube is there once somebody uses it.
        Ok(())
    }

    async fn producer(&self, queue: &str) -> Result<Connection, Error> {
        let mut connection = Connection::new(self.port).await?;
        connection.send(&format!("use {queue}\r\n")).await?;
        connection.expect(&Reply::Tube, 1).await?;
        Ok(connection)
    }

    async fn worker(&self, stage: &Stage, batch: usize) -> Result<TubeWorker, Error> {
        let next = stage.next.clone();
        let mut connection = self.producer(next.as_ref().unwrap_or(&stage.queue)).await?;
        connection.send(&format!("watch {}\r\nignore default\r\n", stage.queue)).await?;
        connection.expect(&Reply::Tube, 2).await?;
        Ok(TubeWorker { connection, reserve: reserve(batch), batch, last: next.is_none() })
    }
}

/// A connection, and what was read of it but not yet understood.
struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Up to where the buffer is understood.
    at: usize,
}

impl Connection {
    async fn new(port: u16) -> Result<Self, Error> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::new(), at: 0 })
    }

    async fn send(&mut self, commands: &str) -> Result<(), Error> {
        Ok(self.stream.write_all(commands.as_bytes()).await?)
    }

    async fn reply(&mut self) -> Result<Reply, Error> {
        loop {
            if let Some((reply, taken)) = beanstalk::parse(&self.buffer[self.at..])? {
                self.at += taken;
                return Ok(reply);
            }
            self.buffer.drain(..self.at);
            self.at = 0;
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("beanstalkd has closed the connection".into());
            }
        }
    }

    async fn expect(&mut self, expected: &Reply, count: usize) -> Result<(), Error> {
        for _ in 0..count {
            let reply = self.reply().await?;
            if reply != *expected {
                return Err(format!("beanstalkd answered {reply:?} instead of {expected:?}").into());
            }
        }
        Ok(())
    }

    async fn put_all<'a>(&mut self, jobs: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let (mut commands, mut count) = (String::new(), 0);
        for job in jobs {
            put(&mut commands, job);
            count += 1;
        }
        self.send(&commands).await?;
        self.expect(&Reply::Inserted, count).await
    }
}

impl Producer for Connection {
    async fn put(&mut self, jobs: &[String]) -> Result<(), Error> {
        self.put_all(jobs.iter().map(String::as_str)).await
    }
}

struct TubeWorker {
    connection: Connection,
    reserve: String,
    batch: usize,
    last: bool,
}

impl Worker for TubeWorker {
    async fn step(&mut self) -> Result<Vec<usize>, Error> {
        self.connection.send(&self.reserve).await?;
        let mut jobs = Vec::with_capacity(self.batch);
        for _ in 0..self.batch {
            match self.connection.reply().await? {
                Reply::Reserved { id, body } => jobs.push((id, String::from_utf8(body)?)),
                Reply::TimedOut => {}
                other => return Err(format!("beanstalkd answered {other:?}").into()),
            }
        }
        if !self.last {
            self.connection.put_all(jobs.iter().map(|(_, job)| job.as_str())).await?;
        }
        let mut commands = String::new();
        for (id, _) in &jobs {
            delete(&mut commands, *id);
        }
        self.connection.send(&commands).await?;
        self.connection.expect(&Reply::Deleted, jobs.len()).await?;
        jobs.iter().map(|(_, job)| number(job.as_bytes())).collect()
    }
}
