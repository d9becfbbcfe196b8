//! `carbonmesh bundle FILE`, `phase FILE NAME` and `pipeline FILE NAME`: a node for a file of handlers.

use std::{ffi::OsString, path::PathBuf};

use carbonmesh_protocol::name::Namespace;
use clap::Parser;

use super::failure::Failure;
use crate::{
    config::{HandlerFile, Take, UpArgs},
    phase::PhaseRegistry,
};

/// Run a node with all phases and all pipelines of a file.
#[derive(Debug, clap::Args)]
pub(super) struct BundleArgs {
    /// Handlers, in Python (.py) or JavaScript (.js, .mjs)
    file: PathBuf,
    #[command(flatten)]
    up: UpArgs,
}

impl BundleArgs {
    /// How to run the node.
    pub(super) fn up(self) -> UpArgs {
        self.up.with_file(HandlerFile { path: self.file, take: Take::All })
    }
}

/// Run a node with some phases of a file.
#[derive(Debug, Parser)]
#[command(name = "carbonmesh phase", override_usage = "carbonmesh phase <FILE> <NAME[=SLOTS]>...")]
struct PhaseArgs {
    /// Handlers, in Python (.py) or JavaScript (.js, .mjs)
    file: PathBuf,
    /// Which of its phases, and how many attempts of each may run at once
    #[arg(required = true, value_name = "NAME[=SLOTS]")]
    names: Vec<String>,
    #[command(flatten)]
    up: UpArgs,
}

/// Run a node that makes a pipeline of a file known, and runs no phases.
#[derive(Debug, Parser)]
#[command(name = "carbonmesh pipeline", override_usage = "carbonmesh pipeline <FILE> <NAME>")]
struct PipelineArgs {
    /// Handlers, in Python (.py) or JavaScript (.js, .mjs)
    file: PathBuf,
    /// Which of its pipelines
    #[arg(value_name = "NAME")]
    pipeline: String,
    #[command(flatten)]
    up: UpArgs,
}

/// What `phase` is given beside its own commands.
pub(super) async fn phase(
    words: Vec<OsString>,
    namespace: Option<Namespace>,
    own: PhaseRegistry,
) -> Result<(), Failure> {
    let PhaseArgs { file, names, up } = parse("phase", words)?;
    let up = up.within(namespace);
    run(up.with_file(HandlerFile { path: file, take: Take::Phases(names) }), own).await
}

/// What `pipeline` is given beside its own commands.
pub(super) async fn pipeline(
    words: Vec<OsString>,
    namespace: Option<Namespace>,
    own: PhaseRegistry,
) -> Result<(), Failure> {
    let PipelineArgs { file, pipeline, up } = parse("pipeline", words)?;
    let up = up.within(namespace);
    run(up.with_file(HandlerFile { path: file, take: Take::Pipeline(pipeline) }), own).await
}

pub(super) async fn run(up: UpArgs, own: PhaseRegistry) -> Result<(), Failure> {
    Box::pin(crate::node::run(up, own)).await.map_err(Failure::from_node)
}

fn parse<T: Parser>(noun: &str, words: Vec<OsString>) -> Result<T, Failure> {
    let first = words.first().map(PathBuf::from).unwrap_or_default();
    let known = first.extension().is_some_and(|it| it == "py" || it == "js" || it == "mjs");
    if !known {
        let first = first.display();
        return Err(Failure::Usage(format!(
            "`{first}` is no command of `{noun}`, and no file of handlers (.py, .js, .mjs); see \
             `carbonmesh {noun} --help`"
        )));
    }
    let line = std::iter::once(OsString::from("carbonmesh")).chain(words);
    Ok(T::try_parse_from(line).unwrap_or_else(|error| error.exit()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        PhaseArgs::command().debug_assert();
        PipelineArgs::command().debug_assert();
    }
}
