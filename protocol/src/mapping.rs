//! What a phase gets, and what counts of what it gave: a JMESPath expression that builds an object.
//!
//! `jmespath` reads and applies it, at the worker that runs the phase. Source:
//! <https://jmespath.org/specification.html>. What is built may be larger than what it is built of,
//! but only by so much: that can be seen from the expression.

use jmespath::{Variable, ast::Ast};

use crate::condition::{FUNCTIONS, one_line, within};

/// The longest expression, in bytes.
pub const MAX_MAPPING_BYTES: usize = 1000;

/// How many times as large as what it is applied to a value may become.
const MAX_GROWTH: u64 = 100;

/// How large a value may become, in bytes of JSON, while it is built.
const MAX_BUILT_BYTES: u64 = 256 << 20;

/// The functions that build, but repeat nothing and take no expressions; `map` and its like are what
/// projections are for.
const BUILDING: [&str; 7] =
    ["merge", "reverse", "sort", "to_array", "to_number", "to_string", "values"];

/// Whether an expression can be one.
///
/// # Errors
/// Says why not.
pub fn check(expression: &str) -> Result<(), String> {
    if expression.len() > MAX_MAPPING_BYTES {
        return Err(format!("it has more than {MAX_MAPPING_BYTES} bytes"));
    }
    let grows = growth_of(expression)?;
    if grows > MAX_GROWTH {
        return Err(format!(
            "it may give {grows} times as much as it is applied to, at most {MAX_GROWTH} times is \
             allowed: do not build of what is built"
        ));
    }
    Ok(())
}

fn functions() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.into_iter().chain(BUILDING)
}

fn growth_of(expression: &str) -> Result<u64, String> {
    growth(&jmespath::parse(expression).map_err(|error| one_line(&error.to_string()))?)
}

fn together<'a>(parts: impl IntoIterator<Item = &'a Ast>) -> Result<u64, String> {
    parts.into_iter().try_fold(1, |sum: u64, part| Ok(sum.saturating_add(growth(part)?)))
}

/// How many times as large what a part gives may be as what it is applied to.
fn growth(part: &Ast) -> Result<u64, String> {
    let in_turn = |first: &Ast, then: &Ast| Ok(growth(first)?.saturating_mul(growth(then)?));
    match part {
        Ast::Identity { .. } | Ast::Field { .. } => Ok(1),
        // However little it is applied to.
        Ast::Literal { value, .. } => Ok(value.to_string().len() as u64),
        Ast::Index { idx, .. } => within(*idx).map(|()| 1),
        Ast::Slice { start, stop, step, .. } => {
            let mut places = start.iter().chain(stop).chain([step]);
            places.try_for_each(|place| within(*place)).map(|()| 1)
        }
        Ast::Projection { lhs, rhs, .. } | Ast::Subexpr { lhs, rhs, .. } => in_turn(lhs, rhs),
        Ast::Condition { predicate, then, .. } => in_turn(predicate, then),
        Ast::Comparison { lhs, rhs, .. } | Ast::And { lhs, rhs, .. } | Ast::Or { lhs, rhs, .. } => {
            together([&**lhs, &**rhs])
        }
        Ast::Flatten { node, .. } | Ast::Not { node, .. } | Ast::ObjectValues { node, .. } => {
            growth(node)
        }
        Ast::MultiList { elements, .. } => together(elements),
        Ast::MultiHash { elements, .. } => together(elements.iter().map(|pair| &pair.value)),
        Ast::Function { name, args, .. } if functions().any(|known| known == name) => {
            let grows = together(args)?;
            // In a text some characters take six.
            Ok(if name == "to_string" { grows.saturating_mul(6) } else { grows })
        }
        Ast::Function { name, .. } => {
            let known = functions().collect::<Vec<_>>().join(", ");
            Err(format!("function `{name}` is not allowed in a mapping: there are {known}"))
        }
        Ast::Expref { .. } => Err("no function of a mapping takes an expression".to_owned()),
    }
}

/// What an expression makes of a JSON document: an object, as JSON of at most so many bytes.
///
/// # Errors
/// It cannot be applied, gives no object, or too large a one.
pub fn apply(expression: &str, document: &[u8], limit: usize) -> Result<Vec<u8>, String> {
    let text = |error: &dyn std::fmt::Display| one_line(&error.to_string());
    let most = growth_of(expression)?.saturating_mul(document.len() as u64);
    if most > MAX_BUILT_BYTES {
        return Err(format!(
            "it may give {most} bytes of {}: at most {MAX_BUILT_BYTES} are allowed",
            document.len()
        ));
    }
    let document: Variable = serde_json::from_slice(document).map_err(|error| text(&error))?;
    let expression = jmespath::compile(expression).map_err(|error| text(&error))?;
    let value = expression.search(document).map_err(|error| text(&error))?;
    if !value.is_object() {
        return Err(format!("it gives {}, and must give an object", value.get_type()));
    }
    let mut json = Bounded { bytes: Vec::new(), limit };
    serde_json::to_writer(&mut json, &*value).map_err(|error| text(&error))?;
    Ok(json.bytes)
}

/// Bytes, up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            let reason = format!("it gives more than {} bytes", self.limit);
            return Err(std::io::Error::other(reason));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &[u8] =
        br#"{"instructions":{"id":7},"results":{"a":{"list":[{"n":1},{"n":2}]}}}"#;

    fn applied(expression: &str) -> Result<String, String> {
        check(expression)?;
        let json = apply(expression, DOCUMENT, 100)?;
        Ok(String::from_utf8(json).expect("JSON is a text"))
    }

    #[test]
    fn a_mapping_builds_an_object() {
        for (expression, expected) in [
            ("{id: instructions.id, all: results.a.list[*].n}", r#"{"all":[1,2],"id":7}"#),
            ("merge(instructions, {first: results.a.list[0]})", r#"{"first":{"n":1},"id":7}"#),
            ("results.a | {n: list[?n > `1`].n | [0]}", r#"{"n":2}"#),
            ("{k: 'x', n: results.a.list[1:].n | [-1]}", r#"{"k":"x","n":2}"#),
            ("{t: to_string(results.a.list)}", r#"{"t":"[{\"n\":1},{\"n\":2}]"}"#),
        ] {
            assert_eq!(applied(expression).as_deref(), Ok(expected), "{expression}");
        }
    }

    #[test]
    fn what_cannot_be_a_mapping_is_refused_with_the_reason() {
        let refused = |expression: &str| applied(expression).expect_err(expression);
        assert_eq!(refused("results.a.list"), "it gives array, and must give an object");
        assert!(refused("{a: @, b: @, c: @}").contains("more than 100 bytes"));
        assert!(refused("map(&n, results.a.list)").contains("is not allowed"));
        assert!(refused("{a: ").contains("line"));
        assert!(refused("{a: results.a.list[1::2147483647]}").contains("no place in a list"));
        assert!(refused("{a: results.a.list[-2147483647]}").contains("no place in a list"));
        refused("{a: results.a.list[-2147483648]}");
        let doubled = vec!["[@,@]"; 20].join("|");
        assert!(refused(&doubled).contains("do not build of what is built"));
        let nested = format!("{{a: {}@{}}}", "to_string(".repeat(5), ")".repeat(5));
        assert!(refused(&nested).contains("do not build of what is built"));
        assert!(refused(&"a".repeat(5000)).contains("1000 bytes"));
        let large = vec![b' '; 10 << 20];
        assert!(apply("{a: @, b: @, c: [@, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @, @]}", &large, 1).expect_err("large").contains("it may give"));
        // Deep ones are read without harm.
        for open in ["(", "[", "!", "{a:", "to_string(", "[?", "[]"] {
            let _ = check(&open.repeat(MAX_MAPPING_BYTES / open.len()));
            let _ = check(&format!("@{}", open.repeat((MAX_MAPPING_BYTES - 1) / open.len())));
        }
    }
}
