//! The very bytes of certificates, keys, invitations and lists, as releases have written them: all that follow
//! must read them. With `FREEZE=1` a line is added to `frozen.txt` for each that has none; lines never change.

use std::fs;

use carbonmesh_protocol::{
    codec::{DecodeError, Encoded, decode, encode},
    rights::Rights,
};
use data_encoding::HEXLOWER;

use super::{
    tests::{Member, Operator},
    *,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/trust/frozen.txt");

/// Reads bytes, and writes what was read.
type Again = fn(&[u8]) -> Result<Vec<u8>, DecodeError>;

fn again<T: Encoded>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    Ok(encode(&decode::<T>(bytes)?).to_vec())
}

fn invitation_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let text = std::str::from_utf8(bytes).expect("a text");
    Ok(text.parse::<Invitation>().expect("an invitation").to_string().into_bytes())
}

fn shown_again(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    let (chain, successions) = Roots::read_shown(bytes).expect("what was shown");
    let first = successions.first().expect("a succession").old();
    let roots = Roots::of(first, successions).expect("in a row");
    Ok(roots.show(&chain).to_vec())
}

/// What is frozen: its name, how it is read, and one of now.
fn all() -> Vec<(&'static str, Again, Vec<u8>)> {
    let (old, new) = (Operator::new(), Operator::new());
    let mut invitation = old.invite(Rights::ALL, 1, true);
    invitation.addresses = vec!["/ip4/203.0.113.1/tcp/7401".into()];
    let member = Member::join(&invitation);
    let chain = member.trust.chain();
    let issuer = old.issuer.statement().expect("an issuer's").clone();
    let succession = Succession::new(&old.root, &new.root, (1, 2), [issuer]).expect("one");
    let roots = Roots::of(old.root(), [succession.clone()]).expect("in a row");
    let shown = roots.show(&Chain::decode(&chain).expect("a chain"));
    let issuer = old.issuer.under(new.root(), roots.renewed(&old.issuer.chain));
    let mut later = Operator { root: new.root.clone(), issuer }.invite(Rights::ALL, 1, true);
    later.roots = vec![succession.clone()];
    let shut_out = Revocation::new(member.key().id(), 1, (&old.root, &Chain::default()));
    let passphrase = Passphrase::new("correct horse battery".into()).expect("long enough");
    let sealed = SealedRoot::seal(&old.root, &passphrase).expect("memory");
    vec![
        ("chain", again::<Chain>, chain.to_vec()),
        ("revocation", again::<Revocation>, encode(&shut_out).to_vec()),
        ("succession", again::<Succession>, encode(&succession).to_vec()),
        ("shown", shown_again, shown.to_vec()),
        ("sealed-root", again::<SealedRoot>, encode(&sealed).to_vec()),
        ("issuer", again::<Issuer>, encode(&old.issuer).to_vec()),
        ("invitation", invitation_again, invitation.to_string().into_bytes()),
        ("invitation-after-rotation", invitation_again, later.to_string().into_bytes()),
    ]
}

#[test]
fn what_a_release_has_written_reads_as_the_same() {
    let mut frozen = fs::read_to_string(FILE).expect("the file");
    let mut added = false;
    for (name, again, now) in all() {
        assert_eq!(again(&now).expect(name), now, "{name}: what is written now");
        let line = frozen.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        let Some(line) = line else {
            assert!(std::env::var_os("FREEZE").is_some(), "{name} has no line: run with FREEZE=1");
            frozen += &format!("{name} {}\n", HEXLOWER.encode(&now));
            added = true;
            continue;
        };
        let bytes = HEXLOWER.decode(line.as_bytes()).expect("hexadecimal digits");
        assert_eq!(again(&bytes).expect(name), bytes, "{name}: what was written before");
    }
    if added {
        fs::write(FILE, frozen).expect("room for it");
    }
}
