//! Tokens: made at random, kept as hashes, given to nodes in a file.
//!
//! ```text
//! token create ──► cmt_… (shown once)        to its user
//!              └─► [[tokens]] name, sha256, scopes, expires   to each node's --tokens-file
//! ```
//! No node has to ask another whether a token is good, and none holds one that could be stolen from
//! its disk. A token has 256 random bits: its hash needs no salt and no slow function.
//!
//! Invariant: a token is compared in constant time, with every entry, whichever is the right one.

use std::{collections::BTreeSet, fmt, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use super::scope::{Scope, Scopes};
use crate::tls::{self, Fingerprint};

/// What every token begins with, so that programs that look for leaked secrets know it.
const PREFIX: &str = "cmt_";

/// How many entries a file may have: each is compared at every request.
pub const MAX_ENTRIES: usize = 1000;

/// How large a file may be, in bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// A token's hash. It has no `==`, which may end at the first byte that differs.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// That of a token as clients send it.
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    fn is(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(..)")
    }
}

/// A new token; it is wiped from memory once it was shown.
pub fn make_token() -> Zeroizing<String> {
    let bytes: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    Zeroizing::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&*bytes)))
}

/// An entry of a tokens file, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// Who has it; for people and the audit log.
    pub name: String,
    /// The token's SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it ends (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

impl TokenEntry {
    /// The entry of a token.
    pub fn new(name: &str, token: &str, scopes: &[Scope], expires: Option<Timestamp>) -> Self {
        Self {
            name: name.to_owned(),
            sha256: HEXLOWER.encode(&TokenHash::of(token.as_bytes()).0),
            scopes: scopes.iter().map(ToString::to_string).collect(),
            expires: expires.map(|at| at.to_string()),
        }
    }

    /// As it stands in a file.
    pub fn to_toml(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let scopes: Vec<String> = self.scopes.iter().map(|scope| quoted(scope)).collect();
        let mut text = format!(
            "[[tokens]]\nname = {}\nsha256 = {}\nscopes = [{}]\n",
            quoted(&self.name),
            quoted(&self.sha256),
            scopes.join(", ")
        );
        if let Some(expires) = &self.expires {
            text.push_str(&format!("expires = {}\n", quoted(expires)));
        }
        text
    }
}

/// A client that shows a certificate, as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CertificateEntry {
    name: String,
    /// A DNS name that the certificate is for.
    san: Option<String>,
    /// The certificate's SHA-256.
    sha256: Option<String>,
    scopes: Vec<String>,
    expires: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TokensFile {
    tokens: Vec<TokenEntry>,
    certificates: Vec<CertificateEntry>,
}

/// Who somebody is, and what they may do.
#[derive(Clone, Debug)]
pub struct Grant {
    /// For people and the audit log.
    pub name: Arc<str>,
    /// What they may do.
    pub scopes: Arc<Scopes>,
    /// When it ends, in milliseconds since 1970.
    expires_ms: Option<u64>,
}

impl Grant {
    /// When it ends (RFC 3339), if it does.
    pub fn expires(&self) -> Option<String> {
        let at = self.expires_ms.and_then(|at| i64::try_from(at).ok())?;
        Timestamp::from_millisecond(at).ok().map(|at| at.to_string())
    }

    /// Whether it has ended.
    pub fn is_over(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= now_ms)
    }
}

#[derive(Debug)]
enum Shown {
    San(String),
    Certificate(Fingerprint),
}

/// Everybody that a node knows.
#[derive(Debug, Default)]
pub struct Grants {
    tokens: Vec<(TokenHash, Grant)>,
    certificates: Vec<(Shown, Grant)>,
}

impl Grants {
    /// Reads a tokens file.
    ///
    /// # Errors
    /// Something in it cannot be; the text names the entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: TokensFile =
            toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let entries = file.tokens.len() + file.certificates.len();
        if entries > MAX_ENTRIES {
            return Err(format!("{entries} entries are too many: {MAX_ENTRIES} are possible"));
        }
        let mut names = BTreeSet::new();
        let mut hashes = BTreeSet::new();
        let mut grants = Self::default();
        for entry in file.tokens {
            let wrong = |what: &str| format!("tokens `{}`: {what}", entry.name);
            let hash: [u8; 32] = HEXLOWER
                .decode(entry.sha256.to_ascii_lowercase().as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(|| wrong("sha256: 64 hexadecimal digits are needed"))?;
            let grant = grant(&entry.name, &entry.scopes, entry.expires.as_deref(), &wrong)?;
            if !hashes.insert(hash) {
                return Err(wrong("sha256: another entry has the same token"));
            }
            if !names.insert(entry.name.clone()) {
                return Err(wrong("name: it is there twice"));
            }
            grants.tokens.push((TokenHash(hash), grant));
        }
        for entry in file.certificates {
            let wrong = |what: &str| format!("certificates `{}`: {what}", entry.name);
            let shown = match (&entry.san, &entry.sha256) {
                (Some(san), None) => Shown::San(san.clone()),
                (None, Some(text)) => {
                    let parsed = text.parse();
                    Shown::Certificate(parsed.map_err(|e: String| wrong(&format!("sha256: {e}")))?)
                }
                (None, None) | (Some(_), Some(_)) => {
                    return Err(wrong("give either san, a name in the certificate, or sha256"));
                }
            };
            let grant = grant(&entry.name, &entry.scopes, entry.expires.as_deref(), &wrong)?;
            if !names.insert(entry.name.clone()) {
                return Err(wrong("name: it is there twice"));
            }
            grants.certificates.push((shown, grant));
        }
        Ok(grants)
    }

    /// Reads a tokens file from disk.
    ///
    /// # Errors
    /// It cannot be read, or something in it cannot be.
    pub fn read(path: &Path) -> Result<(Self, String), String> {
        let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
        if metadata.permissions().mode() & 0o002 != 0 {
            return Err("everybody on this machine may write it: run chmod o-w on it".to_owned());
        }
        let size = metadata.len();
        if size > MAX_FILE_BYTES {
            return Err(format!("it has {size} bytes: at most {MAX_FILE_BYTES} are possible"));
        }
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        Ok((Self::parse(&text)?, text))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tokens.len() + self.certificates.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everybody, and by what they show who they are.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &Grant)> {
        let tokens = self.tokens.iter().map(|(_, grant)| ("token", grant));
        tokens.chain(self.certificates.iter().map(|(_, grant)| ("certificate", grant)))
    }

    /// Whose token this is. How long it takes depends on the number of entries alone.
    pub fn by_token(&self, token: &[u8]) -> Option<&Grant> {
        let hash = TokenHash::of(token);
        let mut found = u32::MAX;
        for (at, (known, _)) in (0_u32..).zip(&self.tokens) {
            found = u32::conditional_select(&found, &at, known.is(&hash));
        }
        self.tokens.get(usize::try_from(found).ok()?).map(|(_, grant)| grant)
    }

    /// Whose certificate this is; it was verified already.
    pub fn by_certificate(&self, certificate: &CertificateDer<'_>) -> Option<&Grant> {
        let fingerprint = Fingerprint::of(certificate);
        let shows = |(shown, _): &&(Shown, Grant)| match shown {
            Shown::San(name) => tls::is_for(certificate, name),
            Shown::Certificate(known) => *known == fingerprint,
        };
        self.certificates.iter().find(shows).map(|(_, grant)| grant)
    }
}

fn grant(
    name: &str,
    scopes: &[String],
    expires: Option<&str>,
    wrong: &dyn Fn(&str) -> String,
) -> Result<Grant, String> {
    check_name(name).map_err(|reason| wrong(&reason))?;
    let scopes: Result<Vec<Scope>, String> = scopes.iter().map(|text| text.parse()).collect();
    let scopes = scopes.map_err(|reason| wrong(&format!("scopes: {reason}")))?;
    let expires = expires
        .map(str::parse::<Timestamp>)
        .transpose()
        .map_err(|_| wrong("expires: it is no moment: write it as 2030-01-31T00:00:00Z"))?;
    Ok(Grant {
        name: name.into(),
        scopes: Arc::new(Scopes::new(scopes)),
        expires_ms: expires.map(|at| u64::try_from(at.as_millisecond()).unwrap_or_default()),
    })
}

/// A name that may stand in logs.
///
/// # Errors
/// It may not; the text says what may.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |one: char| one.is_ascii_alphanumeric() || "-_.@".contains(one);
    if (1..=63).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    Err(format!("name: `{}` cannot be: 1 to 63 of a-z A-Z 0-9 - _ . @ can", name.escape_debug()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(entries: &[TokenEntry]) -> Grants {
        let text: Vec<String> = entries.iter().map(TokenEntry::to_toml).collect();
        Grants::parse(&text.join("\n")).expect("a tokens file")
    }

    #[test]
    fn a_token_is_found_by_itself_alone() {
        let scopes = ["read:*".parse().expect("a scope")];
        let tokens: Vec<_> = (0..5).map(|_| make_token()).collect();
        let entry = |at: usize| TokenEntry::new(&format!("t{at}"), &tokens[at], &scopes, None);
        let grants = file(&(0..5).map(entry).collect::<Vec<_>>());
        for (at, token) in tokens.iter().enumerate() {
            assert!(token.starts_with("cmt_") && token.len() == 47, "{}", token.len());
            let found = grants.by_token(token.as_bytes()).expect("it is there");
            assert_eq!(&*found.name, format!("t{at}"));
            for near in [&token[..46], &format!("{}x", &token[..46]), &token.to_uppercase(), ""] {
                assert!(grants.by_token(near.as_bytes()).is_none(), "{near}");
            }
        }
        // The hash is no token.
        let hash = TokenEntry::new("x", &tokens[0], &scopes, None).sha256;
        assert!(grants.by_token(hash.as_bytes()).is_none());
    }

    #[test]
    fn hashes_cannot_be_compared_but_in_constant_time() {
        // Does not compile once `TokenHash` has `==`: the call is then ambiguous.
        trait IfEq<A> {
            fn holds() {}
        }
        struct Eq;
        impl<T: ?Sized> IfEq<()> for T {}
        impl<T: ?Sized + PartialEq> IfEq<Eq> for T {}
        <TokenHash as IfEq<_>>::holds();
    }

    #[test]
    fn a_token_ends_when_it_says() {
        let scopes = ["read:*".parse().expect("a scope")];
        let end = Timestamp::from_millisecond(5_000).expect("a moment");
        let grants = file(&[TokenEntry::new("t", "secret", &scopes, Some(end))]);
        let grant = grants.by_token(b"secret").expect("it is there");
        assert!(!grant.is_over(4_999) && grant.is_over(5_000));
    }

    #[test]
    fn a_file_that_everybody_may_write_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        std::fs::write(&path, "").unwrap();
        assert!(Grants::read(&path).is_ok());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o646)).unwrap();
        assert!(Grants::read(&path).unwrap_err().contains("chmod o-w"));
    }

    #[test]
    fn mistakes_in_the_file_are_named() {
        let hash = "ab".repeat(32);
        let token = |name: &str, rest: &str| format!("[[tokens]]\nname = '{name}'\n{rest}\n");
        let good = format!("sha256 = '{hash}'\nscopes = ['read:*']");
        let cases = [
            ("x = 1".to_owned(), "unknown field `x`"),
            (token("a", "sha256 = 'ab'\nscopes = []"), "tokens `a`: sha256"),
            (token("a", &good.replace("read", "write")), "tokens `a`: scopes: `write:*`"),
            (token("a", &format!("{good}\nexpires = 'soon'")), "tokens `a`: expires"),
            (token("a b", &good), "`a b`"),
            (token("a", &good) + &token("b", &good), "tokens `b`: sha256: another"),
            (token("a", &good) + &token("a", &good.replace("ab", "cd")), "name: it is there twice"),
            ("[[certificates]]\nname = 'c'\nscopes = []".to_owned(), "either san"),
            (token("a", "scopes = []"), "missing field `sha256`"),
        ];
        for (text, part) in cases {
            let error = Grants::parse(&text).expect_err(&text);
            assert!(error.contains(part), "`{part}` is not in `{error}`");
        }
        assert!(Grants::parse("").expect("an empty file").is_empty());
    }
}
