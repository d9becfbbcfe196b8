//! The key that seals values and secrets before the cluster gets them, and opens them where phases run.
//!
//! ```text
//! operator's key file ─► `secret put` seals ─► entry ─► all nodes keep it ─► those with the key open it
//! sealed = nonce(24, drawn), cipher text, tag(16)       authenticated: place, key, whether it is hidden
//! ```
//! XChaCha20-Poly1305. Nonces are drawn: one key seals far fewer entries than it takes for two to meet.

use std::fmt;

use carbonmesh_protocol::secret::{KeyId, Place, SEAL_BYTES, Sealed};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use data_encoding::BASE64;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// The shortest key, in bytes.
pub const SHORTEST_KEY: usize = 32;

const SEAL_LABEL: &[u8] = b"carbonmesh/1/scope/key\0";
const ID_LABEL: &[u8] = b"carbonmesh/1/scope/key-id\0";

const NONCE_BYTES: usize = 24;

/// The key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ScopeKeyError {
    /// It has too few bytes; how many.
    #[error(
        "the key has {0} bytes, at least {SHORTEST_KEY} are needed: make one with `carbonmesh secret key FILE`"
    )]
    Short(usize),
}

/// What seals and opens the cluster's values and secrets for phases; never printed.
#[derive(Clone)]
pub struct ScopeKey {
    key: Zeroizing<[u8; 32]>,
    id: KeyId,
}

impl fmt::Debug for ScopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeKey({})", self.id)
    }
}

impl ScopeKey {
    /// A key from what the operator keeps, which has to be random: it is not stretched as a passphrase
    /// would have to be. Line ends behind it do not count.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: &[u8]) -> Result<Self, ScopeKeyError> {
        let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
        let text = &text[..end.map_or(0, |last| last + 1)];
        if text.len() < SHORTEST_KEY {
            return Err(ScopeKeyError::Short(text.len()));
        }
        let derived = |label: &[u8]| {
            let mut sum = Sha256::new();
            sum.update(label);
            sum.update(text);
            sum.finalize()
        };
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&derived(SEAL_LABEL));
        let mut id = [0; 8];
        id.copy_from_slice(&derived(ID_LABEL)[..8]);
        Ok(Self { key, id: KeyId::from_bytes(id) })
    }

    /// The text of a new one: 32 random bytes in Base64, and a line end.
    pub fn make() -> Zeroizing<String> {
        let bytes = Zeroizing::new(rand::random::<[u8; SHORTEST_KEY]>());
        Zeroizing::new(BASE64.encode(&*bytes) + "\n")
    }

    /// What tells it from others, and nothing of it.
    pub const fn id(&self) -> KeyId {
        self.id
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.key).into())
    }

    /// Seals something for a place; `hidden` says whether it is a secret. Nothing comes only of what is
    /// longer than the cipher takes, which is 256 GiB.
    pub fn seal(&self, place: &Place, hidden: bool, plain: &str) -> Option<Sealed> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let associated = place.associated(self.id, hidden);
        let payload = Payload { msg: plain.as_bytes(), aad: &associated };
        let sealed = self.cipher().encrypt(&nonce.into(), payload).ok()?;
        let bytes = [&nonce[..], &sealed].concat().into();
        Some(Sealed { key: self.id, hidden, bytes })
    }

    /// What was sealed; nothing if it was changed, or sealed for another place or with another key.
    pub fn open(&self, place: &Place, sealed: &Sealed) -> Option<Zeroizing<String>> {
        if sealed.key != self.id || sealed.bytes.len() < SEAL_BYTES {
            return None;
        }
        let (nonce, body) = sealed.bytes.split_at_checked(NONCE_BYTES)?;
        let associated = place.associated(sealed.key, sealed.hidden);
        let payload = Payload { msg: body, aad: &associated };
        let plain = self.cipher().decrypt(XNonce::from_slice(nonce), payload).ok()?;
        let plain = Zeroizing::new(plain);
        std::str::from_utf8(&plain).ok().map(|text| Zeroizing::new(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::secret::Pattern;

    use super::*;

    fn place(pipeline: &str, name: &str) -> Place {
        Place {
            namespace: "team".parse().unwrap(),
            pipeline: Pattern::new(pipeline).unwrap(),
            phase: Pattern::default(),
            name: name.to_owned(),
        }
    }

    fn key(byte: u8) -> ScopeKey {
        ScopeKey::new(&[byte; 32]).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_at_its_place_with_its_key_and_nowhere_else() {
        let here = place("p-*", "KEY");
        let sealed = key(1).seal(&here, true, "hunter2-hunter2").unwrap();
        assert_eq!(key(1).open(&here, &sealed).unwrap().as_str(), "hunter2-hunter2");
        assert!(!sealed.bytes.windows(7).any(|part| part == b"hunter2"));
        assert!(key(2).open(&here, &sealed).is_none(), "another key");
        // Whoever says that it is that key's makes nothing better.
        let claimed = Sealed { key: key(2).id(), ..sealed.clone() };
        assert!(key(2).open(&here, &claimed).is_none());
        for other in [place("p-*", "KEY2"), place("*", "KEY")] {
            assert!(key(1).open(&other, &sealed).is_none(), "another place: {other}");
        }
        let other = Place { namespace: "other".parse().unwrap(), ..here.clone() };
        assert!(key(1).open(&other, &sealed).is_none(), "another namespace");
        // A secret that became a value would be shown in logs.
        let shown = Sealed { hidden: false, ..sealed.clone() };
        assert!(key(1).open(&here, &shown).is_none());
        for at in [0, NONCE_BYTES, sealed.bytes.len() - 1] {
            let mut bytes = sealed.bytes.to_vec();
            bytes[at] ^= 1;
            let changed = Sealed { bytes: bytes.into(), ..sealed.clone() };
            assert!(key(1).open(&here, &changed).is_none(), "byte {at}");
        }
        let again = key(1).seal(&here, true, "hunter2-hunter2").unwrap();
        assert!(again.bytes != sealed.bytes, "no nonce is taken twice");
    }

    #[test]
    fn a_key_is_long_enough_and_its_line_end_does_not_count() {
        assert_eq!(ScopeKey::new(&[1; 31]).unwrap_err(), ScopeKeyError::Short(31));
        assert_eq!(ScopeKey::new(b"\n\n").unwrap_err(), ScopeKeyError::Short(0));
        let made = ScopeKey::make();
        let (one, other) = (ScopeKey::new(made.as_bytes()), ScopeKey::new(made.trim().as_bytes()));
        assert_eq!(one.unwrap().id(), other.unwrap().id());
        assert!(*made != *ScopeKey::make());
        // Keys that operators have must open what they sealed for ever.
        assert_eq!(key(1).id().to_string(), "777c6f7402b9befc");
        assert!(!format!("{:?}", key(1)).contains('['));
    }
}
