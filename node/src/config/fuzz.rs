//! Files that a node starts with: settings, secrets and keys are read or refused.

use std::os::unix::fs::PermissionsExt;

use carbonmesh_fuzz::{Corpus, target};

use super::{private::SECRET_BYTES, *};
use crate::key::load_or_create;

const WORDS: [&str; 20] = [
    "[phases.a]",
    "[limits]",
    "[timing]",
    "[labels]",
    "role = ",
    "slots = ",
    "command = ",
    "listen = ",
    "\"worker\"",
    "\"30s\"",
    "\"0s\"",
    "-1",
    "18446744073709551615",
    "[",
    "]",
    "\"",
    "=",
    "\n",
    "\0",
    "''",
];

#[test]
fn settings_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    let resolve = |text: &[u8]| {
        fs::write(&path, text).unwrap();
        let args = UpArgs { config: Some(path.clone()), ..UpArgs::default() };
        args.resolve_with(&PhaseRegistry::default(), None)
    };
    let corpus = Corpus::load("config").words(WORDS);
    assert!(corpus.inputs().iter().any(|input| resolve(input).is_ok()), "no seed is accepted");
    target!(corpus, |input: &[u8]| match resolve(input) {
        Ok(settings) => {
            assert!(settings.http.ip().is_loopback());
            assert!(settings.timing.lease >= settings.timing.beat * 2);
            assert!(settings.secret.is_some() || settings.listen.iter().all(is_loopback));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    });
}

#[test]
fn keys_and_secrets_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    load_or_create(&path, &Files::default(), true).unwrap();
    let key = fs::read(&path).unwrap();
    let write = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let secret = b"0123456789012345678901234567890123456789\n".to_vec();
    let corpus = Corpus::of("key", vec![key.clone(), secret]);
    target!(corpus, |input: &[u8]| {
        write(input);
        let _ = load_or_create(&path, &Files::default(), false);
        if let Ok(Some(secret)) = read_secret(None, Some(&path)) {
            assert!(secret.as_bytes().len() >= SECRET_BYTES);
        }
    });
    // One bit of the public half: the key is no pair any more.
    let mut damaged = key;
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    write(&damaged);
    assert!(load_or_create(&path, &Files::default(), false).is_err());
}
