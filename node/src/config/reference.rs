//! `docs/config.md` against the code: every key that the file takes, every flag with its variable, and the
//! defaults that are numbers or durations, each in a row of its own; and no row for what is not there.
//!
//! Keys are found by reading a [`ConfigFile`] from a [`Probe`], which answers whatever is asked for and
//! writes down what was.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use carbonmesh_protocol::config::{Limits, Timing};
use clap::Args;
use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{Error, StrDeserializer},
    },
    forward_to_deserialize_any,
};

use super::{
    DEFAULT_HTTP, UpArgs,
    file::{ConfigFile, DEFAULT_FREE_BYTES},
    offers::DEFAULT_SLOTS,
};
use crate::{
    document::parse_duration,
    phase::{ExecSettings, HostSettings, WasmSettings},
};

const PAGE: &str = include_str!("../../../docs/config.md");

/// Answers with something of each type, and notes the path of what has no parts.
#[derive(Clone)]
struct Probe {
    path: String,
    found: Rc<RefCell<BTreeSet<String>>>,
}

impl Probe {
    fn note(&self) {
        self.found.borrow_mut().insert(self.path.clone());
    }

    fn below(&self, key: &str) -> Self {
        let path =
            if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Self { path, found: Rc::clone(&self.found) }
    }
}

/// The keys of a table.
struct Keys {
    probe: Probe,
    keys: Vec<&'static str>,
}

impl<'de> MapAccess<'de> for Keys {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Error> {
        let Some(key) = self.keys.last() else { return Ok(None) };
        let key: StrDeserializer<'_, Error> = (*key).into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let key = self.keys.pop().expect("a key was given before");
        seed.deserialize(self.probe.below(key))
    }
}

/// One element of a list: its keys, if it is a table.
struct One(Option<Probe>);

impl<'de> SeqAccess<'de> for One {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|probe| seed.deserialize(probe)).transpose()
    }
}

impl<'de> Deserializer<'de> for Probe {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_str("1s")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_bool(true)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note();
        visitor.visit_u64(1)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(One(Some(self)))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // Tables whose keys are the user's: what they hold stands under NAME, or is told of as a whole.
        let inner = Probe { path: self.path.clone(), found: Rc::default() };
        let value = visitor.visit_map(Keys { probe: inner.clone(), keys: vec!["NAME"] });
        let found = inner.found.borrow();
        match found.len() == 1 && found.contains(&format!("{}.NAME", self.path)) {
            true => self.note(),
            false => self.found.borrow_mut().extend(found.iter().cloned()),
        }
        value
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Keys { probe: self, keys: fields.to_vec() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.note();
        let first: StrDeserializer<'_, Error> = variants[0].into_deserializer();
        visitor.visit_enum(first)
    }

    forward_to_deserialize_any! {
        i8 i16 i64 i128 u8 u128 f32 char str string bytes byte_buf unit unit_struct tuple tuple_struct
        identifier ignored_any
    }
}

/// The cells of the page's tables, without the ticks around code.
fn rows() -> Vec<Vec<String>> {
    let lines = PAGE.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = lines.map(|line| line.trim_matches('|').split('|'));
    let plain = |cell: &str| cell.trim().trim_matches('`').to_owned();
    cells.map(|cells| cells.map(plain).collect()).collect()
}

fn keys() -> BTreeSet<String> {
    let found = Rc::default();
    let probe = Probe { path: String::new(), found: Rc::clone(&found) };
    ConfigFile::deserialize(probe).expect("a file with something for each key");
    found.take()
}

#[test]
fn every_key_of_the_file_has_a_row_and_every_row_a_key() {
    let keys = keys();
    assert!(keys.contains("hosts.NAME.max_files") && keys.contains("labels"), "{keys:?}");
    let heads = ["key", "variable"];
    let told: BTreeSet<String> = rows()
        .into_iter()
        .map(|cells| cells[0].clone())
        .filter(|key| !key.is_empty() && !heads.contains(&key.as_str()))
        .filter(|key| !key.starts_with("CARBONMESH_") && !key.starts_with("NOTIFY_"))
        .collect();
    let missing: Vec<_> = keys.difference(&told).collect();
    let gone: Vec<_> = told.difference(&keys).collect();
    assert!(missing.is_empty(), "docs/config.md: add a row for each of {missing:?}");
    assert!(gone.is_empty(), "docs/config.md: the file takes no such key: {gone:?}");
}

#[test]
fn every_flag_stands_beside_its_variable() {
    let command = UpArgs::augment_args(clap::Command::new("up"));
    let flags = command.get_arguments().filter_map(|argument| {
        let variable = argument.get_env()?.to_str()?.to_owned();
        Some((format!("--{}", argument.get_long()?), variable))
    });
    let flags: BTreeSet<(String, String)> = flags.collect();
    assert!(flags.len() > 10, "{flags:?}");
    let told: BTreeSet<(String, String)> = rows()
        .into_iter()
        .filter(|cells| cells.len() == 5 && cells[1].starts_with("--"))
        .map(|cells| (cells[1].clone(), cells[2].clone()))
        .collect();
    assert_eq!(flags, told, "docs/config.md: flags of `carbonmesh up`, and what it says of them");
}

/// A number with an optional unit, or a duration; what both sides of a comparison become.
fn value(text: &str) -> Option<u128> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let shift = match unit {
        "" => 0,
        "MiB" => 20,
        "GiB" => 30,
        "s" => return Some(Duration::from_secs(number.parse().ok()?).as_nanos()),
        _ => return None,
    };
    let plain = number.parse::<u128>().ok().map(|number| number << shift);
    plain.or_else(|| parse_duration(text).ok().map(|it| it.as_nanos()))
}

#[test]
fn defaults_are_those_of_the_code() {
    let (limits, timing) = (Limits::DEFAULT, Timing::DEFAULT);
    let time = |it: Duration| it.as_nanos();
    let defaults = [
        ("limits.job_bytes", limits.job_bytes as u128),
        ("limits.result_bytes", limits.result_bytes as u128),
        ("limits.job_results_bytes", limits.job_results_bytes as u128),
        ("limits.session_bytes", limits.session_bytes as u128),
        ("limits.session_keys", limits.session_keys as u128),
        ("limits.waiting_jobs", limits.waiting_jobs.into()),
        ("limits.waiting_bytes", limits.waiting_bytes as u128),
        ("limits.resident_bytes", limits.resident_bytes as u128),
        ("limits.journal_bytes", limits.journal_bytes as u128),
        ("limits.journal_jobs", limits.journal_jobs as u128),
        ("limits.pipelines", limits.pipelines as u128),
        ("limits.requests", limits.requests as u128),
        ("limits.events", limits.events as u128),
        ("limits.event_bytes", limits.event_bytes as u128),
        ("limits.free_bytes", DEFAULT_FREE_BYTES.into()),
        ("timing.beat", time(timing.beat)),
        ("timing.lease", time(timing.lease)),
        ("timing.reconnect_grace", time(timing.reconnect_grace)),
        ("timing.ack_timeout", time(timing.ack_timeout)),
        ("timing.election_step", time(timing.election_step)),
        ("timing.minority_wait", time(timing.minority_wait)),
        ("timing.start_wait", time(timing.start_wait)),
        ("timing.request_timeout", time(timing.request_timeout)),
        ("timing.overdue", time(timing.overdue)),
        ("timing.anti_entropy", time(timing.anti_entropy)),
        ("timing.replace_after", time(timing.replace_after)),
        ("timing.tombstones", time(timing.tombstones)),
        ("phases.NAME.slots", DEFAULT_SLOTS.into()),
        ("phases.NAME.max_output", ExecSettings::MAX_OUTPUT as u128),
        ("phases.NAME.max_memory", WasmSettings::MAX_MEMORY as u128),
        ("hosts.NAME.slots", 1),
        ("hosts.NAME.max_frame", HostSettings::new("h", vec![]).max_frame as u128),
        ("hosts.NAME.start_timeout", time(HostSettings::START_TIMEOUT)),
    ];
    let told: BTreeMap<String, String> = rows()
        .into_iter()
        .map(|cells| {
            let at = if cells.len() == 5 { 3 } else { 1 };
            (cells[0].clone(), cells[at].clone())
        })
        .collect();
    for (key, default) in defaults {
        let text = told.get(key).map_or("", String::as_str);
        assert_eq!(
            value(text),
            Some(default),
            "docs/config.md: the default of {key} is not {text}"
        );
    }
    assert_eq!(told["http"], DEFAULT_HTTP);
    assert_eq!(told["phases.NAME.no_retry_codes"], format!("{:?}", ExecSettings::NO_RETRY_CODES));
    let numbers = defaults.map(|(key, _)| key);
    for key in keys().iter().filter(|key| key.starts_with("limits.") || key.starts_with("timing."))
    {
        assert!(numbers.contains(&key.as_str()), "compare the default of {key} here too");
    }
}
