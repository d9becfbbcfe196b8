//! `?fields=`: of a JSON document, only what the client names.
//!
//! A name leads into objects by dots and through lists by itself: `jobs.id` is the id of each job in
//! a list. What stays keeps its spelling and its order: numbers and strings of clients are theirs.

use std::fmt;

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{
        HeaderValue, StatusCode, Uri,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
        uri::PathAndQuery,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::{SerializeMap, SerializeSeq},
};
use serde_json::value::RawValue;

use super::Problem;

/// The parameter.
const FIELDS: &str = "fields";

/// How many fields one request may name, and how deep one may lie.
const MAX_FIELDS: usize = 64;
const MAX_DEPTH: usize = 8;

/// How deep in a document, lists included, something is still left out.
const MAX_NESTING: usize = 32;

/// Documents above this are not cut: nothing of ours is as large.
const MAX_BYTES: usize = 64 << 20;

/// Takes the parameter out of the query, and what it does not name out of the answer.
pub(super) async fn layer(mut request: Request, next: Next) -> Result<Response, Problem> {
    let (wanted, rest) = split(request.uri().query().unwrap_or_default());
    let Some(wanted) = wanted else { return Ok(next.run(request).await) };
    let wanted = Fields::parse(&wanted)?;
    *request.uri_mut() = with_query(request.uri(), &rest);
    let response = next.run(request).await;
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !response.status().is_success()
        || !kind.is_some_and(|kind| kind.starts_with(b"application/json"))
    {
        return Ok(response);
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_BYTES).await else {
        return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
    };
    // What is no JSON stays as it is.
    let cut = wanted.cut(&bytes).unwrap_or_else(|_| bytes.to_vec());
    parts.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(parts, Body::from(cut)))
}

/// The parameter's value, if it is there, and the query without it.
fn split(query: &str) -> (Option<String>, String) {
    let (mut wanted, mut rest) = (None::<String>, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            (FIELDS, value) => {
                let all = wanted.get_or_insert_default();
                if !all.is_empty() {
                    all.push(',');
                }
                all.push_str(&value.replace("%2C", ",").replace("%2c", ","));
            }
            _ => rest.push(pair),
        }
    }
    (wanted, rest.join("&"))
}

fn with_query(uri: &Uri, query: &str) -> Uri {
    let path = uri.path();
    let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    let mut parts = uri.clone().into_parts();
    match text.parse::<PathAndQuery>() {
        Ok(text) => parts.path_and_query = Some(text),
        Err(_) => return uri.clone(),
    }
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// What is wanted of a value: all of it, or some of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields {
    all: bool,
    some: Vec<(String, Fields)>,
}

impl Fields {
    fn parse(text: &str) -> Result<Self, Problem> {
        let wrong = |why: String| Problem::bad_request("bad-query", format!("fields: {why}"));
        let mut root = Self::default();
        for (at, path) in text.split(',').map(str::trim).enumerate() {
            if at == MAX_FIELDS {
                return Err(wrong(format!("at most {MAX_FIELDS} can be named")));
            }
            let names: Vec<&str> = path.split('.').collect();
            let fits = |name: &&str| {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
                !name.is_empty() && name.bytes().all(plain)
            };
            if names.len() > MAX_DEPTH || !names.iter().all(fits) {
                return Err(wrong(format!(
                    "`{path}` names no field: write names with commas between them, as in \
                     fields=id,state, and dots into what they hold"
                )));
            }
            root.add(&names);
        }
        Ok(root)
    }

    fn add(&mut self, names: &[&str]) {
        let Some((first, rest)) = names.split_first() else {
            self.all = true;
            return;
        };
        match self.some.iter_mut().find(|(name, _)| name == first) {
            Some((_, inner)) => inner.add(rest),
            None => {
                let mut inner = Self::default();
                inner.add(rest);
                self.some.push(((*first).to_owned(), inner));
            }
        }
    }

    fn cut(&self, json: &[u8]) -> serde_json::Result<Vec<u8>> {
        let value: &RawValue = serde_json::from_slice(json)?;
        serde_json::to_vec(&Cut { value, wanted: self, depth: 0 })
    }
}

/// A value of which only some is written.
struct Cut<'a> {
    value: &'a RawValue,
    wanted: &'a Fields,
    /// How deep in the document it lies.
    depth: usize,
}

impl Serialize for Cut<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.value.get();
        // Names lead through no more than this, and lists within lists, which a worker may give as deep as
        // it likes, through none.
        if self.wanted.all || self.depth > MAX_NESTING {
            return self.value.serialize(serializer);
        }
        match text.as_bytes().first() {
            Some(b'{') => {
                let entries: Entries<'_> =
                    serde_json::from_str(text).map_err(serde::ser::Error::custom)?;
                let mut map = serializer.serialize_map(None)?;
                for (name, value) in &entries.0 {
                    if let Some((_, wanted)) = self.wanted.some.iter().find(|it| it.0 == *name) {
                        map.serialize_entry(name, &Cut { value, wanted, depth: self.depth + 1 })?;
                    }
                }
                map.end()
            }
            Some(b'[') => {
                let items: Vec<&RawValue> =
                    serde_json::from_str(text).map_err(serde::ser::Error::custom)?;
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for value in items {
                    list.serialize_element(&Cut {
                        value,
                        wanted: self.wanted,
                        depth: self.depth + 1,
                    })?;
                }
                list.end()
            }
            // It has no fields that could be left out.
            _ => self.value.serialize(serializer),
        }
    }
}

/// An object's fields in their order.
struct Entries<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(fields: &str, json: &str) -> String {
        let fields = Fields::parse(fields).expect("fields");
        String::from_utf8(fields.cut(json.as_bytes()).expect("JSON")).expect("text")
    }

    #[test]
    fn what_is_named_stays_as_it_was_written() {
        let json = r#"{"z":1.00,"a":{"b":[{"c":1e2,"d":2},{"d":3}],"e":5},"n":null}"#;
        assert_eq!(cut("a.b.c,z", json), r#"{"z":1.00,"a":{"b":[{"c":1e2},{}]}}"#);
        assert_eq!(cut("a.b,a.b.c", json), r#"{"a":{"b":[{"c":1e2,"d":2},{"d":3}]}}"#);
        assert_eq!(cut("n.x,missing", json), r#"{"n":null}"#);
        assert_eq!(cut("a.e", json), r#"{"a":{"e":5}}"#);
    }

    #[test]
    fn the_parameter_is_taken_out_of_the_query() {
        let (wanted, rest) = split("limit=3&fields=a%2Cb&x=%2C&fields=c");
        assert_eq!((wanted.as_deref(), rest.as_str()), (Some("a,b,c"), "limit=3&x=%2C"));
        assert_eq!(split("limit=3"), (None, "limit=3".to_owned()));
        let uri: Uri = "/v1/x?fields=a&b=1".parse().expect("a path");
        assert_eq!(with_query(&uri, "b=1"), "/v1/x?b=1");
        assert_eq!(with_query(&uri, ""), "/v1/x");
    }

    #[test]
    fn what_names_no_field_is_refused() {
        for bad in ["", "a,,b", "a..b", ".", "a b", "ä", &"a.".repeat(9), &"a,".repeat(70)] {
            assert_eq!(Fields::parse(bad).expect_err(bad).status, 400, "{bad}");
        }
    }
}
