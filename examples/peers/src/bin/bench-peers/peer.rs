//! What every queue has to offer to be measured.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use carbonmesh_peers::figures::Figures;
use futures::future::BoxFuture;

/// What went wrong.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// How much is measured in one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// How long one throughput run is to take, about.
    pub(crate) seconds: f64,
    /// How many jobs, one at a time, the latency is measured with.
    pub(crate) singles: usize,
}

/// A queue in one mode.
pub(crate) trait Peer {
    /// What it is called in tables and documents.
    fn name(&self) -> &str;

    /// What it says of a job that it has acknowledged.
    fn promise(&self) -> &str;

    /// The version that is installed.
    ///
    /// # Errors
    /// None is; the text says what to install.
    fn version(&self) -> Result<String, String>;

    /// Starts it, measures it, and leaves nothing behind.
    fn measure(&self, effort: Effort) -> BoxFuture<'_, Result<Figures, Error>>;
}

/// Where programs are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Tools(Option<PathBuf>);

impl Tools {
    /// In this virtual environment first, then where the system looks.
    pub(crate) fn new(venv: Option<PathBuf>) -> Self {
        Self(venv)
    }

    /// A program's path, if there is such a program.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        let system = env::var_os("PATH").unwrap_or_default();
        let own = self.0.iter().map(|venv| venv.join("bin"));
        // Debian puts servers where only root looks.
        let server = ["/usr/sbin", "/usr/lib/rabbitmq/bin"].map(PathBuf::from);
        let folders = own.chain(env::split_paths(&system)).chain(server);
        folders.map(|folder| folder.join(program)).find(|path| path.is_file())
    }
}

/// What a program prints first when it is asked for its version.
pub(crate) fn first_line(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(str::to_owned)
}
