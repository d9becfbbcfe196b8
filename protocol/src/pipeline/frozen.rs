//! A definition's bytes, as the first release wrote them.
//!
//! What came later is in a further variant of [`FairBy`], whose first two have the bytes of the option
//! that stood there. So a definition without it keeps its bytes and its revision, and is understood
//! by older nodes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{PhaseDef, PipelineDef, Quorum, Retention};
use crate::{name::Name, schedule::Schedule};

/// See the [module](self).
#[derive(Serialize, Deserialize)]
pub(super) struct PipelineV1 {
    name: Name,
    phases: Vec<PhaseDef>,
    replicas: u8,
    accept: Quorum,
    execute: Quorum,
    timeout: Option<Duration>,
    retention: Retention,
    fair_by: FairBy,
    schedules: Vec<Schedule>,
    compensations: Vec<PhaseDef>,
}

/// Whose turn it is, and what came later.
#[derive(Serialize, Deserialize)]
enum FairBy {
    /// As an option that is none.
    Nobody,
    /// As an option that is some.
    Owner(String),
    /// The same, and what jobs have to look like.
    WithSchema { fair_by: Option<String>, input_schema: String },
    /// The same, and into how many parts its jobs are split; with which of them this is.
    Partitioned {
        fair_by: Option<String>,
        input_schema: Option<String>,
        partitions: u16,
        keyed_partitions: u16,
        partition: u16,
    },
}

impl From<PipelineDef> for PipelineV1 {
    fn from(it: PipelineDef) -> Self {
        let (partitions, keyed_partitions) = (it.partitions, it.keyed_partitions);
        let fair_by = match (it.fair_by, it.input_schema) {
            (fair_by, input_schema) if partitions > 1 => {
                let partition = it.partition;
                FairBy::Partitioned {
                    fair_by,
                    input_schema,
                    partitions,
                    keyed_partitions,
                    partition,
                }
            }
            (None, None) => FairBy::Nobody,
            (Some(owner), None) => FairBy::Owner(owner),
            (fair_by, Some(input_schema)) => FairBy::WithSchema { fair_by, input_schema },
        };
        Self {
            name: it.name,
            phases: it.phases,
            replicas: it.replicas,
            accept: it.accept,
            execute: it.execute,
            timeout: it.timeout,
            retention: it.retention,
            fair_by,
            schedules: it.schedules,
            compensations: it.compensations,
        }
    }
}

impl From<PipelineV1> for PipelineDef {
    fn from(it: PipelineV1) -> Self {
        let (fair_by, input_schema, split) = match it.fair_by {
            FairBy::Nobody => (None, None, (1, 1, 0)),
            FairBy::Owner(owner) => (Some(owner), None, (1, 1, 0)),
            FairBy::WithSchema { fair_by, input_schema } => {
                (fair_by, Some(input_schema), (1, 1, 0))
            }
            FairBy::Partitioned {
                fair_by,
                input_schema,
                partitions,
                keyed_partitions,
                partition,
            } => (fair_by, input_schema, (partitions, keyed_partitions, partition)),
        };
        let (partitions, keyed_partitions, partition) = split;
        Self {
            name: it.name,
            phases: it.phases,
            replicas: it.replicas,
            accept: it.accept,
            execute: it.execute,
            timeout: it.timeout,
            retention: it.retention,
            fair_by,
            schedules: it.schedules,
            compensations: it.compensations,
            input_schema,
            partitions,
            keyed_partitions,
            partition,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::codec::{decode_body, encode_body};

    use super::*;

    /// What stood in place of [`FairBy`].
    #[derive(Serialize)]
    struct Before(Option<String>);

    #[test]
    fn without_a_schema_the_bytes_are_those_of_an_option() {
        for (now, before) in [
            (FairBy::Nobody, None),
            (FairBy::Owner("/tenant".to_owned()), Some("/tenant".to_owned())),
        ] {
            assert_eq!(encode_body(&now), encode_body(&Before(before)));
        }
    }

    #[test]
    fn a_definition_is_the_same_behind_its_bytes() {
        let phases = || vec![crate::pipeline::PhaseInput::named("one".parse().expect("a name"))];
        for (fair_by, input_schema, partitions) in [
            (None, None, 1),
            (Some("/tenant".to_owned()), None, 1),
            (None, Some("{}".to_owned()), 1),
            (Some("/tenant".to_owned()), Some("{\"type\":\"object\"}".to_owned()), 1),
            (Some("/tenant".to_owned()), None, 3),
            (None, Some("{}".to_owned()), 64),
        ] {
            let settings = crate::pipeline::Settings {
                fair_by,
                input_schema,
                partitions,
                ..Default::default()
            };
            let made =
                PipelineDef::with("p".parse().expect("a name"), phases(), settings).expect("valid");
            for made in [made.of_partition(partitions - 1), made] {
                let read: PipelineDef = decode_body(&encode_body(&made)).expect("its bytes");
                assert_eq!(read, made);
            }
        }
    }
}
