//! Phases in a pipeline document: a bare name, or a table with settings.

use std::{fmt, time::Duration};

use carbonmesh_protocol::{
    pipeline::{
        Backoff, Combine, EachInput, Handling, KeyedLimit, PhaseDef, PhaseInput, PhaseInputMode,
        Rate,
    },
    requirement::RequirementError,
};
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{DocumentError, field, format_duration, full_name, name, parse_duration, schema};

/// A phase in a document: just its name, or all that there is to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PhaseItem {
    /// With the usual settings.
    Name(String),
    /// With its own.
    Full(Box<PhaseDocument>),
}

/// A phase with settings of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PhaseDocument {
    /// Its name within the pipeline.
    pub name: String,
    /// What a worker must offer to run it; its name unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The phases that must have succeeded before; the one before in the list unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// How often it is tried; 3 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// How long a retry waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffDocument>,
    /// How long one attempt may run, such as `30s`; the worker's own limit unless given. Of a phase
    /// that waits for a signal, how long it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// How long after its first attempt began the phase may be tried again; for ever unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<String>,
    /// What the phase gets to work on: `merge`, `replace` or `named`; `merge` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::input")]
    pub input: Option<PhaseInputMode>,
    /// What the phase gets, as a JMESPath expression over `instructions` and `results`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_mapping: Option<String>,
    /// What counts of what the phase gave, as a JMESPath expression over that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_mapping: Option<String>,
    /// How long an attempt may be silent before it counts as failed, such as `1m`; for ever unless
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_timeout: Option<String>,
    /// The signal whose data is the phase's result; no worker runs it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for: Option<String>,
    /// How many attempts may begin in a time; any number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<RateDocument>,
    /// How many attempts there may be at once for one key; any number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitDocument>,
    /// What has to hold for it to run, as a JMESPath expression over `instructions` and `results`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// What a node must have to run it: labels, as in `gpu`, `zone=a`, `memory>=8GiB`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// What undoes it when its job fails for good, the phases behind it first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensate: Option<Box<PhaseItem>>,
    /// The phase each of whose items this is done with; the job goes on when all of that is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_each: Option<String>,
    /// What is done with each item, if that is more than this one phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Vec<PhaseItem>>,
    /// How what the items gave is put together: `group` by key, or a `list`; `group` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::combine")]
    pub combine: Option<Combine>,
    /// How many items of a hundred may fail; 0 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerate_percent: Option<u8>,
}

/// So many in a time, such as 100 in `1s`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateDocument {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: String,
}

/// So many at once for each value that jobs have at a place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitDocument {
    /// The place in the instructions, as a JSON Pointer (RFC 6901), such as `/customer`.
    pub key: String,
    /// How many at once.
    pub running: u32,
}

/// How long a retry waits: `initial`, then twice as long each time, up to `max`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackoffDocument {
    /// `1s` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// `1m` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<String>,
    /// How much of each wait is left to chance, in percent; 10 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_percent: Option<u8>,
}

impl PhaseItem {
    /// The phase for the protocol; `place` begins the place in errors.
    pub(super) fn input(&self, place: &str) -> Result<PhaseInput, DocumentError> {
        match self {
            Self::Name(text) => Ok(PhaseInput::named(name(text, || place.to_owned())?)),
            Self::Full(phase) => phase.input(place),
        }
    }

    /// Says only what a reader would not assume.
    pub(super) fn of(phases: &[PhaseDef], at: usize, undo: &[PhaseDef]) -> Self {
        let phase = &phases[at];
        let undone = undo.iter().position(|it| it.undoes == Some(at as u16));
        let compensate = undone.map(|undo_at| {
            // It stands behind nothing but its turn.
            let alone = [PhaseDef { after: Vec::new(), ..undo[undo_at].clone() }];
            Box::new(Self::of(&alone, 0, &[]))
        });
        let usual = PhaseInput::named(phase.name.clone());
        let usual_after = match &phase.each {
            Some(each) => Some(each.of),
            None => at.checked_sub(1).map(|before| before as u16),
        };
        let names = |after: &u16| phases.get(usize::from(*after)).map(|one| one.name.to_string());
        if let Some(each) = &phase.each {
            // One phase alone is written in its place.
            let alone = [&each.phases[..]].into_iter().find(|it| it.len() == 1);
            let alone = alone.map(|it| &it[0]).filter(|one| one.name == phase.name);
            let document = match alone.map(|_| Self::of(&each.phases, 0, &[])) {
                Some(Self::Full(document)) => *document,
                _ => PhaseDocument { name: phase.name.to_string(), ..PhaseDocument::default() },
            };
            let within =
                || (0..each.phases.len()).map(|at| Self::of(&each.phases, at, &[])).collect();
            return Self::Full(Box::new(PhaseDocument {
                after: (!phase.after.iter().eq(usual_after.iter()))
                    .then(|| phase.after.iter().filter_map(names).collect()),
                for_each: phases.get(usize::from(each.of)).map(|one| one.name.to_string()),
                phases: alone.is_none().then(within),
                combine: Some(each.combine).filter(|it| *it != Combine::default()),
                tolerate_percent: Some(each.tolerate_percent).filter(|percent| *percent > 0),
                when: phase.when.clone(),
                compensate,
                ..document
            }));
        }
        let document = PhaseDocument {
            name: phase.name.to_string(),
            phase: (phase.phase.local() != usual.phase.as_str())
                .then(|| phase.phase.local().to_owned()),
            after: (!phase.after.iter().eq(usual_after.iter()))
                .then(|| phase.after.iter().filter_map(names).collect()),
            max_attempts: (phase.max_attempts != usual.max_attempts).then_some(phase.max_attempts),
            backoff: (phase.backoff != usual.backoff).then(|| BackoffDocument {
                initial: Some(format_duration(phase.backoff.initial)),
                max: Some(format_duration(phase.backoff.max)),
                jitter_percent: (phase.backoff.jitter_percent != usual.backoff.jitter_percent)
                    .then_some(phase.backoff.jitter_percent),
            }),
            timeout: phase.timeout.map(format_duration),
            total_timeout: phase.total_timeout.map(format_duration),
            input: Some(phase.input).filter(|input| *input != PhaseInputMode::default()),
            input_mapping: phase.handling.input.clone(),
            output_mapping: phase.handling.output.clone(),
            heartbeat_timeout: phase.handling.heartbeat.map(format_duration),
            wait_for: phase.wait_for.as_ref().map(ToString::to_string),
            rate: phase
                .rate
                .map(|rate| RateDocument { count: rate.count, per: format_duration(rate.per) }),
            limit: phase
                .limit
                .as_ref()
                .map(|limit| LimitDocument { key: limit.key.clone(), running: limit.running }),
            when: phase.when.clone(),
            requires: phase.requires.iter().map(ToString::to_string).collect(),
            compensate,
            ..PhaseDocument::default()
        };
        let bare = PhaseDocument { name: document.name.clone(), ..PhaseDocument::default() };
        if document == bare { Self::Name(document.name) } else { Self::Full(Box::new(document)) }
    }
}

// By hand, since what serde derives for untagged enums keeps no reason and no place.
impl<'de> Deserialize<'de> for PhaseItem {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Item;

        impl<'de> Visitor<'de> for Item {
            type Value = PhaseItem;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a phase: its name, or a table with a `name`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PhaseItem, E> {
                Ok(PhaseItem::Name(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<PhaseItem, A::Error> {
                let phase = PhaseDocument::deserialize(MapAccessDeserializer::new(map))?;
                Ok(PhaseItem::Full(Box::new(phase)))
            }
        }

        deserializer.deserialize_any(Item)
    }
}

impl PhaseDocument {
    fn input(&self, place: &str) -> Result<PhaseInput, DocumentError> {
        match &self.for_each {
            Some(of) => self.each(of, place),
            None => self.alone(place),
        }
    }

    /// A phase that something is done by with each item.
    fn each(&self, of: &str, place: &str) -> Result<PhaseInput, DocumentError> {
        let at = |key: &str| format!("{place}.{key}");
        let of = super::name(of, || at("for_each"))?;
        // What it does with an item has no order among the phases around.
        let one = Self {
            after: None,
            for_each: None,
            phases: None,
            combine: None,
            tolerate_percent: None,
            when: None,
            compensate: None,
            ..self.clone()
        };
        let (phases, own) = match &self.phases {
            None => (vec![one.alone(place)?], Vec::new()),
            Some(within) => {
                let within = within.iter().enumerate();
                let within = within.map(|(nth, it)| it.input(&at(&format!("phases[{nth}]"))));
                (within.collect::<Result<_, _>>()?, one.settings())
            }
        };
        if let Some(key) = own.first() {
            let reason = "it belongs to one of its `phases`: write it there";
            return Err(field(at(key), reason.to_owned()));
        }
        let (name, after, when) = (self.name.clone(), self.after.clone(), self.when.clone());
        let compensate = self.compensate.clone();
        let outer = Self { name, after, when, compensate, ..Self::default() };
        let each = EachInput {
            of,
            phases,
            tolerate_percent: self.tolerate_percent.unwrap_or_default(),
            combine: self.combine.unwrap_or_default(),
        };
        Ok(PhaseInput { each: Some(each), ..outer.alone(place)? })
    }

    /// The keys that are set and say how one phase is run.
    fn settings(&self) -> Vec<&'static str> {
        let set = [
            ("phase", self.phase.is_some()),
            ("max_attempts", self.max_attempts.is_some()),
            ("backoff", self.backoff.is_some()),
            ("timeout", self.timeout.is_some()),
            ("total_timeout", self.total_timeout.is_some()),
            ("input", self.input.is_some()),
            ("input_mapping", self.input_mapping.is_some()),
            ("output_mapping", self.output_mapping.is_some()),
            ("heartbeat_timeout", self.heartbeat_timeout.is_some()),
            ("wait_for", self.wait_for.is_some()),
            ("rate", self.rate.is_some()),
            ("limit", self.limit.is_some()),
            ("requires", !self.requires.is_empty()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(key, _)| key).collect()
    }

    fn alone(&self, place: &str) -> Result<PhaseInput, DocumentError> {
        let at = |key: &str| format!("{place}.{key}");
        let each = [
            ("phases", self.phases.is_some()),
            ("combine", self.combine.is_some()),
            ("tolerate_percent", self.tolerate_percent.is_some()),
        ];
        if let Some((key, _)) = each.into_iter().find(|(_, set)| *set) {
            let reason = "it says what is done with items: say of which phase with `for_each`";
            return Err(field(at(key), reason.to_owned()));
        }
        let usual = PhaseInput::named(name(&self.name, || at("name"))?);
        let after = self.after.as_ref().map(|names| {
            let names = names.iter().enumerate();
            names.map(|(i, text)| name(text, || at(&format!("after[{i}]")))).collect()
        });
        let phase = self.phase.as_ref().map(|text| full_name(text, || at("phase")));
        let timeout = self.timeout.as_ref().map(|text| positive(text, || at("timeout")));
        let total = self.total_timeout.as_ref();
        let total_timeout = total.map(|text| positive(text, || at("total_timeout")));
        let heartbeat = self.heartbeat_timeout.as_ref();
        let heartbeat = heartbeat.map(|text| positive(text, || at("heartbeat_timeout")));
        let wait_for = self.wait_for.as_ref().map(|text| name(text, || at("wait_for")));
        let requires = self.requires.iter().enumerate().map(|(nth, text)| {
            text.parse().map_err(|error: RequirementError| {
                field(at(&format!("requires[{nth}]")), error.to_string())
            })
        });
        let rate = self.rate.as_ref().map(|rate| {
            let per = positive(&rate.per, || at("rate.per"))?;
            Ok::<_, DocumentError>(Rate { count: rate.count, per })
        });
        Ok(PhaseInput {
            phase: phase.transpose()?.unwrap_or(usual.phase),
            after: after.transpose()?,
            max_attempts: self.max_attempts.unwrap_or(usual.max_attempts),
            backoff: match &self.backoff {
                Some(backoff) => backoff.backoff(&at("backoff"))?,
                None => usual.backoff,
            },
            timeout: timeout.transpose()?,
            total_timeout: total_timeout.transpose()?,
            input: self.input.unwrap_or_default(),
            handling: Handling {
                input: self.input_mapping.clone(),
                output: self.output_mapping.clone(),
                heartbeat: heartbeat.transpose()?,
            },
            wait_for: wait_for.transpose()?,
            rate: rate.transpose()?,
            limit: self
                .limit
                .as_ref()
                .map(|limit| KeyedLimit { key: limit.key.clone(), running: limit.running }),
            each: None,
            when: self.when.clone(),
            requires: requires.collect::<Result<_, _>>()?,
            compensate: self.undo(&at("compensate"))?.map(Box::new),
            name: usual.name,
        })
    }

    /// What undoes the phase: of that only how it is run can be said.
    fn undo(&self, place: &str) -> Result<Option<PhaseInput>, DocumentError> {
        let Some(undo) = self.compensate.as_deref() else { return Ok(None) };
        if let PhaseItem::Full(phase) = undo {
            let set = [
                ("after", phase.after.is_some()),
                ("input", phase.input.is_some()),
                ("wait_for", phase.wait_for.is_some()),
                ("when", phase.when.is_some()),
                ("for_each", phase.for_each.is_some()),
                ("compensate", phase.compensate.is_some()),
            ];
            if let Some((key, _)) = set.into_iter().find(|(_, set)| *set) {
                let reason = "a worker runs it, alone and in its turn: leave this out";
                return Err(field(format!("{place}.{key}"), reason.to_owned()));
            }
        }
        undo.input(place).map(Some)
    }
}

impl BackoffDocument {
    fn backoff(&self, place: &str) -> Result<Backoff, DocumentError> {
        let read = |text: &Option<String>, key: &str| {
            text.as_ref().map(|text| positive(text, || format!("{place}.{key}"))).transpose()
        };
        let Backoff { initial, max, jitter_percent } = Backoff::DEFAULT;
        let jitter_percent = self.jitter_percent.unwrap_or(jitter_percent);
        let backoff = |initial, max| Backoff { initial, max, jitter_percent };
        match (read(&self.initial, "initial")?, read(&self.max, "max")?) {
            (Some(initial), Some(max)) if initial > max => Err(field(
                place,
                format!(
                    "initial is {}, max is {}: initial may not be longer than max",
                    format_duration(initial),
                    format_duration(max)
                ),
            )),
            (Some(initial), Some(max)) => Ok(backoff(initial, max)),
            // The end that was not given gives way to the one that was.
            (Some(initial), None) => Ok(backoff(initial, max.max(initial))),
            (None, Some(max)) => Ok(backoff(initial.min(max), max)),
            (None, None) => Ok(backoff(initial, max)),
        }
    }
}

fn positive(text: &str, place: impl Fn() -> String) -> Result<Duration, DocumentError> {
    let duration = parse_duration(text).map_err(|error| field(place(), error.to_string()))?;
    if duration.as_millis() == 0 {
        return Err(field(place(), format!("`{text}` is too short: give at least 1ms")));
    }
    Ok(duration)
}
