//! Values and secrets that this node's operator gives to phases: from a file that nobody else may read.
//!
//! ```text
//! --secrets-file ─► rules by pipeline and phase ─► an attempt's scope: environment, or its context
//!                └► what is hidden: in all that this process logs, and in what attempts say of errors
//! ```
//! They stay on this node: jobs, results and the cluster never have them unless a phase puts them there.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use carbonmesh_protocol::name::{DEFAULT_NAMESPACE, Name};
use serde::Deserialize;
use tracing_subscriber::fmt::MakeWriter;

/// A shorter one could not be hidden without hiding half of what is logged.
const SHORTEST_SECRET: usize = 6;

/// How much one value may have, in bytes.
const LONGEST_VALUE: usize = 64 << 10;

/// What stands in the place of a secret.
const HIDDEN_TEXT: &str = "[hidden]";

/// What no scope may say: nodes say it themselves.
const OURS: &str = "CARBONMESH_";

/// The secrets of this process, as they may come to stand in a text, the longest first.
static HIDDEN: RwLock<Vec<String>> = RwLock::new(Vec::new());

/// The rules of one file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scopes {
    #[serde(default)]
    scope: Vec<Rule>,
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
pub struct Scope(Arc<BTreeMap<String, String>>);

impl Scope {
    /// A value or a secret, by its name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All of them.
    pub(crate) fn all(&self) -> &BTreeMap<String, String> {
        &self.0
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
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

    /// What the attempts of a phase in a pipeline get: of rules that say the same, the last. A rule that
    /// names no namespace is for the default one alone: no tenant gets what was meant for another.
    pub fn of(&self, pipeline: &Name, phase: &Name) -> Scope {
        let namespace = |it: &&Rule| match &it.namespace {
            Some(pattern) => pattern.matches(pipeline.namespace()),
            None => pipeline.namespace() == DEFAULT_NAMESPACE,
        };
        let rules = self.scope.iter().filter(namespace);
        let rules = rules.filter(|it| it.pipeline.matches(pipeline.local()));
        let rules = rules.filter(|it| it.phase.matches(phase.local()));
        let all = rules.flat_map(|rule| rule.values.iter().chain(&rule.secrets));
        Scope(Arc::new(all.map(|(name, value)| (name.clone(), value.clone())).collect()))
    }

    fn hide(&self) {
        hide(self.scope.iter().flat_map(|rule| rule.secrets.values()).map(String::as_str));
    }
}

/// From now on these are hidden in all that this process logs, as far as they are long enough.
pub(crate) fn hide<'a>(secrets: impl IntoIterator<Item = &'a str>) {
    let secrets = secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET);
    let mut hidden = HIDDEN.write().unwrap_or_else(PoisonError::into_inner);
    hidden.extend(secrets.flat_map(forms));
    hidden.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    hidden.dedup();
}

/// How a secret may come to stand in a text: as it is, line by line, as JSON.
fn forms(secret: &str) -> Vec<String> {
    let lines = secret.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_SECRET);
    let mut forms: Vec<String> = lines.chain([secret]).map(str::to_owned).collect();
    if let Ok(json) = serde_json::to_string(secret) {
        forms.push(json[1..json.len() - 1].to_owned());
    }
    forms
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if !starts || !name.chars().all(plain) {
        return Err("a name has letters, digits and `_`, and begins with no digit".to_owned());
    }
    if name.starts_with(OURS) || ["PATH", "HOME", "LD_PRELOAD"].contains(&name) {
        return Err("that name is taken: choose another".to_owned());
    }
    Ok(())
}

/// A text without the secrets of this process.
pub(crate) fn hidden(text: &str) -> Cow<'_, str> {
    let secrets = HIDDEN.read().unwrap_or_else(PoisonError::into_inner);
    without(text, &secrets)
}

fn without<'a>(text: &'a str, secrets: &[String]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for secret in secrets {
        if text.contains(secret.as_str()) {
            text = Cow::Owned(text.replace(secret.as_str(), HIDDEN_TEXT));
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
        let secrets: Vec<String> = ["s3cr3t\"key", key].iter().flat_map(|it| forms(it)).collect();
        let shown = |text: &str| without(text, &secrets).into_owned();
        assert_eq!(shown("key=s3cr3t\"key!"), "key=[hidden]!");
        assert_eq!(shown(r#"{"key":"s3cr3t\"key"}"#), r#"{"key":"[hidden]"}"#);
        assert_eq!(shown("line MIIEvQ IBADANB of it"), "line [hidden] of it");
        assert_eq!(shown("nothing"), "nothing");
    }
}
