//! What a caller may do: verbs, each on some pipelines.
//!
//! `read:*` is every pipeline, `enqueue:orders` one, `jobs:orders-*` all whose names begin so.
//! `metrics` and `admin` have no pipelines. No verb brings another, but `admin` brings all.

use std::{fmt, str::FromStr};

/// What is done to a pipeline or to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// See pipelines, jobs and what they hold, nodes.
    Read,
    /// Enqueue jobs.
    Enqueue,
    /// Cancel, retry, discard and signal jobs.
    Jobs,
    /// Apply, roll back, remove, pause and resume pipelines.
    Pipelines,
    /// Read the node's metrics.
    Metrics,
    /// Everything, of what has no other verb too.
    Admin,
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Enqueue, Self::Jobs, Self::Pipelines, Self::Metrics, Self::Admin];

    /// As it is written in scopes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Enqueue => "enqueue",
            Self::Jobs => "jobs",
            Self::Pipelines => "pipelines",
            Self::Metrics => "metrics",
            Self::Admin => "admin",
        }
    }

    /// Whether it is said of which pipelines it holds.
    pub const fn has_pipelines(self) -> bool {
        !matches!(self, Self::Metrics | Self::Admin)
    }
}

/// Some pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    All,
    Prefix(String),
    One(String),
}

impl Pattern {
    fn covers(&self, pipeline: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(prefix) => pipeline.starts_with(prefix),
            Self::One(name) => pipeline == name,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |text: &str| {
            text.parse::<carbonmesh_protocol::name::Name>()
                .map(|name| name.to_string())
                .map_err(|error| error.to_string())
        };
        match text.strip_suffix('*') {
            Some("") => Ok(Self::All),
            Some(prefix) => name(prefix).map(Self::Prefix),
            None => name(text).map(Self::One),
        }
    }
}

/// One verb on some pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    verb: Verb,
    pipelines: Pattern,
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (verb, pipelines) = match text.split_once(':') {
            Some((verb, pipelines)) => (verb, Some(pipelines)),
            None => (text, None),
        };
        let verb = Verb::ALL.into_iter().find(|one| one.name() == verb).ok_or_else(|| {
            let names = Verb::ALL.map(Verb::name).join(", ");
            format!("`{text}` has no verb that there is: take one of {names}")
        })?;
        let pipelines = match (verb.has_pipelines(), pipelines) {
            (true, Some(pipelines)) => {
                pipelines.parse().map_err(|error| format!("`{text}`: {error}"))?
            }
            (true, None) => {
                let verb = verb.name();
                return Err(format!(
                    "`{text}` names no pipelines: write {verb}:NAME, {verb}:PREFIX*, or {verb}:* for all"
                ));
            }
            (false, None) => Pattern::All,
            (false, Some(_)) => {
                return Err(format!("`{text}`: {} has no pipelines: write it alone", verb.name()));
            }
        };
        Ok(Self { verb, pipelines })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verb.name())?;
        match &self.pipelines {
            _ if !self.verb.has_pipelines() => Ok(()),
            Pattern::All => f.write_str(":*"),
            Pattern::Prefix(prefix) => write!(f, ":{prefix}*"),
            Pattern::One(name) => write!(f, ":{name}"),
        }
    }
}

/// All that a caller may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// These.
    pub fn new(scopes: Vec<Scope>) -> Self {
        Self(scopes)
    }

    /// Everything.
    pub fn everything() -> Self {
        Self(vec![Scope { verb: Verb::Admin, pipelines: Pattern::All }])
    }

    /// As they are written.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    fn of(&self, verb: Verb) -> impl Iterator<Item = &Pattern> {
        let holds = move |scope: &&Scope| scope.verb == verb || scope.verb == Verb::Admin;
        self.0.iter().filter(holds).map(|scope| &scope.pipelines)
    }

    /// Whether the verb is allowed on this pipeline.
    pub fn allow(&self, verb: Verb, pipeline: &str) -> bool {
        self.of(verb).any(|pipelines| pipelines.covers(pipeline))
    }

    /// Whether the verb is allowed on some pipeline.
    pub fn allow_some(&self, verb: Verb) -> bool {
        self.of(verb).next().is_some()
    }

    /// Whether the verb is allowed on every pipeline.
    pub fn allow_all(&self, verb: Verb) -> bool {
        self.of(verb).any(|pipelines| *pipelines == Pattern::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scopes(texts: &[&str]) -> Scopes {
        Scopes::new(texts.iter().map(|text| text.parse().expect(text)).collect())
    }

    #[test]
    fn scopes_cover_what_they_name_and_nothing_else() {
        let some = scopes(&["read:*", "enqueue:orders", "jobs:orders-*"]);
        assert!(some.allow(Verb::Read, "anything") && some.allow_all(Verb::Read));
        assert!(some.allow(Verb::Enqueue, "orders"));
        for other in ["order", "orders2", "Orders", ""] {
            assert!(!some.allow(Verb::Enqueue, other), "{other}");
        }
        assert!(some.allow(Verb::Jobs, "orders-eu") && !some.allow(Verb::Jobs, "orders"));
        assert!(some.allow_some(Verb::Jobs) && !some.allow_all(Verb::Jobs));
        for verb in [Verb::Pipelines, Verb::Metrics, Verb::Admin] {
            assert!(!some.allow_some(verb), "{verb:?}");
        }
        assert!(!Scopes::default().allow_some(Verb::Read));
    }

    #[test]
    fn admin_is_everything_and_nothing_else_is_admin() {
        for verb in Verb::ALL {
            assert!(scopes(&["admin"]).allow_all(verb), "{verb:?}");
            let name = verb.name();
            let text = if verb.has_pipelines() { format!("{name}:*") } else { name.to_owned() };
            for other in Verb::ALL {
                let expected = other == verb || verb == Verb::Admin;
                assert_eq!(scopes(&[&text]).allow_some(other), expected, "{text} {other:?}");
            }
        }
    }

    #[test]
    fn scopes_read_back_as_written_and_mistakes_are_named() {
        for text in ["read:*", "enqueue:orders", "jobs:o-*", "metrics", "admin"] {
            assert_eq!(text.parse::<Scope>().expect(text).to_string(), text);
        }
        let wrong = [
            "",
            "read",
            "read:",
            "read:a b",
            "write:*",
            "admin:*",
            "metrics:x",
            "read:*x",
            "READ:*",
        ];
        for text in wrong {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }
}
