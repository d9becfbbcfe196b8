//! Values and secrets that operators give to phases: from a file that nobody else may read, and sealed from
//! the cluster, which keeps them.
//!
//! ```text
//! the cluster's entries ─ --scope-key-file opens them ─┐
//! --secrets-file ─► rules by pipeline and phase ───────┴► an attempt's scope: environment, or its context
//!                └► what is hidden: in all that this process logs, and in what attempts say of errors
//! ```
//! Open, they stay on this node: jobs, results and other nodes never have them unless a phase puts them there.

mod kept;
mod key;

use std::{
    borrow::Cow,
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use carbonmesh_protocol::{
    name::{DEFAULT_NAMESPACE, Name},
    secret::{PlaceId, SecretEntry, check_name},
};
use serde::Deserialize;
use tracing_subscriber::fmt::MakeWriter;

use self::kept::Kept;
pub use self::key::{SHORTEST_KEY, ScopeKey, ScopeKeyError};

/// A shorter one, in bytes, could not be hidden without hiding half of what is logged.
pub const SHORTEST_SECRET: usize = 6;

/// How much one value may have, in bytes.
const LONGEST_VALUE: usize = 64 << 10;

/// What stands in the place of a secret.
const HIDDEN_TEXT: &str = "[hidden]";

/// How many of the cluster's secrets stay hidden after they were changed or removed and no attempt has them
/// any more: what an attempt leaves behind may still say them.
const FORMER: usize = 256;

/// The secrets of this process.
static HIDDEN: RwLock<Hidden> =
    RwLock::new(Hidden { own: Vec::new(), kept: VecDeque::new(), all: Vec::new() });

/// What is hidden.
struct Hidden {
    /// Of files: they stay for as long as the process runs.
    own: Vec<Arc<str>>,
    /// Of the cluster: those that are there or were, the latest last. Nobody else has what is not in use.
    kept: VecDeque<Arc<Guarded>>,
    /// All of them, as they may come to stand in a text, the longest first.
    all: Vec<Arc<str>>,
}

impl Hidden {
    fn sort(&mut self) {
        let kept = self.kept.iter().flat_map(|secret| &secret.forms);
        self.all = self.own.iter().chain(kept).cloned().collect();
        self.all.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        self.all.dedup();
    }

    /// Forgets the oldest of those that are no longer in use, but for the last ones.
    fn forget(&mut self) {
        let is_former = |secret: &Arc<Guarded>| Arc::strong_count(secret) == 1;
        let mut surplus =
            self.kept.iter().filter(|it| is_former(it)).count().saturating_sub(FORMER);
        self.kept.retain(|secret| {
            let goes = surplus > 0 && is_former(secret);
            surplus -= usize::from(goes);
            !goes
        });
    }
}

/// A value or secret of the cluster, open; never printed.
#[derive(PartialEq, Eq)]
struct Guarded {
    value: String,
    /// As it may come to stand in a text; none, unless it is a secret.
    forms: Vec<Arc<str>>,
}

impl Guarded {
    fn new(value: &str, hidden: bool) -> Self {
        let forms = if hidden { forms(value).map(Arc::<str>::from).collect() } else { Vec::new() };
        Self { value: value.to_owned(), forms }
    }
}

/// The rules of one file, and what the cluster keeps.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scopes {
    #[serde(default)]
    scope: Vec<Rule>,
    #[serde(skip)]
    kept: Kept,
}

/// What the attempts of some phases get.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// Of which namespaces; none: of the default one.
    namespace: Option<Pattern>,
    #[serde(default)]
    pipeline: Pattern,
    #[serde(default)]
    phase: Pattern,
    #[serde(default)]
    values: BTreeMap<String, String>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
}

/// A name, or how it begins.
#[derive(Clone, Deserialize)]
struct Pattern(String);

impl Default for Pattern {
    fn default() -> Self {
        Self("*".to_owned())
    }
}

impl Pattern {
    /// Whether it names a namespace, where names without one belong.
    fn is_full(&self) -> bool {
        self.0.contains('/')
    }

    fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == self.0,
        }
    }
}

/// What one attempt gets; never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Scope(Arc<Given>);

#[derive(Default, PartialEq, Eq)]
struct Given {
    all: BTreeMap<String, String>,
    /// Those of the cluster, which are hidden for as long as an attempt has them.
    kept: Vec<Arc<Guarded>>,
}

impl Scope {
    /// A value or a secret, by its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.all.get(name).map(String::as_str)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &BTreeMap<String, String> {
        &self.0.all
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.all.keys()).finish()
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scopes({} rules)", self.scope.len())
    }
}

impl Scopes {
    /// Reads a file; its secrets are hidden from now on in all that this process logs.
    ///
    /// # Errors
    /// It cannot be used; the text says why, and never what stands in it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mode = fs::metadata(path).map_err(|error| error.to_string())?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err("others on this machine may read it: run chmod 600 on it".to_owned());
        }
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let scopes = Self::parse(&text)?;
        scopes.hide();
        Ok(scopes)
    }

    fn parse(text: &str) -> Result<Self, String> {
        // The parser's own message shows the line, with what may be a secret.
        let scopes: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map(|span| text[..span.start].lines().count().max(1));
            let place = line.map_or_else(String::new, |line| format!("line {line}: "));
            format!("{place}{}", error.message())
        })?;
        for (at, rule) in scopes.scope.iter().enumerate() {
            if rule.pipeline.is_full() || rule.phase.is_full() {
                return Err(format!(
                    "scope[{at}]: pipeline and phase are names within a namespace: write that as \
                     namespace = \"NAME\""
                ));
            }
            let place = |name: &str| format!("scope[{at}]: `{name}`");
            for (name, value) in rule.values.iter().chain(&rule.secrets) {
                check_name(name).map_err(|why| format!("{}: {why}", place(name)))?;
                if value.len() > LONGEST_VALUE || value.contains('\0') {
                    let why = format!("at most {LONGEST_VALUE} bytes and no zeros are possible");
                    return Err(format!("{}: {why}", place(name)));
                }
            }
            for (name, secret) in &rule.secrets {
                if secret.len() < SHORTEST_SECRET {
                    let why = format!(
                        "a secret of less than {SHORTEST_SECRET} bytes cannot be hidden in logs: make \
                         it longer, or a value"
                    );
                    return Err(format!("{}: {why}", place(name)));
                }
            }
        }
        Ok(scopes)
    }

    /// The same, with what the cluster keeps as far as this key opens it.
    #[must_use]
    pub fn with_key(self, key: ScopeKey) -> Self {
        Self { kept: Kept::with_key(key), ..self }
    }

    /// Takes over what the cluster keeps now, for attempts that begin from now on; its secrets are hidden
    /// in all that this process logs for as long as an attempt has them.
    pub(crate) fn look<'a>(
        &mut self,
        entries: impl Iterator<Item = (PlaceId, u64, &'a SecretEntry)>,
    ) {
        self.kept.look(entries);
    }

    /// What the attempts of a phase in a pipeline get: of rules that say the same, the last; these before
    /// what the cluster keeps, of which what says more of the pipeline, then of the phase, counts. A rule that
    /// names no namespace is for the default one alone: no tenant gets what was meant for another.
    pub fn of(&self, pipeline: &Name, phase: &Name) -> Scope {
        let namespace = |it: &&Rule| match &it.namespace {
            Some(pattern) => pattern.matches(pipeline.namespace()),
            None => pipeline.namespace() == DEFAULT_NAMESPACE,
        };
        let rules = self.scope.iter().filter(namespace);
        let rules = rules.filter(|it| it.pipeline.matches(pipeline.local()));
        let rules = rules.filter(|it| it.phase.matches(phase.local()));
        let own = rules.flat_map(|rule| rule.values.iter().chain(&rule.secrets));
        let kept = self.kept.of(pipeline, phase);
        let mut all: BTreeMap<String, String> =
            kept.iter().map(|(name, it)| ((*name).to_owned(), it.value.clone())).collect();
        all.extend(own.map(|(name, value)| (name.clone(), value.clone())));
        let kept = kept.into_values().cloned().collect();
        Scope(Arc::new(Given { all, kept }))
    }

    fn hide(&self) {
        hide(self.scope.iter().flat_map(|rule| rule.secrets.values()).map(String::as_str));
    }
}

/// From now on these are hidden in all that this process logs, as far as they are long enough.
pub(crate) fn hide<'a>(secrets: impl IntoIterator<Item = &'a str>) {
    let secrets = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET);
    let mut hidden = HIDDEN.write().unwrap_or_else(PoisonError::into_inner);
    hidden.own.extend(secrets.flat_map(forms).map(Arc::<str>::from));
    hidden.own.sort();
    hidden.own.dedup();
    hidden.sort();
}

/// From now on these of the cluster are hidden, for as long as somebody else has them, and a while longer.
fn guard(secrets: Vec<Arc<Guarded>>) {
    if secrets.is_empty() {
        return;
    }
    let mut hidden = HIDDEN.write().unwrap_or_else(PoisonError::into_inner);
    hidden.kept.extend(secrets);
    hidden.forget();
    hidden.sort();
}

/// How a secret may come to stand in a text: as it is, line by line, as JSON.
fn forms(secret: &str) -> impl Iterator<Item = String> {
    let lines = secret.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_SECRET);
    let mut forms: Vec<String> = lines.chain([secret]).map(str::to_owned).collect();
    if let Ok(json) = serde_json::to_string(secret) {
        forms.push(json[1..json.len() - 1].to_owned());
    }
    forms.into_iter()
}

/// A text without the secrets of this process.
pub(crate) fn hidden(text: &str) -> Cow<'_, str> {
    let secrets = HIDDEN.read().unwrap_or_else(PoisonError::into_inner);
    without(text, &secrets.all)
}

fn without<'a>(text: &'a str, secrets: &[Arc<str>]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for secret in secrets {
        if text.contains(&**secret) {
            text = Cow::Owned(text.replace(&**secret, HIDDEN_TEXT));
        }
    }
    text
}

/// Standard error, without the secrets of this process: where a node's log goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HidingStderr;

impl<'a> MakeWriter<'a> for HidingStderr {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for HidingStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // An event comes as a whole.
        let text = String::from_utf8_lossy(bytes);
        io::stderr().lock().write_all(hidden(&text).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::secret::{Pattern as NamePattern, Place};

    use super::*;

    const FILE: &str = r#"
        [[scope]]
        values = { REGION = "eu" }

        [[scope]]
        pipeline = "invoices-*"
        phase = "book"
        values = { REGION = "de" }
        secrets = { LEDGER_KEY = "s3cr3t\"key" }
    "#;

    #[test]
    fn a_phase_gets_what_its_rules_say_and_the_last_of_them_counts() {
        let scopes = Scopes::parse(FILE).unwrap();
        let of = |pipeline: &str, phase: &str| {
            scopes.of(&pipeline.parse().unwrap(), &phase.parse().unwrap())
        };
        let scope = of("invoices-eu", "book");
        assert_eq!(
            (scope.get("REGION"), scope.get("LEDGER_KEY")),
            (Some("de"), Some("s3cr3t\"key"))
        );
        let other = of("invoices-eu", "send");
        assert_eq!((other.get("REGION"), other.get("LEDGER_KEY")), (Some("eu"), None));
        assert_eq!(of("x", "book").get("LEDGER_KEY"), None);
        assert_eq!(format!("{scope:?}"), r#"{"LEDGER_KEY", "REGION"}"#);
    }

    #[test]
    fn rules_are_for_their_namespace_and_those_that_name_none_for_the_default_one() {
        let team =
            "[[scope]]\nnamespace = \"team\"\nphase = \"book\"\nvalues = { REGION = \"us\" }\n";
        let scopes = Scopes::parse(&format!("{FILE}{team}")).unwrap();
        let of = |pipeline: &str, phase: &str| {
            scopes.of(&pipeline.parse().unwrap(), &phase.parse().unwrap())
        };
        let theirs = of("team/invoices-eu", "team/book");
        assert_eq!((theirs.get("REGION"), theirs.get("LEDGER_KEY")), (Some("us"), None));
        assert_eq!(of("other/invoices-eu", "other/book"), Scope::default());
        assert_eq!(of("default/invoices-eu", "book").get("REGION"), Some("de"));
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_value() {
        for (text, reason) in [
            ("[[scope]]\npipeline = \"team/p\"", "names within a namespace"),
            ("[[scope]]\nsecrets = { A = \"short\" }", "`A`: a secret of less than 6"),
            ("[[scope]]\nsecrets = { CARBONMESH_X = \"longenough\" }", "taken"),
            ("[[scope]]\nvalues = { \"a b\" = \"c\" }", "letters, digits"),
            ("[[scope]]\nsecret = { A = \"hunter2hunter2\" }", "unknown field"),
            ("[[scope]]\n\nsecrets = { A = hunter2hunter2 }", "line 3"),
        ] {
            let error = Scopes::parse(text).unwrap_err();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o640)).unwrap();
        let error = Scopes::read(file.path()).unwrap_err();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn secrets_are_hidden_in_every_form() {
        let key = "-----BEGIN\nMIIEvQ IBADANB\nshort";
        let secrets = ["s3cr3t\"key", key].into_iter().flat_map(forms);
        let secrets: Vec<Arc<str>> = secrets.map(Arc::from).collect();
        let shown = |text: &str| without(text, &secrets).into_owned();
        assert_eq!(shown("key=s3cr3t\"key!"), "key=[hidden]!");
        assert_eq!(shown(r#"{"key":"s3cr3t\"key"}"#), r#"{"key":"[hidden]"}"#);
        assert_eq!(shown("line MIIEvQ IBADANB of it"), "line [hidden] of it");
        assert_eq!(shown("nothing"), "nothing");
    }

    fn key(byte: u8) -> ScopeKey {
        ScopeKey::new(&[byte; 32]).unwrap()
    }

    fn entry(key: &ScopeKey, pipeline: &str, (name, value): (&str, &str)) -> SecretEntry {
        let place = Place {
            namespace: "default".parse().unwrap(),
            pipeline: NamePattern::new(pipeline).unwrap(),
            phase: NamePattern::default(),
            name: name.to_owned(),
        };
        let sealed = key.seal(&place, name != "REGION", value);
        SecretEntry::new(place).changed(sealed, 1)
    }

    fn seen(entries: &[SecretEntry]) -> impl Iterator<Item = (PlaceId, u64, &SecretEntry)> {
        entries.iter().map(|entry| (entry.place.id(), entry.digest(), entry))
    }

    #[test]
    fn the_file_of_the_machine_comes_before_the_cluster_and_what_says_more_before_the_rest() {
        let own = "[[scope]]\nvalues = { BOTH = \"file\" }\n";
        let mut scopes = Scopes::parse(own).unwrap().with_key(key(1));
        let entries = [
            entry(&key(1), "*", ("BOTH", "cluster-both")),
            entry(&key(1), "invoices-*", ("TOKEN", "cluster-inv")),
            entry(&key(1), "invoices-eu", ("TOKEN", "cluster-eu")),
            entry(&key(1), "*", ("TOKEN", "cluster-all")),
            entry(&key(1), "*", ("REGION", "eu")),
            // One that another key has sealed stops nothing.
            entry(&key(2), "*", ("LOST", "cluster-lost")),
        ];
        scopes.look(seen(&entries));
        let of = |scopes: &Scopes, pipeline: &str| {
            scopes.of(&pipeline.parse().unwrap(), &"book".parse().unwrap())
        };
        let here = of(&scopes, "invoices-eu");
        assert_eq!((here.get("BOTH"), here.get("TOKEN")), (Some("file"), Some("cluster-eu")));
        assert_eq!((here.get("REGION"), here.get("LOST")), (Some("eu"), None));
        assert_eq!(of(&scopes, "invoices-us").get("TOKEN"), Some("cluster-inv"));
        assert_eq!(of(&scopes, "others").get("TOKEN"), Some("cluster-all"));
        // Attempts that run keep what they began with.
        let changed = entries[2].changed(key(1).seal(&entries[2].place, true, "changed-eu"), 2);
        scopes.look(seen(&[changed]));
        assert_eq!(here.get("TOKEN"), Some("cluster-eu"));
        let later = of(&scopes, "invoices-eu");
        assert_eq!((later.get("TOKEN"), later.get("REGION")), (Some("changed-eu"), None));
        assert!(!format!("{scopes:?} {later:?}").contains("changed-eu"));
        let mut without = Scopes::default();
        without.look(seen(&entries));
        assert_eq!(of(&without, "invoices-eu"), Scope::default());
    }

    #[test]
    fn a_secret_of_the_cluster_is_hidden_for_as_long_as_an_attempt_has_it() {
        let mut scopes = Scopes::default().with_key(key(3));
        let first = entry(&key(3), "*", ("TOKEN", "first-of-many-0"));
        scopes.look(seen(std::slice::from_ref(&first)));
        let running = scopes.of(&"p".parse().unwrap(), &"book".parse().unwrap());
        assert_eq!(hidden("say first-of-many-0"), "say [hidden]");
        // More changes than are remembered: the attempt still has the first.
        for number in 1..FORMER + 20 {
            let value = format!("later-of-many-{number:05}");
            let later = first.changed(key(3).seal(&first.place, true, &value), number as u64);
            scopes.look(seen(&[later]));
            assert_eq!(hidden(&value), "[hidden]");
        }
        assert_eq!(hidden("say first-of-many-0"), "say [hidden]");
        assert_eq!(hidden("say later-of-many-00100"), "say [hidden]", "it may still be said");
        assert_eq!(hidden("say later-of-many-00001"), "say later-of-many-00001", "long forgotten");
        drop(running);
        let value = entry(&key(3), "*", ("REGION", "some-region"));
        scopes.look(seen(&[value]));
        assert_eq!(hidden("in some-region"), "in some-region", "values are not hidden");
    }
}
