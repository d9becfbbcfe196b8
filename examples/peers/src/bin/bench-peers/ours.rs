//! CarbonMesh itself, as `bench` measures it: the same program, not another client.

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use carbonmesh_peers::figures::{Figures, jobs_for};
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::{
    peer::{Effort, Error, Peer},
    sandbox::Sandbox,
};

/// What it is called in tables and documents.
pub(crate) const NAME: &str = "carbonmesh";

/// How many jobs tell how many take about as long as wanted.
const FIRST_JOBS: usize = 5000;

/// How long one run of `bench` may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Three nodes with their default settings.
#[derive(Debug, Default)]
pub(crate) struct Ours {
    /// How many jobs a run takes, once that is known: so many that the faster work takes long enough.
    jobs: OnceCell<usize>,
}

impl Peer for Ours {
    fn name(&self) -> &str {
        NAME
    }

    fn promise(&self) -> &str {
        "3 copies, all synced before the answer"
    }

    fn version(&self) -> Result<String, String> {
        let hint = "bench is not built: run `make bench-peers`";
        program().filter(|path| path.is_file()).ok_or(hint)?;
        Ok(env!("CARGO_PKG_VERSION").to_owned())
    }

    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>> {
        Box::pin(async move {
            let known = self.jobs.get_or_try_init(async || {
                let first = bench("throughput", FIRST_JOBS, effort).await?;
                Ok::<_, Error>(jobs_for(figure(&first, "/w1/jobs_per_s")?, effort.seconds))
            });
            let results = bench("throughput,latency", *known.await?, effort).await?;
            // The result's latency has been told under another name.
            let single = |part: &str| {
                let told = figure(&results, &format!("/latency_w3/{part}"));
                told.or_else(|_| figure(&results, &format!("/single_w3/{part}")))
            };
            Ok(Figures {
                w1_jobs_per_s: figure(&results, "/w1/jobs_per_s")?,
                w3_jobs_per_s: figure(&results, "/w3/jobs_per_s")?,
                single_w3_p50_ms: single("p50_ms")?,
                single_w3_p99_ms: single("p99_ms")?,
            })
        })
    }
}

async fn bench(only: &str, jobs: usize, effort: Effort) -> Result<Value, Error> {
    let mut sandbox = Sandbox::new()?;
    let out = sandbox.folder().join("out");
    let mut command = Command::new(program().ok_or("bench is not built")?);
    command.args(["--only", only, "--jobs", &jobs.to_string()]);
    command.args(["--singles", &effort.singles.to_string()]).arg("--out").arg(&out);
    sandbox.run("bench", &mut command, PATIENCE).await?;
    Ok(serde_json::from_str(&fs::read_to_string(out.join("results.json"))?)?)
}

fn program() -> Option<PathBuf> {
    Some(env::current_exe().ok()?.with_file_name("bench"))
}

fn figure(results: &Value, path: &str) -> Result<f64, Error> {
    let value = results.pointer(path).and_then(Value::as_f64);
    value.ok_or_else(|| format!("bench does not tell {path}").into())
}
