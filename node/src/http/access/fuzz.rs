//! Tokens files: read or refused, and nobody is let in who is not in them.

use carbonmesh_fuzz::{Corpus, target};

use super::{
    scope::Scope,
    tokens::{Grants, MAX_ENTRIES, TokenEntry, make_token},
};

const WORDS: [&str; 16] = [
    "[[tokens]]",
    "[[certificates]]",
    "name = ",
    "sha256 = ",
    "scopes = ",
    "expires = ",
    "san = ",
    "\"a\"",
    "\"read:a*\"",
    "\"admin\"",
    "\"9999-12-31T23:59:59Z\"",
    "\"-009999-01-01T00:00:00Z\"",
    "[",
    "]",
    "\n",
    "\0",
];

#[test]
fn tokens_files_are_read_or_refused() {
    let known = make_token();
    let scopes: Vec<Scope> = vec!["admin".parse().unwrap()];
    let until = "2099-01-01T00:00:00Z".parse().unwrap();
    let entry = TokenEntry::new("ci", &known, &scopes, Some(until)).to_toml();
    let certificate =
        "[[certificates]]\nname = \"oak\"\nsan = \"oak.example\"\nscopes = [\"read:*\"]\n";
    for seed in [&entry, certificate] {
        assert_eq!(Grants::parse(seed).unwrap().len(), 1, "the seed is read");
    }
    let (stranger, seeds) =
        (make_token(), [entry.clone(), certificate.to_owned(), entry + certificate]);
    let seeds = seeds.map(String::into_bytes).to_vec();
    target!(Corpus::of("tokens", seeds).words(WORDS), |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        match Grants::parse(text) {
            Ok(grants) => {
                assert!(grants.len() <= MAX_ENTRIES);
                assert!(grants.by_token(stranger.as_bytes()).is_none(), "nobody wrote that down");
                assert!(grants.by_token(b"").is_none());
                grants.entries().for_each(|(_, grant)| drop(grant.expires()));
            }
            Err(reason) => assert!(!reason.is_empty()),
        }
    });
}
