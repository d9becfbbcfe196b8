//! Roots that follow each other: a cluster's root changes, and its name, its members and their work stay.
//!
//! ```text
//! succession = old root, new root, when, until when the old one counts,
//!              issuers' certificates anew, by the new root; signed by both roots
//! ```
//! The first certificate of each chain is exchanged: an issuer's key stays what it is, and the new root says
//! of it what the old one has said. So all chains that begin with such an issuer go on, whoever holds them,
//! and nobody has to be there to renew them. What the old root alone has signed ends at the time that the
//! succession says. Members keep successions, and show them with their certificates, so that whoever was
//! away, or comes by an older invitation, learns of them at the gate.
//!
//! Invariant: roots stand in one row, each with one successor at most; a cluster goes by its first.

use std::path::Path;

use carbonmesh_protocol::codec::{self, Encoded, Kind};
use libp2p::identity::ed25519;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Chain, ChainError, MAX_CHAIN_BYTES, PublicKey, Statement, VaultError,
    certificate::{Certificate, Signature},
    vault::{read_private, write_private},
};

/// The most issuers that one succession takes over.
pub(crate) const MAX_ISSUERS: usize = 4;

/// The most successions of one cluster.
pub(crate) const MAX_SUCCESSIONS: usize = 8;

/// The most bytes of one, so that all of them fit through the gate.
const MAX_BYTES: usize = 880;

/// The most bytes of certificates together with the successions that they need.
pub(crate) const MAX_SHOWN_BYTES: usize = MAX_CHAIN_BYTES + MAX_SUCCESSIONS * MAX_BYTES;

const LABEL: &[u8] = b"carbonmesh/1/succession\0";

/// What both roots sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Terms {
    old: PublicKey,
    new: PublicKey,
    at_s: u64,
    ends_s: u64,
    issuers: Vec<Certificate>,
}

impl Encoded for Terms {
    const KIND: Kind = 0x205;
}

/// One root takes the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Succession {
    terms: Terms,
    by_old: Signature,
    by_new: Signature,
}

impl Encoded for Succession {
    const KIND: Kind = 0x206;
}

/// Certificates, and the successions that lead to the root that they begin with.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shown {
    chain: Chain,
    roots: Vec<Succession>,
}

impl Encoded for Shown {
    const KIND: Kind = 0x207;
}

/// All of them, as they lie in their file.
#[derive(Default, Serialize, Deserialize)]
struct Listed(Vec<Succession>);

impl Encoded for Listed {
    const KIND: Kind = 0x208;
}

/// A succession that does not count. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SuccessionError {
    /// Its old root is none that is known here, or has a successor already.
    #[error(
        "it follows another root than this cluster's present one, or another root follows that already"
    )]
    OutOfRow,
    /// A root comes twice.
    #[error("the new root is one of the roots before it")]
    Twice,
    /// A signature is wrong.
    #[error("the {0} root has not signed it")]
    Forged(&'static str),
    /// The old root would end before the new one begins.
    #[error("the old root ends before it is followed")]
    Times,
    /// An issuer's certificate does not hold.
    #[error("an issuer's certificate in it does not hold: {0}")]
    Issuer(ChainError),
    /// Too many issuers, or too large.
    #[error(
        "it takes over {issuers} issuers in {bytes} bytes: at most {MAX_ISSUERS} in {MAX_BYTES} are possible"
    )]
    TooLarge {
        /// How many issuers.
        issuers: usize,
        /// How many bytes.
        bytes: usize,
    },
    /// Too many.
    #[error("{MAX_SUCCESSIONS} roots have followed each other already: found a new cluster")]
    Full,
}

impl Succession {
    /// `new` takes over from `old`, which counts until `ends_s`, and says anew what `old` has said of these
    /// issuers.
    ///
    /// # Errors
    /// Nobody would accept it.
    pub(crate) fn new(
        old: &ed25519::Keypair,
        new: &ed25519::Keypair,
        (at_s, ends_s): (u64, u64),
        issuers: impl IntoIterator<Item = Statement>,
    ) -> Result<Self, SuccessionError> {
        let anew = |statement| {
            let chain = Chain::default().extend(new, statement).map_err(SuccessionError::Issuer)?;
            chain.first().cloned().ok_or(SuccessionError::Issuer(ChainError::Empty))
        };
        let issuers = issuers.into_iter().map(anew).collect::<Result<_, _>>()?;
        let (old_key, new_key) = (PublicKey::of(old), PublicKey::of(new));
        let terms = Terms { old: old_key, new: new_key, at_s, ends_s, issuers };
        let by = |root| Signature::new(root, &signed(PublicKey::of(root), &terms));
        let made = Self { by_old: by(old), by_new: by(new), terms };
        made.verify()?;
        Ok(made)
    }

    /// The root that is followed.
    pub(crate) fn old(&self) -> PublicKey {
        self.terms.old
    }

    /// The root that follows.
    pub(crate) fn successor(&self) -> PublicKey {
        self.terms.new
    }

    /// Until before when the old root counts, in s since 1970.
    pub(crate) fn ends_s(&self) -> u64 {
        self.terms.ends_s
    }

    /// Whether these are all of its own words.
    fn verify(&self) -> Result<(), SuccessionError> {
        let terms = &self.terms;
        let (issuers, bytes) = (terms.issuers.len(), codec::encode(self).len());
        if issuers > MAX_ISSUERS || bytes > MAX_BYTES {
            return Err(SuccessionError::TooLarge { issuers, bytes });
        }
        if terms.old == terms.new {
            return Err(SuccessionError::Twice);
        }
        if terms.ends_s < terms.at_s {
            return Err(SuccessionError::Times);
        }
        for (who, root, signature) in
            [("old", terms.old, &self.by_old), ("new", terms.new, &self.by_new)]
        {
            if !root.verifies(&signed(root, terms), signature) {
                return Err(SuccessionError::Forged(who));
            }
        }
        for issuer in &terms.issuers {
            let chain = Chain::default().with_first(issuer.clone());
            chain.verify_genuine(terms.new).map_err(SuccessionError::Issuer)?;
        }
        Ok(())
    }
}

fn signed(signer: PublicKey, terms: &Terms) -> Vec<u8> {
    [LABEL, &signer.0, &codec::encode(terms)].concat()
}

/// A cluster's roots, from its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots {
    first: PublicKey,
    later: Vec<Succession>,
}

impl Roots {
    /// One that nothing has followed.
    pub(crate) fn new(first: PublicKey) -> Self {
        Self { first, later: Vec::new() }
    }

    /// A row of them.
    ///
    /// # Errors
    /// They do not follow each other.
    pub(crate) fn of(
        first: PublicKey,
        later: impl IntoIterator<Item = Succession>,
    ) -> Result<Self, SuccessionError> {
        let mut roots = Self::new(first);
        later.into_iter().try_for_each(|one| roots.learn(one).map(drop))?;
        Ok(roots)
    }

    /// Reads the file; without one, nothing has followed.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn read(path: &Path, first: PublicKey) -> Result<Self, VaultError> {
        let damaged = || VaultError::Damaged { path: path.to_owned() };
        Self::of(first, Self::read_row(path)?).map_err(|_| damaged())
    }

    /// The same, of whichever cluster; its first root is the first's old one.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn read_row(path: &Path) -> Result<Vec<Succession>, VaultError> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let damaged = |_| VaultError::Damaged { path: path.to_owned() };
        let listed: Listed = codec::decode(&read_private(path)?).map_err(damaged)?;
        Ok(listed.0)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), VaultError> {
        write_private(path, &codec::encode(&Listed(self.later.clone())))
    }

    /// What the cluster goes by.
    pub(crate) fn first(&self) -> PublicKey {
        self.first
    }

    /// The present one.
    pub(crate) fn last(&self) -> PublicKey {
        self.later.last().map_or(self.first, Succession::successor)
    }

    /// What has led to it.
    pub(crate) fn successions(&self) -> &[Succession] {
        &self.later
    }

    /// All of them, from the first.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = PublicKey> {
        std::iter::once(self.first).chain(self.later.iter().map(Succession::successor))
    }

    /// Until before when a root counts; for ever, if nothing follows it.
    fn ends_s(&self, root: PublicKey) -> Option<u64> {
        self.later.iter().find(|one| one.old() == root).map(Succession::ends_s)
    }

    /// Which root a chain begins with, and how many stand before that.
    fn signer(&self, chain: &Chain) -> Option<(usize, PublicKey)> {
        match self.later.is_empty() {
            // The usual case costs no signature more.
            true => Some((0, self.first)),
            false => self.all().enumerate().find(|(_, root)| chain.is_signed_by(*root)),
        }
    }

    /// How late a chain's root stands in the row.
    pub(crate) fn rank(&self, chain: &Chain) -> usize {
        self.signer(chain).map_or(0, |(rank, _)| rank)
    }

    /// Checks a chain against whichever root it begins with, and the clock.
    ///
    /// # Errors
    /// It grants nothing, or not now.
    pub(crate) fn verify<'a>(
        &self,
        chain: &'a Chain,
        now_s: u64,
    ) -> Result<&'a Statement, ChainError> {
        let leaf = chain.leaf().ok_or(ChainError::Empty)?;
        self.check(chain, now_s, |root| chain.verify(root, now_s)).map(|_| leaf)
    }

    /// The same, for a node that has proven to hold `key`.
    ///
    /// # Errors
    /// It grants that node nothing, or not now.
    pub(crate) fn verify_node<'a>(
        &self,
        chain: &'a Chain,
        now_s: u64,
        key: PublicKey,
    ) -> Result<&'a Statement, ChainError> {
        let leaf = chain.leaf().ok_or(ChainError::Empty)?;
        self.check(chain, now_s, |root| chain.verify_node(root, now_s, key)).map(|_| leaf)
    }

    fn check<T>(
        &self,
        chain: &Chain,
        now_s: u64,
        verify: impl FnOnce(PublicKey) -> Result<T, ChainError>,
    ) -> Result<T, ChainError> {
        let (_, root) = self.signer(chain).ok_or(ChainError::OtherRoot)?;
        let verified = verify(root)?;
        self.check_end(root, now_s)?;
        Ok(verified)
    }

    /// Whether a root counts at that time.
    ///
    /// # Errors
    /// It was followed, and has ended.
    pub(crate) fn check_end(&self, root: PublicKey, now_s: u64) -> Result<(), ChainError> {
        match self.ends_s(root) {
            Some(ends_s) if now_s >= ends_s => {
                Err(ChainError::RootEnded { since_s: now_s - ends_s })
            }
            _ => Ok(()),
        }
    }

    /// Which root a chain that was checked begins with.
    pub(crate) fn signer_of(&self, chain: &Chain) -> PublicKey {
        self.signer(chain).map_or(self.first, |(_, root)| root)
    }

    /// Takes a succession over; whether that was news.
    ///
    /// # Errors
    /// It does not count.
    pub(crate) fn learn(&mut self, one: Succession) -> Result<bool, SuccessionError> {
        if self.later.contains(&one) {
            return Ok(false);
        }
        if one.old() != self.last() {
            return Err(SuccessionError::OutOfRow);
        }
        if self.later.len() >= MAX_SUCCESSIONS {
            return Err(SuccessionError::Full);
        }
        one.verify()?;
        if self.all().any(|root| root == one.successor()) {
            return Err(SuccessionError::Twice);
        }
        self.later.push(one);
        Ok(true)
    }

    /// A chain as it is under the latest root that says of its issuer what the one before did.
    pub(crate) fn renewed(&self, chain: &Chain) -> Chain {
        let mut chain = chain.clone();
        for one in &self.later {
            let Some(first) = chain.links().next() else { break };
            let again = one.terms.issuers.iter().find(|it| it.statement.subject == first.subject);
            let Some(again) = again.filter(|_| chain.is_signed_by(one.old())) else { continue };
            let fresh = chain.with_first(again.clone());
            // The new root may have said less of the issuer than the old one.
            if fresh.verify_genuine(one.successor()).is_ok() {
                chain = fresh;
            }
        }
        chain
    }

    /// A chain as it is shown to others, with what they may not have heard.
    pub(crate) fn show(&self, chain: &Chain) -> bytes::Bytes {
        match self.later.is_empty() {
            true => chain.encode(),
            false => codec::encode(&Shown { chain: chain.clone(), roots: self.later.clone() }),
        }
    }

    /// Reads what somebody shows; what of the successions is news stands behind the chain, unchecked.
    ///
    /// # Errors
    /// It is none, or too large.
    pub(crate) fn read_shown(bytes: &[u8]) -> Result<(Chain, Vec<Succession>), ChainError> {
        if bytes.len() > MAX_SHOWN_BYTES {
            return Err(ChainError::TooLarge(bytes.len()));
        }
        let shown: Shown = match codec::decode(bytes) {
            Ok(shown) => shown,
            Err(codec::DecodeError::Unknown { .. }) => return Ok((Chain::decode(bytes)?, vec![])),
            Err(error) => return Err(error.into()),
        };
        // Else one had several spellings.
        if *codec::encode(&shown) != *bytes {
            return Err(ChainError::NotCanonical);
        }
        Ok((Chain::decode(&shown.chain.encode())?, shown.roots))
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::rights::Rights;

    use super::*;
    use crate::trust::tests::{Operator, statement};

    #[test]
    fn nothing_in_a_succession_can_be_changed() {
        let (old, other) = (Operator::new(), Operator::new());
        let new = ed25519::Keypair::generate();
        let of = |times, by: (&ed25519::Keypair, &ed25519::Keypair)| {
            let issuer = old.issuer.statement().unwrap().clone();
            Succession::new(by.0, by.1, times, [issuer]).unwrap()
        };
        let good = of((10, 20), (&old.root, &new));
        let learn = |one: Succession| Roots::new(old.root()).learn(one);
        assert_eq!(learn(good.clone()), Ok(true));
        let changed = |change: &dyn Fn(&mut Succession)| {
            let mut bad = good.clone();
            change(&mut bad);
            learn(bad).unwrap_err()
        };
        let forged = SuccessionError::Forged("old");
        assert_eq!(changed(&|it| it.terms.ends_s += 1), forged);
        assert_eq!(changed(&|it| it.terms.at_s += 1), forged);
        assert_eq!(changed(&|it| it.terms.issuers.clear()), forged);
        assert_eq!(changed(&|it| it.terms.new = other.root()), forged);
        assert_eq!(changed(&|it| it.by_old = it.by_new), forged);
        assert_eq!(changed(&|it| it.by_new = it.by_old), SuccessionError::Forged("new"));
        // Who has no root makes none, whichever it says to follow.
        let mut claimed = of((10, 20), (&other.root, &new));
        assert_eq!(learn(claimed.clone()), Err(SuccessionError::OutOfRow));
        claimed.terms.old = old.root();
        assert_eq!(learn(claimed), Err(forged));
        // A certificate that the new root has not signed is no part of it.
        let mut foreign = good.terms.clone();
        foreign.issuers = vec![old.issuer.chain.first().unwrap().clone()];
        let by = |root| Signature::new(root, &signed(PublicKey::of(root), &foreign));
        let (by_old, by_new) = (by(&old.root), by(&new));
        let foreign = Succession { terms: foreign, by_old, by_new };
        assert_eq!(learn(foreign), Err(SuccessionError::Issuer(ChainError::OtherRoot)));
    }

    #[test]
    fn an_issuer_that_may_do_less_under_the_new_root_is_not_taken_over_with_what_it_gave() {
        let old = Operator::new();
        let chain = old.invite(Rights::ALL, 1, false).issuer.chain.clone();
        let mut less = old.issuer.statement().unwrap().clone();
        less = Statement { issues: 1, ..less };
        let new = ed25519::Keypair::generate();
        let one = Succession::new(&old.root, &new, (10, 20), [less]).unwrap();
        let roots = Roots::of(old.root(), [one]).unwrap();
        assert_eq!(roots.renewed(&chain), chain);
        let short = Chain::default().extend(&old.root, statement(old.root(), Rights::ALL, 2, 9));
        let short = short.unwrap();
        assert_eq!(roots.renewed(&short), short, "of another issuer nothing was said");
    }
}
