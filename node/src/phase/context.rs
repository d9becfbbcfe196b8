//! What one attempt knows of itself.

use carbonmesh_protocol::{id::JobId, io::Attempt, name::Name};
use tokio_util::sync::CancellationToken;
use tracing::{Span, info};

use super::{Fields, PhaseError};
use crate::document::{merge_instructions, name_results};

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct PhaseContext {
    attempt: Attempt,
    cancelled: CancellationToken,
    span: Span,
}

impl PhaseContext {
    pub(crate) fn new(attempt: Attempt, cancelled: CancellationToken, span: Span) -> Self {
        Self { attempt, cancelled, span }
    }

    /// The job.
    pub fn job(&self) -> JobId {
        self.attempt.job
    }

    /// The job's pipeline.
    pub fn pipeline(&self) -> &str {
        self.attempt.pipeline.as_str()
    }

    /// The step's name in the pipeline.
    pub fn step(&self) -> &str {
        self.attempt.step.as_str()
    }

    /// Which attempt of this phase of this job it is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// What fences this attempt: later attempts of the same phase of the same job have greater
    /// ones.
    pub fn token(&self) -> String {
        self.attempt.token.to_string()
    }

    /// The same for all attempts of this phase of this job: for systems that drop repetitions.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.attempt.job, self.attempt.step)
    }

    /// The instructions that the job was enqueued with, the results of the phases before merged
    /// into them.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn instructions(&self) -> Result<Fields, PhaseError> {
        serde_json::from_slice(&self.instructions_json()?)
            .map_err(|error| PhaseError::Fatal(format!("the instructions are no object: {error}")))
    }

    /// The same as one line of JSON.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn instructions_json(&self) -> Result<Vec<u8>, PhaseError> {
        let Attempt { instructions, results, names, .. } = &self.attempt;
        match names {
            None => merge_instructions(instructions, results),
            Some(names) => {
                let names = names.iter().map(Name::as_str);
                name_results(instructions, names.zip(results))
            }
        }
        .map_err(|error| PhaseError::Fatal(error.to_string()))
    }

    /// Cancelled when nobody wants the attempt's end any more, or its time is over.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Where the attempt's log lines belong; the phase runs inside it.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Logs how far the attempt has come: a part of 1, and what is being done.
    pub fn progress(&self, done: f32, message: &str) {
        info!(parent: &self.span, done, message, "progress");
    }
}
