//! `--watch`: asks again and again, and shows what there is now.
//!
//! On a terminal each answer is drawn over the one before; elsewhere each follows the other, apart by
//! a blank line.

use std::{io::IsTerminal, str::FromStr, time::Duration};

use super::{Cli, Command, Failure, cluster, job, once, pipeline};
use crate::{document::parse_duration, phase::PhaseRegistry};

/// How often, unless somebody says.
pub(super) const USUAL: &str = "2s";

/// More often than that is a load.
const SHORTEST: Duration = Duration::from_millis(100);

/// How often it is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Every(Duration);

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A mere number is meant as seconds.
        let seconds = text.parse::<f64>().ok().and_then(|it| Duration::try_from_secs_f64(it).ok());
        let every = match seconds {
            Some(every) => every,
            None => parse_duration(text).map_err(|error| error.to_string())?,
        };
        if every < SHORTEST {
            return Err(format!("every {} ms at most", SHORTEST.as_millis()));
        }
        Ok(Self(every))
    }
}

/// Whether a command only looks.
fn only_looks(command: &Command) -> bool {
    match command {
        Command::Status | Command::Doctor => true,
        Command::Node(it) => !matches!(it, cluster::NodeCommand::LogLevel { .. }),
        Command::Phase(it) => !matches!(it, cluster::PhaseCommand::File(_)),
        Command::Pipeline(it) => {
            matches!(it, pipeline::Command::Ls | pipeline::Command::Show { .. })
        }
        Command::Job(it) => {
            matches!(
                it,
                job::Command::Ls { .. }
                    | job::Command::Show { wait: None, .. }
                    | job::Command::Explain { .. }
            )
        }
        _ => false,
    }
}

/// Runs until stopped, or the output is closed. `parse` reads the command line anew each time.
pub(super) async fn run(first: Cli, every: Every, parse: fn() -> Cli) -> Result<(), Failure> {
    if !only_looks(&first.command) {
        let why =
            "--watch is for commands that only look: status, doctor, and ls and show of a noun";
        return Err(Failure::Usage(why.to_owned()));
    }
    let terminal = std::io::stdout().is_terminal();
    let mut cli = first;
    loop {
        let out = match terminal {
            true => cli.output().redrawn(),
            false => cli.output(),
        };
        out.begin()?;
        match once(cli, &out, PhaseRegistry::default()).await {
            Ok(()) => {}
            // What the command line says does not become right.
            Err(failure @ (Failure::Usage(_) | Failure::OutputClosed | Failure::Output(_))) => {
                return Err(failure);
            }
            // The node may be starting again.
            Err(failure) => out.text(&format!("error: {failure}"))?,
        }
        out.end()?;
        tokio::time::sleep(every.0).await;
        cli = parse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_durations_or_seconds() {
        let parse = |text: &str| text.parse::<Every>().map(|every| every.0.as_millis());
        assert_eq!(parse("2s"), Ok(2000));
        assert_eq!(parse("0.5"), Ok(500));
        for bad in ["0", "soon", "-1", "1ms"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
