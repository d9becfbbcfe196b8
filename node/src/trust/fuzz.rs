//! Chains, invitations and lists of who is shut out, as strangers and peers show them: read or refused, and
//! nothing counts that the root did not sign.

use std::{collections::BTreeSet, time::SystemTime};

use carbonmesh_fuzz::{Corpus, body, seal, target};
use carbonmesh_protocol::rights::Rights;

use super::{
    tests::{Member, Operator},
    *,
};

/// A chain's envelope around other bodies: else nearly all would end at the checksum.
fn sealed_again(shown: &[u8], input: &[u8]) -> Vec<u8> {
    let kind = u16::from_le_bytes([shown[2], shown[3]]);
    seal(kind, shown[4], input)
}

#[test]
fn chains_are_read_or_refused_and_only_what_was_signed_holds() {
    let operator = Operator::new();
    let roots = Roots::new(operator.root());
    let member = Member::join(&operator.invite(Rights::ALL, 1, false));
    let shown = member.trust.chain();
    let (chain, _) = Roots::read_shown(&shown).expect("its own chain");
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let now_s = now_s.as_secs();
    assert!(roots.verify(&chain, now_s).is_ok(), "the seed holds");
    let signed: Vec<Statement> = chain.links().cloned().collect();
    target!(Corpus::of("chain", vec![body(&shown).to_vec()]), |input: &[u8]| {
        for bytes in [input.to_vec(), sealed_again(&shown, input)] {
            let Ok((read, _)) = Roots::read_shown(&bytes) else { continue };
            if roots.verify(&read, now_s).is_ok() {
                assert!(read.links().all(|link| signed.contains(link)), "nobody signed {read:?}");
            }
        }
    });
}

#[test]
fn invitations_are_read_or_refused() {
    let operator = Operator::new();
    let text = operator.invite(Rights::ALL, 1, true).to_string();
    assert!(text.parse::<Invitation>().is_ok(), "the seed is one");
    let roots = BTreeSet::from([operator.root()]);
    target!(Corpus::of("invitation", vec![text.into_bytes()]), |input: &[u8]| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        match text.parse::<Invitation>() {
            Ok(invitation) => {
                assert!(roots.contains(&invitation.first_root()), "another cluster's");
                let again = invitation.to_string().parse::<Invitation>();
                assert!(again.is_ok(), "it is written as it is read");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    });
}
