//! Celery and Dask, each by a script in Python: their own clients, used as their documents advise.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use carbonmesh_peers::figures::Figures;
use futures::future::BoxFuture;

use crate::{
    peer::{Effort, Error, Peer, Tools, first_line},
    redis,
    sandbox::Sandbox,
};

/// How long one script may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Celery over Redis, and Dask.
pub(crate) fn modes(tools: &Tools) -> Vec<Box<dyn Peer>> {
    let python = tools.find("python3");
    vec![
        Box::new(Python {
            name: "celery-redis",
            promise: "1 copy in Redis's page cache, synced every second",
            script: include_str!("../../../python/celery_peer.py"),
            imports: "celery, redis; print(celery.__version__)",
            redis: true,
            python: python.clone(),
        }),
        Box::new(Python {
            name: "dask",
            promise: "1 copy in memory, lost with its process",
            script: include_str!("../../../python/dask_peer.py"),
            imports: "distributed; print(distributed.__version__)",
            redis: false,
            python,
        }),
    ]
}

struct Python {
    name: &'static str,
    promise: &'static str,
    /// Gets how long, how many singles, and Redis's port; prints the figures as JSON.
    script: &'static str,
    imports: &'static str,
    redis: bool,
    python: Option<PathBuf>,
}

impl Peer for Python {
    fn name(&self) -> &str {
        self.name
    }

    fn promise(&self) -> &str {
        self.promise
    }

    fn version(&self) -> Result<String, String> {
        let asked = format!("import {}", self.imports);
        let version = self.python.as_ref().and_then(|python| first_line(python, &["-c", &asked]));
        let version = version.ok_or("run `make setup-peers` (packages of PyPI)")?;
        Ok(if self.redis { format!("{version}, Redis {}", redis::version()?) } else { version })
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let mut sandbox = Sandbox::new()?;
            let port = if self.redis { redis::start(&mut sandbox, "everysec").await? } else { 0 };
            let script = sandbox.folder().join("peer.py");
            fs::write(&script, self.script)?;
            let mut command = Command::new(self.python.as_ref().ok_or("no Python")?);
            command.arg(script);
            let numbers =
                [effort.seconds.to_string(), effort.singles.to_string(), port.to_string()];
            let printed = sandbox.run("python", command.args(numbers), PATIENCE).await?;
            let last = printed.lines().last().unwrap_or_default();
            Ok(serde_json::from_str(last)?)
        })
    }
}
