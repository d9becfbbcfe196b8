//! Whether a phase runs: a JMESPath expression over what is known of the job.
//!
//! `jmespath` reads and applies it; what it is applied to is
//! `{"instructions": ..., "results": {"PHASE": ...}}`. Source: <https://jmespath.org/specification.html>.

use jmespath::Variable;

/// The longest expression, in bytes.
pub const MAX_CONDITION_BYTES: usize = 1000;

/// Whether an expression can be one.
///
/// # Errors
/// Says why not.
pub fn check(expression: &str) -> Result<(), String> {
    if expression.len() > MAX_CONDITION_BYTES {
        return Err(format!("it has more than {MAX_CONDITION_BYTES} bytes"));
    }
    jmespath::compile(expression).map(drop).map_err(|error| one_line(&error.to_string()))
}

/// Whether an expression holds: its value is neither false nor null nor empty.
///
/// # Errors
/// It cannot be applied, as where it compares what cannot be compared.
pub(crate) fn holds<'a>(
    expression: &str,
    instructions: &'a [u8],
    results: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<bool, String> {
    let read = |json: &[u8]| -> Result<serde_json::Value, String> {
        serde_json::from_slice(json).map_err(|error| error.to_string())
    };
    let results = results.map(|(name, json)| Ok((name.to_owned(), read(json)?)));
    let results = results.collect::<Result<serde_json::Map<_, _>, String>>()?;
    let document = serde_json::json!({"instructions": read(instructions)?, "results": results});
    let document = Variable::try_from(document).map_err(|error| one_line(&error.to_string()))?;
    let expression = jmespath::compile(expression);
    let value = expression.and_then(|expression| expression.search(document));
    value.map(|value| value.is_truthy()).map_err(|error| one_line(&error.to_string()))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(expression: &str) -> Result<bool, String> {
        let results = [("check", &br#"{"kind":"image","size":7,"tags":[]}"#[..])];
        holds(expression, br#"{"a":{"b":"x"}}"#, results.into_iter())
    }

    #[test]
    fn conditions_hold_or_do_not() {
        for holds in [
            "results.check.kind == 'image'",
            "instructions.a.b == 'x' && results.check.size > `5`",
            "!(results.check.tags)",
            "contains(['image', 'film'], results.check.kind)",
        ] {
            assert_eq!(applied(holds), Ok(true), "{holds}");
        }
        for fails in ["results.other", "results.check.tags", "results.check.size > `7`"] {
            assert_eq!(applied(fails), Ok(false), "{fails}");
        }
        assert!(applied("length(results.check.size)").is_err());
    }

    #[test]
    fn what_is_no_expression_is_refused_with_the_reason() {
        assert_eq!(check("results.check.size > `5`"), Ok(()));
        let error = check("results.check ==").expect_err("half an expression");
        assert!(!error.contains('\n') && error.contains("Unexpected"), "{error}");
        assert!(check(&"a".repeat(2000)).expect_err("long").contains("1000 bytes"));
        // Deep ones are read without harm.
        let _ = check(&"(".repeat(1000));
        let _ = check(&"[".repeat(1000));
        let _ = check(&"!".repeat(1000));
    }
}
