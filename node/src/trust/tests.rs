//! Chains that must not hold, keys that must not open, entries that must not count.

use std::{collections::BTreeSet, path::Path, sync::OnceLock};

use carbonmesh_protocol::{
    advert::Roles,
    rights::{PhaseGrant, Rights},
};
use carbonmesh_storage::Files;
use libp2p::identity::{Keypair, ed25519};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{
    invitation::InvitationError, revocation::RevocationError, succession::SuccessionError, *,
};

pub(crate) const WORKER: Roles = Roles { worker: true, replica: false, gateway: false };

const HOUR: u64 = 3600;

/// Who has the keys of a cluster.
pub(crate) struct Operator {
    pub(crate) root: ed25519::Keypair,
    pub(crate) issuer: Issuer,
}

impl Operator {
    pub(crate) fn new() -> Self {
        let root = ed25519::Keypair::generate();
        let issuer = Self::issuer_of(&root);
        Self { root, issuer }
    }

    pub(crate) fn issuer_of(root: &ed25519::Keypair) -> Issuer {
        let issuer = Issuer::new(PublicKey::of(root), (root, &Chain::default()), |subject| {
            statement(subject, Rights::ALL, 2, 20_000 * HOUR)
        });
        issuer.expect("an issuer")
    }

    pub(crate) fn root(&self) -> PublicKey {
        PublicKey::of(&self.root)
    }

    pub(crate) fn invite(&self, rights: Rights, hours: u64, renews: bool) -> Invitation {
        let by = (&self.issuer.keypair().expect("its key"), &self.issuer.chain);
        let issuer = Issuer::new(self.root(), by, |key| statement(key, rights, 1, hours * HOUR));
        Invitation {
            issuer: issuer.expect("an invitation"),
            addresses: vec![],
            renews,
            roots: vec![],
        }
    }
}

/// A member in a folder of its own.
pub(crate) struct Member {
    pub(crate) folder: TempDir,
    pub(crate) keypair: Keypair,
    pub(crate) trust: Trust,
}

impl Member {
    pub(crate) fn join(invitation: &Invitation) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let keypair = Keypair::generate_ed25519();
        let trust = open(folder.path(), &keypair, Some(invitation)).expect("a member");
        Self { folder, keypair, trust }
    }

    pub(crate) fn key(&self) -> PublicKey {
        key_of(&self.keypair)
    }
}

fn open(
    folder: &Path,
    keypair: &Keypair,
    invitation: Option<&Invitation>,
) -> Result<Trust, TrustError> {
    Trust::open(folder, &Files::default(), keypair, invitation)
        .map(|trust| trust.expect("certificates"))
}

pub(crate) fn key_of(keypair: &Keypair) -> PublicKey {
    PublicKey::of(&keypair.clone().try_into_ed25519().expect("ed25519"))
}

pub(crate) fn statement(subject: PublicKey, rights: Rights, issues: u8, lasts_s: u64) -> Statement {
    let now_s = now_s();
    let (not_before_s, expires_s) = (now_s - HOUR, now_s + lasts_s);
    Statement { subject, rights, not_before_s, expires_s, issues, only_for: None }
}

fn worker(phases: &[&str]) -> Rights {
    let phases = phases.iter().map(|name| name.parse::<PhaseGrant>().expect("a name"));
    Rights { roles: WORKER, phases: Some(phases.collect()) }
}

/// A chain of three, its root, its keys and who holds it.
struct Three {
    root: PublicKey,
    issuer: ed25519::Keypair,
    invited: ed25519::Keypair,
    node: ed25519::Keypair,
    chains: [Chain; 3],
}

fn three() -> &'static Three {
    static THREE: OnceLock<Three> = OnceLock::new();
    THREE.get_or_init(|| {
        let [root, issuer, invited, node] = [(); 4].map(|()| ed25519::Keypair::generate());
        let key = PublicKey::of;
        let extend = |chain: &Chain, by: &ed25519::Keypair, statement| {
            chain.extend(by, statement).expect("a certificate")
        };
        let first =
            extend(&Chain::default(), &root, statement(key(&issuer), Rights::ALL, 2, 9 * HOUR));
        let second =
            extend(&first, &issuer, statement(key(&invited), worker(&["a", "b"]), 1, 5 * HOUR));
        let third = extend(&second, &invited, statement(key(&node), worker(&["a"]), 0, HOUR));
        Three { root: key(&root), issuer, invited, node, chains: [first, second, third] }
    })
}

#[test]
fn a_chain_of_three_holds_and_is_short() {
    let Three { root, node, chains: [_, _, chain], .. } = three();
    let bytes = chain.encode();
    assert!(bytes.len() < MAX_CHAIN_BYTES, "{} bytes", bytes.len());
    let read = Chain::decode(&bytes).unwrap();
    let leaf = read.verify_node(*root, now_s(), PublicKey::of(node)).unwrap();
    assert_eq!(leaf.rights, worker(&["a"]));
    println!("a chain of three has {} bytes", bytes.len());
}

#[test]
fn each_way_to_fail_has_its_error() {
    let Three { root, issuer, invited, node, chains: [first, second, third] } = three();
    let (now, key) = (now_s(), PublicKey::of(node));
    let own = statement(key, worker(&["a"]), 0, HOUR);
    let check = |chain: &Chain| chain.verify_node(*root, now, key).cloned();
    let by_invited = |own: Statement| check(&second.extend_unchecked(invited, own));
    let other = ed25519::Keypair::generate();

    assert_eq!(check(&Chain::default()), Err(ChainError::Empty));
    let stranger = Chain::default().extend_unchecked(&other, own.clone());
    assert_eq!(check(&stranger), Err(ChainError::OtherRoot));
    assert_eq!(check(&second.extend_unchecked(&other, own.clone())), Err(ChainError::Forged(3)));
    let wide = Statement { rights: worker(&["a", "c"]), ..own.clone() };
    assert_eq!(by_invited(wide), Err(ChainError::Wider(3)));
    let replica = Rights { roles: Roles { replica: true, ..WORKER }, ..worker(&["a"]) };
    assert_eq!(by_invited(Statement { rights: replica, ..own.clone() }), Err(ChainError::Wider(3)));
    let long = Statement { expires_s: now + 6 * HOUR, ..own.clone() };
    assert_eq!(by_invited(long), Err(ChainError::Outlives(3)));
    let early = Statement { not_before_s: now - 2 * HOUR, ..own.clone() };
    assert_eq!(by_invited(early), Err(ChainError::Outlives(3)));
    let issuing = Statement { issues: 1, ..own.clone() };
    assert_eq!(by_invited(issuing), Err(ChainError::NotIssuer(3)));
    let by_node = third.extend_unchecked(node, own.clone());
    assert_eq!(check(&by_node), Err(ChainError::TooLong(4)));
    let leaf = first.extend_unchecked(issuer, own.clone()).extend_unchecked(node, own.clone());
    assert_eq!(check(&leaf), Err(ChainError::NotIssuer(3)), "a node issues nothing");
    let over = Statement { expires_s: now - 10, ..own.clone() };
    let expired = by_invited(over);
    assert!(matches!(expired, Err(ChainError::Expired { link: 3, .. })), "{expired:?}");
    let later = Statement { not_before_s: now + 100, ..own.clone() };
    let not_yet = by_invited(later);
    assert!(matches!(not_yet, Err(ChainError::NotYet { link: 3, .. })), "{not_yet:?}");
    let theirs = Statement { subject: PublicKey::of(&other), ..own.clone() };
    assert_eq!(by_invited(theirs), Err(ChainError::WrongKey), "a replayed certificate");
    let of_invited = second.verify_node(*root, now, PublicKey::of(invited));
    assert_eq!(of_invited, Err(ChainError::NotANode));
    let bound = statement(PublicKey::of(invited), worker(&["a"]), 1, HOUR);
    let bound = Statement { only_for: Some(PublicKey::of(&other).id()), ..bound };
    let bound = first.extend(issuer, bound).unwrap().extend_unchecked(invited, own.clone());
    assert_eq!(check(&bound), Err(ChainError::NotForIt(3)));
    let many: Vec<String> = (0..40).map(|number| format!("phase-{number:020}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let many = Statement { rights: worker(&many), ..own };
    assert!(matches!(first.extend(issuer, many), Err(ChainError::TooLarge(_))));
}

#[test]
fn an_expired_chain_of_somebody_else_says_nothing_about_time() {
    let Three { root, invited, chains: [_, second, _], .. } = three();
    let theirs = PublicKey::of(&ed25519::Keypair::generate());
    let over = Statement { expires_s: now_s() - 1, ..statement(theirs, worker(&["a"]), 0, HOUR) };
    let chain = second.extend_unchecked(invited, over);
    let another = PublicKey::of(&ed25519::Keypair::generate());
    assert_eq!(chain.verify_node(*root, now_s(), another), Err(ChainError::WrongKey));
}

fn some_rights() -> impl Strategy<Value = Rights> {
    let phases = prop::option::of(prop::collection::btree_set("[a-d]", 0..4));
    (any::<[bool; 3]>(), phases).prop_map(|([worker, replica, gateway], phases)| Rights {
        roles: Roles { worker, replica, gateway },
        phases: phases.map(|names| {
            names
                .iter()
                .map(|name| name.parse::<PhaseGrant>().expect("a name"))
                .collect::<BTreeSet<_>>()
        }),
    })
}

proptest! {
    #[test]
    fn a_flipped_bit_is_refused(at in 0_usize..8 * 1024) {
        let Three { root, node, chains: [_, _, chain], .. } = three();
        let mut bytes = chain.encode().to_vec();
        let at = at % (8 * bytes.len());
        bytes[at / 8] ^= 1 << (at % 8);
        let held = Chain::decode(&bytes)
            .and_then(|chain| chain.verify_node(*root, now_s(), PublicKey::of(node)).cloned());
        prop_assert!(held.is_err(), "bit {at}");
    }

    #[test]
    fn a_bit_flipped_below_the_checksum_is_refused(at in 0_usize..8 * 1024) {
        // Whoever forges computes the checksum anew.
        let Three { root, node, chains: [_, _, chain], .. } = three();
        let mut bytes = chain.encode().to_vec();
        let body = carbonmesh_protocol::codec::ENVELOPE_BYTES;
        let at = at % (8 * (bytes.len() - body));
        bytes[body + at / 8] ^= 1 << (at % 8);
        let sealed = reseal(&bytes);
        let held = Chain::decode(&sealed)
            .and_then(|chain| chain.verify_node(*root, now_s(), PublicKey::of(node)).cloned());
        prop_assert!(held.is_err(), "bit {at}");
    }

    #[test]
    fn no_certificate_grants_more_than_its_signer_had(
        parent in some_rights(),
        child in some_rights(),
        (starts, ends) in (-9000_i64..9000, -9000_i64..9000),
        issues in 0_u8..4,
    ) {
        let Three { issuer, chains: [first, ..], .. } = three();
        let [middle, leaf] = [(); 2].map(|()| ed25519::Keypair::generate());
        let middle_says = statement(PublicKey::of(&middle), parent.clone(), 1, HOUR);
        let chain = first.extend(issuer, middle_says.clone()).unwrap();
        let moved = |moment: u64, by: i64| moment.saturating_add_signed(by);
        let says = Statement {
            issues,
            not_before_s: moved(middle_says.not_before_s, starts),
            expires_s: moved(middle_says.expires_s, ends),
            ..statement(PublicKey::of(&leaf), child.clone(), 0, HOUR)
        };
        let within = parent.cover(&child)
            && issues == 0
            && starts >= 0
            && ends <= 0
            && says.not_before_s < says.expires_s;
        let unchecked = chain.extend_unchecked(&middle, says.clone());
        prop_assert_eq!(unchecked.verify_genuine(three().root).is_ok(), within);
        prop_assert_eq!(chain.extend(&middle, says).is_ok(), within);
    }

    #[test]
    fn no_bytes_bring_a_reader_down(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Chain::decode(&bytes);
        let _ = Chain::decode(&reseal(&[&[0; 14], &bytes[..]].concat()));
    }
}

/// The same body in an envelope that fits it.
fn reseal(bytes: &[u8]) -> Vec<u8> {
    let body = &bytes[14..];
    let mut out = three().chains[0].encode()[..6].to_vec();
    out.extend((body.len() as u32).to_le_bytes());
    let crc = crc32c(&[&out[..], body].concat());
    out.extend(crc.to_le_bytes());
    out.extend(body);
    out
}

/// Castagnoli's, bit by bit: an oracle for the codec's.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[test]
fn resealing_is_what_the_codec_does() {
    let bytes = three().chains[2].encode();
    assert_eq!(reseal(&bytes), bytes);
}

#[test]
fn a_root_key_opens_with_its_passphrase_alone() {
    let root = ed25519::Keypair::generate();
    let passphrase = |text: &str| Passphrase::new(text.to_owned());
    let sealed = SealedRoot::seal(&root, &passphrase("correct horse battery").unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.key");
    sealed.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let secret = root.secret();
    let holds = |it: &[u8]| bytes.windows(it.len()).any(|window| window == it);
    assert!(!holds(secret.as_ref()), "the secret lies open");
    let read = SealedRoot::read(&path).unwrap();
    let opened = read.open(&passphrase("correct horse battery\n").unwrap()).unwrap();
    assert_eq!(opened.public(), root.public());
    let wrong = read.open(&passphrase("correct horse batterz").unwrap());
    assert!(matches!(wrong, Err(VaultError::Passphrase)));
    assert!(matches!(passphrase("short"), Err(VaultError::Short(5))));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&path, mode).unwrap();
    assert!(matches!(SealedRoot::read(&path), Err(VaultError::Exposed { .. })));
}

#[test]
fn an_invitation_is_one_short_text() {
    let mut invitation = Operator::new().invite(Rights { roles: WORKER, phases: None }, 1, false);
    invitation.addresses = vec!["/ip4/10.0.0.7/tcp/7401".to_owned()];
    let text = invitation.to_string();
    assert!(text.len() < 600, "{} characters", text.len());
    let read: Invitation = format!(" {text}\n").parse().unwrap();
    assert_eq!(read.addresses, invitation.addresses);
    assert_eq!(read.issuer.chain, invitation.issuer.chain);
    for wrong in ["", "cm1", &text[1..], &text[..text.len() - 4], &text.replace("cm1", "cm2")] {
        assert_eq!(wrong.parse::<Invitation>().unwrap_err(), InvitationError::NotOne, "{wrong}");
    }
}

#[test]
fn a_node_joins_once_and_needs_no_invitation_after_that() {
    let operator = Operator::new();
    let invitation = operator.invite(Rights { roles: WORKER, phases: None }, 1, false);
    let Member { folder, keypair, trust } = Member::join(&invitation);
    assert_eq!(trust.rights().roles, WORKER);
    let again = open(folder.path(), &keypair, None).unwrap();
    assert_eq!(again.chain(), trust.chain());
    let also = open(folder.path(), &keypair, Some(&invitation)).unwrap();
    assert_eq!(also.chain(), trust.chain(), "an invitation that is not needed changes nothing");
    let elsewhere = Operator::new().invite(Rights::ALL, 1, false);
    let error = open(folder.path(), &keypair, Some(&elsewhere)).unwrap_err();
    assert!(matches!(error, TrustError::OtherCluster { .. }), "{error}");
    let another = Keypair::generate_ed25519();
    let error = open(folder.path(), &another, None).unwrap_err();
    assert!(error.to_string().contains("another key"), "{error}");
}

#[test]
fn an_invitation_for_one_node_lets_no_other_in() {
    let operator = Operator::new();
    let keypair = Keypair::generate_ed25519();
    let by = (&operator.issuer.keypair().unwrap(), &operator.issuer.chain);
    let only_for = Some(key_of(&keypair).id());
    let issuer = Issuer::new(operator.root(), by, |key| Statement {
        only_for,
        ..statement(key, Rights::ALL, 1, HOUR)
    });
    let issuer = issuer.unwrap();
    let invitation = Invitation { issuer, addresses: vec![], renews: false, roots: vec![] };
    let folder = tempfile::tempdir().unwrap();
    let other = Keypair::generate_ed25519();
    let error = open(folder.path(), &other, Some(&invitation)).unwrap_err();
    assert!(error.to_string().contains("one node only"), "{error}");
    open(folder.path(), &keypair, Some(&invitation)).unwrap();
}

#[test]
fn members_admit_each_other_and_nobody_else() {
    let operator = Operator::new();
    let one = Member::join(&operator.invite(Rights::ALL, 1, false));
    let two = Member::join(&operator.invite(Rights { roles: WORKER, phases: None }, 1, false));
    one.trust.admit(two.key(), &two.trust.chain()).unwrap();
    assert_eq!(one.trust.rights_of(two.key().id()).unwrap().roles, WORKER);
    let stranger = Member::join(&Operator::new().invite(Rights::ALL, 1, false));
    let denied = one.trust.admit(stranger.key(), &stranger.trust.chain());
    assert_eq!(denied, Err(Denied::Chain(ChainError::OtherRoot)));
    let replayed = one.trust.admit(stranger.key(), &two.trust.chain());
    assert_eq!(replayed, Err(Denied::Chain(ChainError::WrongKey)));
    assert!(one.trust.rights_of(stranger.key().id()).is_none());
}

#[test]
fn whoever_was_shut_out_stays_out() {
    let operator = Operator::new();
    let one = Member::join(&operator.invite(Rights::ALL, 1, false));
    let two = Member::join(&operator.invite(Rights::ALL, 1, false));
    one.trust.admit(two.key(), &two.trust.chain()).unwrap();
    let issuer = operator.issuer.keypair().unwrap();
    let node = two.key().id();
    let entry = Revocation::new(node, now_s(), (&issuer, &operator.issuer.chain));
    assert_eq!(one.trust.learn(vec![entry.clone()]), Ok(1));
    assert_eq!(one.trust.learn(vec![entry.clone()]), Ok(0));
    assert_eq!(one.trust.unfit(node), Some(Denied::Revoked(node)));
    assert!(one.trust.expelled().contains(&node));
    let denied = one.trust.admit(two.key(), &two.trust.chain());
    assert_eq!(denied, Err(Denied::Revoked(node)));
    // It is still known after a restart, and the node itself hears of it.
    let again = open(one.folder.path(), &one.keypair, None).unwrap();
    assert_eq!(again.expelled(), [node]);
    two.trust.learn(vec![entry]).unwrap();
    let error = open(two.folder.path(), &two.keypair, None).unwrap_err();
    assert!(matches!(error, TrustError::Revoked(_)), "{error}");
}

#[test]
fn only_those_above_shut_out() {
    let operator = Operator::new();
    let renewer = operator.invite(Rights::ALL, 1, true);
    let member = Member::join(&renewer);
    let other = Member::join(&operator.invite(Rights::ALL, 1, false));
    let list = || super::revocation::Revocations::new(Roots::new(operator.root()));
    let issuer = operator.issuer.keypair().unwrap();
    let issuer_key = PublicKey::of(&issuer).id();
    let chain = |member: &Member| Chain::decode(&member.trust.chain()).unwrap();

    // A node's key shuts nobody out, nor does a stranger's.
    let node = member.keypair.clone().try_into_ed25519().unwrap();
    let by_node = Revocation::new(other.key().id(), 1, (&node, &chain(&member)));
    assert_eq!(list().learn(by_node), Err(RevocationError::NotIssuer));
    let forged = Revocation::new(other.key().id(), 1, (&node, &operator.issuer.chain));
    assert_eq!(list().learn(forged), Err(RevocationError::Forged));

    // Nor does an invitation's, though its node may renew certificates.
    let key = renewer.issuer.keypair().unwrap();
    let by_invitation = Revocation::new(other.key().id(), 1, (&key, &renewer.issuer.chain));
    assert_eq!(list().learn(by_invitation), Err(RevocationError::NotIssuer));
    // An issuer shuts out nodes, and not itself or others of its rank.
    let mut known = list();
    known.learn(Revocation::new(other.key().id(), 1, (&issuer, &operator.issuer.chain))).unwrap();
    known.learn(Revocation::new(issuer_key, 1, (&issuer, &operator.issuer.chain))).unwrap();
    assert_eq!(known.find(&chain(&other)), Some(other.key().id()));
    assert_eq!(known.find(&chain(&member)), None, "an issuer cannot be shut out from its side");

    // The root shuts an issuer out, with all that it let in and all that it said.
    known.learn(Revocation::new(issuer_key, 1, (&operator.root, &Chain::default()))).unwrap();
    assert_eq!(known.find(&chain(&member)), Some(issuer_key));
    let second =
        Operator { issuer: Operator::issuer_of(&operator.root), root: operator.root.clone() };
    let newcomer = Member::join(&second.invite(Rights::ALL, 1, false));
    let by_first = Revocation::new(newcomer.key().id(), 1, (&issuer, &operator.issuer.chain));
    known.learn(by_first).unwrap();
    assert_eq!(known.find(&chain(&newcomer)), None, "what a stolen issuer says does not count");
    // It does not stand in the way of what the second says either.
    let by_second = second.issuer.keypair().unwrap();
    let by_second = Revocation::new(newcomer.key().id(), 1, (&by_second, &second.issuer.chain));
    assert_eq!(known.learn(by_second), Ok(true));
    assert_eq!(known.find(&chain(&newcomer)), Some(newcomer.key().id()));
}

#[test]
fn a_certificate_is_renewed_by_a_member_that_may() {
    let operator = Operator::new();
    let renewer = Member::join(&operator.invite(Rights::ALL, 24 * 365, true));
    let plain = Member::join(&operator.invite(Rights { roles: WORKER, phases: None }, 1, false));
    assert!(renewer.trust.is_issuer() && !plain.trust.is_issuer());
    assert!(plain.trust.wants_renewal(), "an hour is little");
    assert_eq!(renewer.trust.renew(plain.key().id()), None, "it was never here");
    renewer.trust.admit(plain.key(), &plain.trust.chain()).unwrap();
    let renewed = renewer.trust.renew(plain.key().id()).unwrap();
    assert_eq!(plain.trust.adopt(&renewed), Ok(true));
    assert_eq!(plain.trust.adopt(&renewed), Ok(false), "it is no better a second time");
    assert_eq!(plain.trust.rights().roles, WORKER, "it grants what was granted before");
    let leaf = plain.trust.membership().chain.leaf().cloned().unwrap();
    assert!(leaf.left(now_s()) > Duration::from_secs(30 * 24 * HOUR));
    let again = open(plain.folder.path(), &plain.keypair, None).unwrap();
    assert_eq!(*again.chain(), *renewed);
    // Of somebody else's it makes nothing.
    let other = Member::join(&operator.invite(Rights::ALL, 1, false));
    assert_eq!(other.trust.adopt(&renewed), Err(Denied::Chain(ChainError::WrongKey)));
}

#[test]
fn a_second_issuer_works_beside_the_first() {
    let first = Operator::new();
    let second = Operator { issuer: Operator::issuer_of(&first.root), root: first.root.clone() };
    let old = Member::join(&first.invite(Rights::ALL, 1, false));
    let new = Member::join(&second.invite(Rights::ALL, 1, false));
    old.trust.admit(new.key(), &new.trust.chain()).unwrap();
    new.trust.admit(old.key(), &old.trust.chain()).unwrap();
    // The old issuer goes: who was let in by the new one stays.
    let key = PublicKey::of(&first.issuer.keypair().unwrap()).id();
    let entry = Revocation::new(key, now_s(), (&first.root, &Chain::default()));
    new.trust.learn(vec![entry]).unwrap();
    assert!(new.trust.unfit(old.key().id()).is_some());
    let third = Member::join(&second.invite(Rights::ALL, 1, false));
    new.trust.admit(third.key(), &third.trust.chain()).unwrap();
}

/// An operator whose root follows another's, and takes his issuer over.
fn follow(old: &Operator, ends_in_s: u64) -> (Operator, Succession) {
    let root = ed25519::Keypair::generate();
    let statement = old.issuer.statement().unwrap().clone();
    let times = (now_s(), now_s() + ends_in_s);
    let one = Succession::new(&old.root, &root, times, [statement]).unwrap();
    let roots = Roots::of(old.root(), [one.clone()]).unwrap();
    let issuer = old.issuer.under(PublicKey::of(&root), roots.renewed(&old.issuer.chain));
    (Operator { root, issuer }, one)
}

/// An invitation as it is under a root that has followed others.
fn with_roots(invitation: Invitation, roots: &[&Succession]) -> Invitation {
    let roots = roots.iter().copied().cloned().collect();
    Invitation { roots, ..invitation }
}

/// The root that a member's certificates begin with.
fn root_of(member: &Member) -> PublicKey {
    let membership = member.trust.membership();
    let roots = Roots::of(membership.root, membership.later.clone()).unwrap();
    roots.signer_of(&membership.chain)
}

#[test]
fn another_root_takes_over_and_all_go_on() {
    let first = Operator::new();
    let [told, hears, away] = [(); 3].map(|()| Member::join(&first.invite(Rights::ALL, 1, false)));
    let (second, one) = follow(&first, HOUR);
    assert_eq!(told.trust.succeed(one.clone()), Ok(true));
    assert_eq!(told.trust.succeed(one.clone()), Ok(false));
    assert_eq!(root_of(&told), second.root());
    assert_eq!(told.trust.root(), first.root(), "the cluster goes by its first root");
    // Whoever has not heard yet learns it from what is shown at the gate, and takes it over for itself.
    hears.trust.admit(told.key(), &told.trust.chain()).unwrap();
    assert_eq!(root_of(&hears), second.root());
    told.trust.admit(hears.key(), &hears.trust.chain()).unwrap();
    // A new node comes under the new root, another by an invitation of before; all meet.
    let token = with_roots(second.invite(Rights::ALL, 1, false), &[&one]).to_string();
    let new = Member::join(&token.parse().unwrap());
    assert_eq!((new.trust.cluster(), root_of(&new)), (first.root().cluster(), second.root()));
    let late = Member::join(&first.invite(Rights::ALL, 1, false));
    for (one, other) in [(&new, &hears), (&hears, &new), (&late, &new), (&new, &late)] {
        one.trust.admit(other.key(), &other.trust.chain()).unwrap();
    }
    assert_eq!(root_of(&late), second.root());
    // Who was away may meet one that has come since.
    away.trust.admit(new.key(), &new.trust.chain()).unwrap();
    new.trust.admit(away.key(), &away.trust.chain()).unwrap();
    // It is all on disk.
    for member in [&told, &hears, &new, &late] {
        let again = open(member.folder.path(), &member.keypair, None).unwrap();
        assert_eq!(again.chain(), member.trust.chain());
    }
}

#[test]
fn what_the_old_root_alone_has_signed_ends_with_it() {
    let first = Operator::new();
    let other = Operator { issuer: Operator::issuer_of(&first.root), root: first.root.clone() };
    let [kept, lost] = [&first, &other].map(|by| Member::join(&by.invite(Rights::ALL, 1, false)));
    let here = Member::join(&first.invite(Rights::ALL, 1, false));
    here.trust.admit(kept.key(), &kept.trust.chain()).unwrap();
    here.trust.admit(lost.key(), &lost.trust.chain()).unwrap();
    let (second, one) = follow(&first, 0);
    assert_eq!(here.trust.succeed(one.clone()), Ok(true));
    let ended = |denied: Option<Denied>| {
        matches!(denied, Some(Denied::Chain(ChainError::RootEnded { .. })))
    };
    assert!(ended(here.trust.unfit(lost.key().id())), "it is cut off");
    assert_eq!(here.trust.unfit(kept.key().id()), None, "its issuer was taken over");
    assert!(ended(here.trust.admit(lost.key(), &lost.trust.chain()).err()));
    here.trust.admit(kept.key(), &kept.trust.chain()).unwrap();
    // Whoever has the old root's key lets nobody in with it any more.
    let thief = Operator { issuer: Operator::issuer_of(&first.root), root: first.root.clone() };
    let made = Member::join(&thief.invite(Rights::ALL, 1, false));
    assert!(ended(here.trust.admit(made.key(), &made.trust.chain()).err()));
    // An invitation of before, by the issuer that was taken over, is good until it expires.
    let late = Member::join(&first.invite(Rights::ALL, 1, false));
    late.trust.admit(here.key(), &here.trust.chain()).unwrap();
    here.trust.admit(late.key(), &late.trust.chain()).unwrap();
    // The one that was cut off starts again, and is told why it cannot.
    lost.trust.succeed(one).unwrap();
    let error = open(lost.folder.path(), &lost.keypair, None).unwrap_err();
    assert!(matches!(error, TrustError::Certificate(ChainError::RootEnded { .. })), "{error}");
    // With an invitation under the new root it is in again.
    let told = &here.trust.membership().later[0];
    let token = with_roots(second.invite(Rights::ALL, 1, false), &[told]);
    let again = open(lost.folder.path(), &lost.keypair, Some(&token)).unwrap();
    here.trust.admit(lost.key(), &again.chain()).unwrap();
}

#[test]
fn roots_follow_each_other_in_one_row() {
    let first = Operator::new();
    let (second, one) = follow(&first, HOUR);
    let (third, two) = follow(&second, HOUR);
    let (_, rival) = follow(&first, HOUR);
    let (_, foreign) = follow(&Operator::new(), HOUR);
    let mut roots = Roots::new(first.root());
    assert_eq!(roots.learn(two.clone()), Err(SuccessionError::OutOfRow), "it is too early");
    assert_eq!(roots.learn(one.clone()), Ok(true));
    assert_eq!(roots.learn(rival), Err(SuccessionError::OutOfRow), "one has followed already");
    assert_eq!(roots.learn(foreign), Err(SuccessionError::OutOfRow));
    assert_eq!(roots.learn(two.clone()), Ok(true));
    assert_eq!(roots.learn(one.clone()), Ok(false));
    assert_eq!(roots.last(), third.root());
    // A member of the first days goes on under the third.
    let member = Member::join(&first.invite(Rights::ALL, 1, false));
    let chain = member.trust.membership().chain;
    assert_eq!(roots.rank(&roots.renewed(&chain)), 2);
    // Back to where it came from is no way.
    let back = Succession::new(&third.root, &first.root, (1, 2), []).unwrap();
    assert_eq!(roots.learn(back), Err(SuccessionError::Twice));
    let to_itself = Succession::new(&third.root, &third.root, (1, 2), []);
    assert_eq!(to_itself, Err(SuccessionError::Twice));
    let backwards = Succession::new(&third.root, &Operator::new().root, (2, 1), []);
    assert_eq!(backwards, Err(SuccessionError::Times));
    let many = (0..5).map(|_| first.issuer.statement().unwrap().clone());
    let many = Succession::new(&third.root, &Operator::new().root, (1, 2), many);
    assert!(matches!(many, Err(SuccessionError::TooLarge { issuers: 5, .. })), "{many:?}");
    // As many as there may be pass through the gate, together with the longest chain.
    let mut last = third;
    for _ in 2..super::succession::MAX_SUCCESSIONS {
        let (next, one) = follow(&last, HOUR);
        assert_eq!(roots.learn(one), Ok(true));
        last = next;
    }
    let (_, beyond) = follow(&last, HOUR);
    assert_eq!(roots.learn(beyond), Err(SuccessionError::Full));
    let shown = roots.show(&chain);
    assert!(shown.len() <= MAX_SHOWN_BYTES, "{}", shown.len());
    let (read, told) = Roots::read_shown(&shown).unwrap();
    assert_eq!((&read, told.as_slice()), (&chain, roots.successions()));
}

#[test]
fn whom_either_root_shut_out_stays_out() {
    let first = Operator::new();
    let here = Member::join(&first.invite(Rights::ALL, 1, false));
    let [early, late] = [(); 2].map(|()| Member::join(&first.invite(Rights::ALL, 1, false)));
    let out = Revocation::new(early.key().id(), 1, (&first.root, &Chain::default()));
    here.trust.learn(vec![out]).unwrap();
    let (second, one) = follow(&first, 0);
    here.trust.succeed(one.clone()).unwrap();
    let issuer = second.issuer.keypair().unwrap();
    let out = Revocation::new(late.key().id(), 1, (&issuer, &second.issuer.chain));
    assert_eq!(here.trust.learn(vec![out.clone(), out]), Ok(1));
    for member in [&early, &late] {
        let denied = here.trust.admit(member.key(), &member.trust.chain());
        assert_eq!(denied, Err(Denied::Revoked(member.key().id())));
    }
    let root = Revocation::new(here.key().id(), 1, (&second.root, &Chain::default()));
    let again = open(here.folder.path(), &here.keypair, None).unwrap();
    assert_eq!(again.revocations().len(), 2);
    assert_eq!(again.learn(vec![root.clone()]), Ok(1));
    assert_eq!(again.learn(vec![root]), Ok(0));
    let stranger = Revocation::new(here.key().id(), 2, (&Operator::new().root, &Chain::default()));
    assert_eq!(again.learn(vec![stranger]), Err(RevocationError::Forged));
    let error = open(here.folder.path(), &here.keypair, None).unwrap_err();
    assert!(matches!(error, TrustError::Revoked(_)), "{error}");
}

#[test]
fn an_invitation_without_what_led_to_its_root_is_none() {
    let first = Operator::new();
    let (second, one) = follow(&first, HOUR);
    let (_, foreign) = follow(&Operator::new(), HOUR);
    let invitation = second.invite(Rights::ALL, 1, false);
    let good = with_roots(invitation.clone(), &[&one]);
    assert_eq!(good.to_string().parse::<Invitation>().unwrap().first_root(), first.root());
    for roots in [&[&foreign][..], &[&one, &foreign]] {
        let bad = with_roots(invitation.clone(), roots).to_string().parse::<Invitation>();
        assert_eq!(bad.unwrap_err(), InvitationError::NotOne);
    }
    // Those of before are written as they were.
    let plain = first.invite(Rights::ALL, 1, false);
    assert_eq!(plain.to_string().parse::<Invitation>().unwrap().to_string(), plain.to_string());
}
