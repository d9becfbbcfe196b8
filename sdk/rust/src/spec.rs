//! Pipelines as programs write them. What has no method here is given by its key, as
//! `docs/pipelines.md` has it.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

/// A pipeline's definition.
///
/// ```
/// use carbonmesh_client::{PhaseSpec, PipelineSpec};
///
/// let images = PipelineSpec::new("images")
///     .with("preset", "strict")
///     .phase("resize")
///     .phase(PhaseSpec::new("upload").max_attempts(5).timeout("30s").requires("gpu"));
/// assert_eq!(images.name(), "images");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineSpec {
    name: String,
    /// The phases; each comes after the one before unless it says otherwise.
    #[serde(default)]
    phases: Vec<PhaseSpec>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl PipelineSpec {
    /// A pipeline without phases.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), phases: Vec::new(), rest: Map::new() }
    }

    /// One more phase: a name, or more.
    #[must_use]
    pub fn phase(mut self, phase: impl Into<PhaseSpec>) -> Self {
        self.phases.push(phase.into());
        self
    }

    /// Any other key of a pipeline.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.rest.insert(key.to_owned(), value.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its phases, in their order.
    pub fn phases(&self) -> &[PhaseSpec] {
        &self.phases
    }

    /// Any other key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.rest.get(key)
    }
}

/// One phase of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseSpec {
    name: String,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl PhaseSpec {
    /// A phase that any worker runs which offers that name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), rest: Map::new() }
    }

    /// What a worker must offer to run it, if that is not its name.
    #[must_use]
    pub fn runs(self, phase: &str) -> Self {
        self.with("phase", phase)
    }

    /// The phases that must have succeeded before, in place of the one before in the list.
    #[must_use]
    pub fn after<T: Into<String>>(self, phases: impl IntoIterator<Item = T>) -> Self {
        let phases: Vec<String> = phases.into_iter().map(Into::into).collect();
        self.with("after", phases)
    }

    /// How often it is tried.
    #[must_use]
    pub fn max_attempts(self, count: u32) -> Self {
        self.with("max_attempts", count)
    }

    /// How long one attempt may run, such as `30s`.
    #[must_use]
    pub fn timeout(self, duration: &str) -> Self {
        self.with("timeout", duration)
    }

    /// One more thing that a node must have to run it, such as `gpu` or `memory>=8GiB`.
    #[must_use]
    pub fn requires(mut self, requirement: &str) -> Self {
        let all = self.rest.entry("requires").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(all) = all {
            all.push(requirement.into());
        }
        self
    }

    /// The phase each of whose items it is done with.
    #[must_use]
    pub fn for_each(self, phase: &str) -> Self {
        self.with("for_each", phase)
    }

    /// The signal whose data is its result: no worker runs it.
    #[must_use]
    pub fn wait_for(self, signal: &str) -> Self {
        self.with("wait_for", signal)
    }

    /// Any other key of a phase.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.rest.insert(key.to_owned(), value.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Any other key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.rest.get(key)
    }
}

impl From<&str> for PhaseSpec {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

// By hand, since a phase is either a name or a table.
impl<'de> Deserialize<'de> for PhaseSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(name) => Ok(Self { name, rest: Map::new() }),
            Value::Object(mut rest) => match rest.remove("name") {
                Some(Value::String(name)) => Ok(Self { name, rest }),
                _ => Err(D::Error::custom("a phase has no name")),
            },
            _ => Err(D::Error::custom("a phase is neither a name nor a table")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_is_written_and_read_as_nodes_do() {
        let spec = PipelineSpec::new("images").with("replicas", 2).phase("resize").phase(
            PhaseSpec::new("upload").runs("copy").after(["resize"]).requires("gpu").requires("a=b"),
        );
        let document = json!({
            "name": "images", "replicas": 2,
            "phases": [{ "name": "resize" }, {
                "name": "upload", "phase": "copy", "after": ["resize"], "requires": ["gpu", "a=b"],
            }],
        });
        assert_eq!(serde_json::to_value(&spec).unwrap(), document);
        let read: PipelineSpec = serde_json::from_value(document).unwrap();
        assert_eq!(read, spec);
        let short: PipelineSpec =
            serde_json::from_value(json!({ "name": "p", "phases": ["a"] })).unwrap();
        assert_eq!(short.phases()[0].name(), "a");
    }
}
