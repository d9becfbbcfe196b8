//! What a caller may do: verbs, each on some pipelines.
//!
//! `read:*` is every pipeline, `read:team/*` every one of a namespace, `enqueue:orders` one, `jobs:orders-*`
//! all whose names begin so. A name without a namespace is one in `default`, and so is how names begin.
//! `metrics` and `admin` have no pipelines. No verb brings another, but `admin` brings all.

use std::{fmt, str::FromStr};

use carbonmesh_protocol::name::{DEFAULT_NAMESPACE, Name, Namespace};

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
    /// Those of a namespace, or those of them whose names begin so.
    Prefix(Namespace, String),
    One(Name),
}

impl Pattern {
    fn covers(&self, pipeline: &str) -> bool {
        let (namespace, local) = pipeline.split_once('/').unwrap_or((DEFAULT_NAMESPACE, pipeline));
        match self {
            Self::All => true,
            Self::Prefix(within, prefix) => {
                namespace == within.as_str() && local.starts_with(prefix)
            }
            Self::One(name) => pipeline == name.as_str(),
        }
    }

    /// Whether it covers all of a namespace.
    fn covers_all_of(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(within, prefix) => within.as_str() == namespace && prefix.is_empty(),
            Self::One(_) => false,
        }
    }

    /// Whether it covers something in a namespace, or may.
    fn touches(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Prefix(within, _) => within.as_str() == namespace,
            Self::One(name) => name.namespace() == namespace,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Prefix(within, prefix)
                if within.as_str() == DEFAULT_NAMESPACE && !prefix.is_empty() =>
            {
                write!(f, "{prefix}*")
            }
            Self::Prefix(within, prefix) => write!(f, "{within}/{prefix}*"),
            Self::One(name) => name.fmt(f),
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = |text: &str| text.parse::<Name>().map_err(|error| error.to_string());
        let Some(prefix) = text.strip_suffix('*') else { return name(text).map(Self::One) };
        if prefix.is_empty() {
            return Ok(Self::All);
        }
        if let Some(namespace) = prefix.strip_suffix('/') {
            let namespace = namespace.parse::<Namespace>().map_err(|error| error.to_string())?;
            return Ok(Self::Prefix(namespace, String::new()));
        }
        let start = name(prefix)?;
        Ok(Self::Prefix(Namespace::containing(&start), start.local().to_owned()))
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
                    "`{text}` names no pipelines: write {verb}:NAME, {verb}:PREFIX*, {verb}:NAMESPACE/*, or \
                     {verb}:* for all"
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
        match self.verb.has_pipelines() {
            true => write!(f, "{}:{}", self.verb.name(), self.pipelines),
            false => f.write_str(self.verb.name()),
        }
    }
}

impl Scope {
    /// The same in one namespace alone.
    ///
    /// # Errors
    /// It is of the whole cluster, or of another namespace.
    pub fn within(&self, namespace: &Namespace) -> Result<Self, String> {
        let pipelines = match &self.pipelines {
            _ if !self.verb.has_pipelines() => {
                return Err(format!(
                    "`{self}` is for the whole cluster, and not for a namespace: leave one of both out"
                ));
            }
            Pattern::All => Pattern::Prefix(namespace.clone(), String::new()),
            Pattern::Prefix(own, prefix) if *own == Namespace::default() => {
                Pattern::Prefix(namespace.clone(), prefix.clone())
            }
            Pattern::One(name) if name.is_plain() => Pattern::One(name.within(namespace)),
            Pattern::Prefix(..) | Pattern::One(_) => {
                return Err(format!("`{self}` says its namespace already: leave one of both out"));
            }
        };
        Ok(Self { verb: self.verb, pipelines })
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

    /// Whether the verb is allowed on a pipeline of this namespace, or on one that might be there.
    pub fn allow_in(&self, verb: Verb, namespace: &str) -> bool {
        self.of(verb).any(|pipelines| pipelines.touches(namespace))
    }

    /// Whether the verb is allowed on every pipeline of this namespace.
    pub fn allow_all_in(&self, verb: Verb, namespace: &str) -> bool {
        self.of(verb).any(|pipelines| pipelines.covers_all_of(namespace))
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
    fn what_is_allowed_in_one_namespace_is_so_in_no_other() {
        let team = scopes(&["read:team/*", "enqueue:team/a-*", "jobs:team/x"]);
        assert!(team.allow(Verb::Read, "team/p") && team.allow_in(Verb::Read, "team"));
        assert!(team.allow(Verb::Enqueue, "team/a-1") && team.allow(Verb::Jobs, "team/x"));
        for other in ["p", "team", "teams/p", "team2/p", "default/p", "x/team"] {
            assert!(!team.allow(Verb::Read, other), "{other}");
        }
        assert!(!team.allow(Verb::Enqueue, "a-1") && !team.allow(Verb::Jobs, "x"));
        assert!(!team.allow_all(Verb::Read) && !team.allow_in(Verb::Read, "default"));
        // How a name begins without a namespace is no beginning of namespaces.
        let own = scopes(&["read:te*", "jobs:default/*", "enqueue:default/x"]);
        assert!(own.allow(Verb::Read, "team") && !own.allow(Verb::Read, "team/p"));
        assert!(own.allow(Verb::Jobs, "p") && !own.allow(Verb::Jobs, "team/p"));
        assert!(own.allow(Verb::Enqueue, "x") && own.allow_in(Verb::Read, "default"));
        assert!(scopes(&["admin"]).allow_in(Verb::Read, "team"));
        let some = scopes(&["read:*", "jobs:team/*", "pipelines:team/a*", "enqueue:team/x"]);
        for (verb, namespace, expected) in [
            (Verb::Read, "team", true),
            (Verb::Jobs, "team", true),
            (Verb::Jobs, "default", false),
            (Verb::Pipelines, "team", false),
            (Verb::Enqueue, "team", false),
        ] {
            assert_eq!(some.allow_all_in(verb, namespace), expected, "{verb:?} {namespace}");
        }
    }

    #[test]
    fn a_scope_is_put_into_a_namespace_that_it_does_not_name() {
        let team: Namespace = "team".parse().unwrap();
        let within = |text: &str| text.parse::<Scope>().unwrap().within(&team);
        for (text, expected) in [
            ("read:*", "read:team/*"),
            ("jobs:a*", "jobs:team/a*"),
            ("enqueue:x", "enqueue:team/x"),
        ] {
            assert_eq!(within(text).unwrap().to_string(), expected);
        }
        for text in ["admin", "metrics", "read:other/*", "read:other/x"] {
            assert!(within(text).is_err(), "{text}");
        }
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
        for text in [
            "read:*",
            "enqueue:orders",
            "jobs:o-*",
            "read:team/*",
            "read:team/o-*",
            "jobs:team/x",
            "read:default/*",
            "metrics",
            "admin",
        ] {
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
            "read:/*",
            "read:a/b/*",
            "read:*/x",
        ];
        for text in wrong {
            assert!(text.parse::<Scope>().is_err(), "{text}");
        }
    }
}
