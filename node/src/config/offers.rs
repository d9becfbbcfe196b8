//! What a node offers: phases of the program and of its configuration, as far as flags choose them and
//! its certificate grants them; and the languages of the cluster's handlers that it runs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use carbonmesh_protocol::{
    advert::Roles,
    handler::Language,
    name::{Name, Namespace},
    rights::Rights,
};

use super::{ConfigError, file::PhaseSection, wrong};
use crate::phase::{ExecPhase, OfferedPhase, Phase, PhaseRegistry, Registered, wasm};

/// Slots of a configured phase that says nothing about them.
pub(super) const DEFAULT_SLOTS: u32 = 1;

/// More would be a mistake: every slot may become a process.
pub(super) const MAX_SLOTS: u32 = 10_000;

/// What this node offers: everything that it can run, or what `--phase` names of it.
pub(super) fn phases(
    chosen: &[String],
    configured: &BTreeMap<String, PhaseSection>,
    registry: &PhaseRegistry,
) -> Result<Vec<OfferedPhase>, ConfigError> {
    let mut known = BTreeMap::new();
    for (name, Registered { slots, timeout, phase }) in registry.iter() {
        let name = phase_name(name)?;
        let (slots, timeout, phase) = (*slots, *timeout, phase.clone());
        let offered = OfferedPhase { name: name.clone(), slots, timeout, phase };
        known.insert(name, offered);
    }
    for (text, section) in configured {
        let name = phase_name(text)?;
        let runs: Option<Arc<dyn Phase>> = match (&section.wasm, &section.command) {
            (Some(file), _) => Some(Arc::new(section.module(text, file)?)),
            (None, Some(_)) => Some(Arc::new(ExecPhase::new(section.exec(text)?))),
            (None, None) => None,
        };
        match (runs, known.get_mut(&name)) {
            (Some(phase), _) => {
                let slots = section.slots.unwrap_or(DEFAULT_SLOTS);
                let timeout = section.timeout(text)?;
                known.insert(name.clone(), OfferedPhase { name, slots, timeout, phase });
            }
            (None, Some(offered)) => {
                offered.slots = section.slots.unwrap_or(offered.slots);
                offered.timeout = section.timeout(text)?.or(offered.timeout);
            }
            (None, None) => {
                let setting = format!("phases.{text}.command");
                let reason =
                    "is missing: give the program and its arguments, or a module as `wasm`";
                return Err(wrong(setting, reason));
            }
        }
    }
    let mut offered: Vec<OfferedPhase> = match chosen {
        [] => known.into_values().collect(),
        chosen => chosen.iter().map(|text| choose(text, &known)).collect::<Result<_, _>>()?,
    };
    offered.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in offered.windows(2) {
        if pair[0].name == pair[1].name {
            return Err(wrong("--phase", format!("`{}` is given twice", pair[0].name)));
        }
    }
    for phase in &offered {
        if phase.slots == 0 || phase.slots > MAX_SLOTS {
            let reason =
                format!("{} has {} slots: 1 to {MAX_SLOTS} are possible", phase.name, phase.slots);
            return Err(wrong("phases", reason));
        }
    }
    Ok(offered)
}

/// The phases that the certificate grants; what was chosen by name must be among them.
pub(super) fn granted_phases(
    phases: Vec<OfferedPhase>,
    chosen: &[String],
    rights: &Rights,
) -> Result<Vec<OfferedPhase>, ConfigError> {
    let (granted, others): (Vec<_>, Vec<_>) =
        phases.into_iter().partition(|phase| rights.offer(&phase.name));
    match others.first() {
        Some(other) if !chosen.is_empty() => {
            let reason = format!(
                "this node's certificate does not grant phase `{}`: leave it out, or ask for an \
                 invitation with it",
                other.name
            );
            Err(wrong("--phase", reason))
        }
        Some(other) => {
            tracing::warn!(phase = %other.name, "not offered: this node's certificate does not grant it");
            Ok(granted)
        }
        None => Ok(granted),
    }
}

/// Phases as they are called in each of the namespaces.
pub(super) fn in_namespaces(
    phases: &[OfferedPhase],
    namespaces: &BTreeSet<Namespace>,
) -> Vec<OfferedPhase> {
    let within = |namespace: &Namespace, phase: &OfferedPhase| OfferedPhase {
        name: phase.name.within(namespace),
        ..phase.clone()
    };
    let each = namespaces.iter();
    each.flat_map(|namespace| phases.iter().map(move |phase| within(namespace, phase))).collect()
}

/// Puts the modules that flags name beside those of the file.
pub(super) fn modules(
    flags: &[String],
    sections: &mut BTreeMap<String, PhaseSection>,
) -> Result<(), ConfigError> {
    for text in flags {
        let named = text.trim().split_once('=').filter(|(_, file)| !file.is_empty());
        let (name, file) = named.ok_or_else(|| {
            let reason = format!("`{text}` is no module: write NAME=FILE, as in shout=shout.wasm");
            wrong("--wasm", reason)
        })?;
        let section = sections.entry(name.to_owned()).or_default();
        if section.by_flag {
            return Err(wrong("--wasm", format!("`{name}` is given twice")));
        }
        (section.wasm, section.by_flag) = (Some(PathBuf::from(file)), true);
    }
    Ok(())
}

/// Reads `NAME` or `NAME=SLOTS`.
fn choose(text: &str, known: &BTreeMap<Name, OfferedPhase>) -> Result<OfferedPhase, ConfigError> {
    let (name, slots) = text.trim().split_once('=').unwrap_or((text.trim(), ""));
    let parsed = Name::plain(name).map_err(|e| wrong("--phase", format!("{e}")))?;
    let found = known.get(&parsed).ok_or_else(|| {
        let names: Vec<&str> = known.keys().map(Name::as_str).collect();
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let reason = format!(
            "this node has no phase `{name}` (it has: {there}); give its command in the \
             configuration file as [phases.{name}]"
        );
        wrong("--phase", reason)
    })?;
    let slots = match slots {
        "" => found.slots,
        slots => slots.parse().map_err(|_| {
            wrong("--phase", format!("`{text}`: slots are a number, as in {name}=4"))
        })?,
    };
    Ok(OfferedPhase { slots, ..found.clone() })
}

fn phase_name(text: &str) -> Result<Name, ConfigError> {
    Name::plain(text).map_err(|error| wrong(format!("phases.{text}"), error.to_string()))
}

/// The languages of handlers that the operator lets run here.
pub(super) fn accepted_languages(
    names: &[String],
    roles: Roles,
) -> Result<BTreeSet<Language>, ConfigError> {
    if !names.is_empty() && !roles.worker {
        return Err(wrong("--accept-handlers", "this node is no worker: add worker to --role"));
    }
    let mut accepted = BTreeSet::new();
    for name in names {
        match name.trim() {
            "all" => accepted.extend(Language::ALL),
            name => {
                let language = name.parse();
                let language =
                    language.map_err(|error: String| wrong("--accept-handlers", error))?;
                if language == Language::Wasm && !wasm::IS_BUILT_IN {
                    return Err(wrong("--accept-handlers", wasm::NOT_BUILT_IN));
                }
                accepted.insert(language);
            }
        }
    }
    Ok(accepted)
}
