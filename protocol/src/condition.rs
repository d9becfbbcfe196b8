//! Whether a phase runs: a JMESPath expression over what is known of the job.
//!
//! `jmespath` reads and applies it; what it is applied to is
//! `{"instructions": ..., "results": {"PHASE": ...}}`. Source: <https://jmespath.org/specification.html>.
//!
//! Only what asks is allowed, not what builds: each coordinator applies it while everything else
//! waits, so it must take no more time and room than what it is applied to.

use jmespath::{Variable, ast::Ast};

/// The functions that build nothing.
pub(crate) const FUNCTIONS: [&str; 14] = [
    "abs",
    "avg",
    "ceil",
    "contains",
    "ends_with",
    "floor",
    "keys",
    "length",
    "max",
    "min",
    "not_null",
    "starts_with",
    "sum",
    "type",
];

/// The furthest place in a list.
const MAX_INDEX: u32 = 1_000_000;

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
    let ast = jmespath::parse(expression).map_err(|error| one_line(&error.to_string()))?;
    check_part(&ast)
}

/// Whether that can be a place in a list, or so many places on.
pub(crate) fn within(index: i32) -> Result<(), String> {
    match index.unsigned_abs() <= MAX_INDEX {
        true => Ok(()),
        false => Err(format!("{index} is no place in a list: at most {MAX_INDEX} is allowed")),
    }
}

fn check_part(part: &Ast) -> Result<(), String> {
    match part {
        Ast::Identity { .. } | Ast::Field { .. } | Ast::Literal { .. } => Ok(()),
        Ast::Index { idx, .. } => within(*idx),
        Ast::Slice { start, stop, step, .. } => {
            start.iter().chain(stop).chain([step]).try_for_each(|index| within(*index))
        }
        Ast::Comparison { lhs, rhs, .. }
        | Ast::Projection { lhs, rhs, .. }
        | Ast::And { lhs, rhs, .. }
        | Ast::Or { lhs, rhs, .. }
        | Ast::Subexpr { lhs, rhs, .. }
        | Ast::Condition { predicate: lhs, then: rhs, .. } => {
            check_part(lhs).and_then(|()| check_part(rhs))
        }
        Ast::Flatten { node, .. } | Ast::Not { node, .. } | Ast::ObjectValues { node, .. } => {
            check_part(node)
        }
        Ast::Function { name, args, .. } if FUNCTIONS.contains(&name.as_str()) => {
            args.iter().try_for_each(check_part)
        }
        Ast::Function { name, .. } => {
            let known = FUNCTIONS.join(", ");
            Err(format!("function `{name}` is not allowed in a condition: there are {known}"))
        }
        Ast::MultiList { elements, .. }
            if elements.iter().all(|it| matches!(it, Ast::Literal { .. })) =>
        {
            Ok(())
        }
        Ast::MultiList { .. } | Ast::MultiHash { .. } => {
            Err("a condition asks, and builds no lists or objects but of literals".to_owned())
        }
        Ast::Expref { .. } => Err("no function of a condition takes an expression".to_owned()),
    }
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

pub(crate) fn one_line(text: &str) -> String {
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
        for wrong in [
            "results.a[::2147483647]",
            "[@,@][]|[@,@][]",
            "{a: results, b: results}",
            "to_string(results)",
            "map(&a, results)",
        ] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert_eq!(check("results.list[?size > `5`] && results.list[-1].a[0:3]"), Ok(()));
        assert!(check(&"a".repeat(2000)).expect_err("long").contains("1000 bytes"));
        // Deep ones are read without harm.
        let _ = check(&"(".repeat(1000));
        let _ = check(&"[".repeat(1000));
        let _ = check(&"!".repeat(1000));
    }
}
