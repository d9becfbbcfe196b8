//! `carbonmesh cluster`: the keys of a cluster, invitations into it, and who is shut out of it.
//!
//! Keys stay where this runs: nodes get certificates and signed entries, never a root's or an
//! operator's issuer's key.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder},
    io::{self, IsTerminal, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::{
    advert::Roles,
    codec,
    id::NodeId,
    name::Namespace,
    rights::{PhaseGrant, Rights},
};
use clap::Subcommand;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use jiff::Timestamp;
use libp2p::{PeerId, identity::ed25519};
use ratatui::crossterm::{
    event::{Event, KeyCode, KeyEventKind, KeyModifiers, read},
    terminal::{disable_raw_mode, enable_raw_mode},
};
use reqwest::Method;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, joined, values},
};
use crate::{
    document::{format_duration, parse_duration},
    http::{
        trust::{RevocationDoc, RevokedNowDoc, SucceededDoc, SuccessionDoc, TrustDoc},
        view::NodesDoc,
    },
    net::{is_loopback, node_id_of, parse_address},
    trust::{
        CLOCK_SKEW, Chain, Invitation, Issuer, Membership, NODE_LIFETIME, Passphrase, PublicKey,
        Revocation, Roots, SealedRoot, Statement, Succession, VaultError, now_s, write_private,
    },
};

const ROOT: &str = "root.key";
const ISSUER: &str = "issuer.key";
const FIRST: &str = "first-node.join";
const ROOTS: &str = "roots";

/// How long an issuer's certificate lasts: five years.
const ISSUER_LIFETIME: Duration = Duration::from_secs(5 * 365 * 24 * 3600);

/// The most addresses in an invitation that were not given by hand.
const ADDRESSES: usize = 4;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make the keys of a new cluster: its root's, an issuer's, and the first node's invitation
    Init(InitArgs),
    /// Make another issuer in a folder of its own; it works beside those that there are
    Issuer(IssuerArgs),
    /// Print an invitation: all that `carbonmesh up --join` needs on a new machine
    Invite(InviteArgs),
    /// Shut a node out, for good; or an invitation, or an issuer, with all that they let in
    Revoke(RevokeArgs),
    /// Make another root that takes over from the present one, while the cluster works
    RotateRoot(RotateArgs),
    /// Show who a node is in its cluster, until when, and who was shut out
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// A new folder for the keys
    dir: PathBuf,
    /// Read the root key's passphrase from this file instead of the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct IssuerArgs {
    /// A new folder for the issuer's key
    dir: PathBuf,
    /// The folder with the root's key
    #[arg(long, value_name = "DIR", env = "CARBONMESH_KEYS", default_value = ".")]
    keys: PathBuf,
    /// Read the root key's passphrase from this file instead of the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct InviteArgs {
    /// The folder with the issuer's key
    #[arg(long, value_name = "DIR", env = "CARBONMESH_KEYS", default_value = ".")]
    keys: PathBuf,
    /// What the node may do: worker, replica, gateway
    #[arg(long, value_name = "ROLE", value_delimiter = ',', required = true)]
    role: Vec<String>,
    /// Let it offer these phases only: NAME, NAMESPACE/NAME, or NAMESPACE/* for all of one
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    phase: Vec<PhaseGrant>,
    /// Let it work in these namespaces only; for workers
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "phase")]
    namespaces: Vec<Namespace>,
    /// How long it can be used, and how long what it gives lasts unless a member renews it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = parse_duration)]
    expires: Duration,
    /// Only for this node: its id (32 digits) or its libp2p peer id
    #[arg(long = "for", value_name = "NODE")]
    only_for: Option<String>,
    /// Where members may be found [default: what the node at --api knows]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    peer: Vec<String>,
    /// The node is to renew the certificates of others, until the invitation expires
    #[arg(long)]
    renews: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// A node's name or id, or the id of an invitation or an issuer
    key: String,
    /// The folder with the issuer's key
    #[arg(long, value_name = "DIR", env = "CARBONMESH_KEYS", default_value = ".")]
    keys: PathBuf,
    /// Sign with the root's key: that alone shuts issuers out
    #[arg(long)]
    root: bool,
    /// Read the root key's passphrase from this file instead of the terminal
    #[arg(long, value_name = "FILE", requires = "root")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct RotateArgs {
    /// A new folder for the new root's keys; one that was made before is told to the node again
    dir: PathBuf,
    /// The folder with the present root's key and an issuer's
    #[arg(long, value_name = "DIR", env = "CARBONMESH_KEYS", default_value = ".")]
    keys: PathBuf,
    /// Take this issuer over too: the folder with its key
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    issuer: Vec<PathBuf>,
    /// How long the old root goes on to count beside the new one
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = parse_duration)]
    ends: Duration,
    /// Read the present root key's passphrase from this file instead of the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Read the new root key's passphrase from this file instead of the terminal
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    /// Read it from this data folder instead of asking the node
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Show instead whose key lies in this folder of an issuer
    #[arg(long, value_name = "DIR", conflicts_with = "data_dir")]
    keys: Option<PathBuf>,
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init(&args, out),
        Command::Issuer(args) => issuer(&args, out),
        Command::Invite(args) => invite(args, client, out).await,
        Command::Revoke(args) => revoke(&args, client, out).await,
        Command::RotateRoot(args) => rotate_root(&args, client, out).await,
        Command::Show(args) => show(&args, client, out).await,
    }
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::Usage(error.to_string())
}

fn init(args: &InitArgs, out: &Output) -> Result<(), Failure> {
    let root_path = args.dir.join(ROOT);
    if root_path.exists() {
        return Err(usage(format!(
            "{} is there already: a cluster has one root; take another folder for another cluster",
            root_path.display()
        )));
    }
    let passphrase = passphrase(args.passphrase_file.as_deref(), true)?;
    make_folder(&args.dir)?;
    let root = ed25519::Keypair::generate();
    let sealed = SealedRoot::seal(&root, &passphrase).map_err(usage)?;
    let issuer = new_issuer(&root)?;
    let first = first_invitation(&issuer, &Roots::new(issuer.root))?;
    // The root comes last: without it the folder can be used anew after an interruption.
    issuer.write(&args.dir.join(ISSUER)).map_err(usage)?;
    let first_path = args.dir.join(FIRST);
    write_private(&first_path, first.to_string().as_bytes()).map_err(usage)?;
    sealed.write(&root_path).map_err(usage)?;
    let (cluster, keys) = (sealed.public.cluster(), args.dir.display().to_string());
    let issuer = leaf_id(&issuer.chain);
    let document = json!({ "cluster": cluster, "keys": keys, "issuer": issuer });
    out.document(&document, || {
        format!(
            "cluster {cluster}\n\n\
             {keys}/{ROOT}         signs issuers; keep it offline, with its passphrase elsewhere\n\
             {keys}/{ISSUER}       signs invitations; keep it on the operator's machine\n\
             {keys}/{FIRST}  lets the first node in, which renews the others' certificates\n\n\
             start the first node:  carbonmesh up --join-file {keys}/{FIRST}\n\
             then remove {FIRST}, and let others in:\n  \
             carbonmesh cluster invite --keys {keys} --role worker --expires 1h\n"
        )
    })
}

fn issuer(args: &IssuerArgs, out: &Output) -> Result<(), Failure> {
    let path = args.dir.join(ISSUER);
    if path.exists() {
        return Err(usage(format!("{} is there already: take a new folder", path.display())));
    }
    let root = open_root(&args.keys, args.passphrase_file.as_deref())?;
    let issuer = new_issuer(&root)?;
    let later = Roots::read_row(&args.keys.join(ROOTS)).map_err(usage)?;
    let roots = roots_of(issuer.root, later)?;
    let first = first_invitation(&issuer, &roots)?;
    make_folder(&args.dir)?;
    write_private(&args.dir.join(FIRST), first.to_string().as_bytes()).map_err(usage)?;
    if !roots.successions().is_empty() {
        roots.write(&args.dir.join(ROOTS)).map_err(usage)?;
    }
    issuer.write(&path).map_err(usage)?;
    let (keys, id) = (args.dir.display().to_string(), leaf_id(&issuer.chain));
    out.document(&json!({ "keys": keys, "issuer": id }), || {
        format!(
            "issuer {id}\n\n\
             invite with it:  carbonmesh cluster invite --keys {keys} --role worker\n\
             let a node renew certificates by it:  stop that node, then start it with\n  \
             carbonmesh up --join-file {keys}/{FIRST}\n\
             once all certificates are renewed, the old one can be shut out:\n  \
             carbonmesh cluster revoke OLD-ISSUER-ID --root --keys {}\n",
            args.keys.display()
        )
    })
}

async fn invite(args: InviteArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let issuer = Issuer::read(&args.keys.join(ISSUER)).map_err(usage)?;
    let own = issuer.statement().map_err(usage)?.clone();
    if !issuer.may_invite() {
        return Err(usage("this key renews certificates and invites nobody: take the issuer's"));
    }
    let most = if args.renews { own.left(now_s()) } else { NODE_LIFETIME };
    if args.expires.is_zero() || args.expires > most {
        let most = format_duration(Duration::from_secs(most.as_secs()));
        return Err(usage(format!("--expires: more than nothing and at most {most} is possible")));
    }
    let only_for = args.only_for.as_deref().map(node_of).transpose()?;
    let roles = roles(&args.role)?;
    if !args.namespaces.is_empty() && (roles.replica || roles.gateway) {
        return Err(usage(
            "--namespaces: replicas and gateways have jobs of all namespaces pass through them: say \
             --role worker, or leave it out",
        ));
    }
    let whole = args.namespaces.iter().cloned().map(PhaseGrant::All);
    let granted: BTreeSet<PhaseGrant> = args.phase.iter().cloned().chain(whole).collect();
    let rights = Rights { roles, phases: Some(granted).filter(|granted| !granted.is_empty()) };
    let addresses = addresses(&args.peer, client).await?;
    let keypair = issuer.keypair().map_err(usage)?;
    let invited = Issuer::new(issuer.root, (&keypair, &issuer.chain), |subject| {
        issuer.within(Statement {
            expires_s: now_s() + args.expires.as_secs(),
            only_for,
            ..delegation(subject, rights)
        })
    });
    let invited = invited.map_err(usage)?;
    let (key, expires_s) = (leaf_id(&invited.chain), now_s() + args.expires.as_secs());
    let roots = Roots::read_row(&args.keys.join(ROOTS)).map_err(usage)?;
    let invitation = Invitation { issuer: invited, addresses, renews: args.renews, roots };
    let token = invitation.to_string();
    if !out.is_json() {
        let mut stderr = io::stderr().lock();
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(
            stderr,
            "invitation {key} for {}, until {}; on the new machine: CARBONMESH_JOIN=... carbonmesh up",
            args.role.join(","),
            moment(expires_s)
        );
        if invitation.addresses.is_empty() {
            let _ = writeln!(
                stderr,
                "hint: it names no address: give --peer here or there, or be on the same network"
            );
        }
    }
    let document = json!({
        "token": token, "key": key, "expires_s": expires_s, "addresses": invitation.addresses,
    });
    out.document(&document, || token.clone())
}

async fn revoke(args: &RevokeArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let key = match node_of(&args.key) {
        Ok(key) => key,
        Err(_) => find_node(&args.key, client).await?,
    };
    let entry = match args.root {
        true => {
            let root = open_root(&args.keys, args.passphrase_file.as_deref())?;
            Revocation::new(key, now_s(), (&root, &Chain::default()))
        }
        false => {
            let issuer = Issuer::read(&args.keys.join(ISSUER)).map_err(usage)?;
            issuer.statement().map_err(usage)?;
            let keypair = issuer.keypair().map_err(usage)?;
            Revocation::new(key, now_s(), (&keypair, &issuer.chain))
        }
    };
    let document = RevocationDoc { entry: BASE64URL_NOPAD.encode(&codec::encode(&entry)) };
    let request = client.request(Method::POST, &["trust", "revocations"], &[]).json(&document);
    out.answer(&client.answer::<RevokedNowDoc>(request, Duration::ZERO).await?, |done| {
        match done.news {
            true => format!("{} is shut out: all members hear of it within seconds", done.key),
            false => format!("{} was shut out before", done.key),
        }
    })
}

async fn show(args: &ShowArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    if let Some(keys) = &args.keys {
        let issuer = Issuer::read(&keys.join(ISSUER)).map_err(usage)?;
        let expires_s = issuer.chain.leaf().map_or(0, |leaf| leaf.expires_s);
        let later = Roots::read_row(&keys.join(ROOTS)).map_err(usage)?;
        let first = roots_of(issuer.root, later)?.first();
        let (cluster, id) = (first.cluster(), leaf_id(&issuer.chain));
        let document = json!({ "cluster": cluster, "issuer": id, "expires_s": expires_s });
        return out.document(&document, || {
            let until = Some(moment(expires_s));
            values([
                ("cluster", Some(cluster.clone())),
                ("issuer", Some(id.clone())),
                ("until", until),
            ])
        });
    }
    let Some(folder) = &args.data_dir else {
        return out.answer(&client.get::<TrustDoc>(&["trust"], &[]).await?, shown);
    };
    let Some(membership) = Membership::read(folder).map_err(usage)? else {
        return Err(usage(format!("{} belongs to no cluster with certificates", folder.display())));
    };
    let document = TrustDoc::new(&membership, false, &[]);
    out.document(&json!(document), || shown(&document))
}

fn shown(trust: &TrustDoc) -> String {
    let left = trust.expires_s.saturating_sub(now_s());
    let left = match left {
        0 => "over: join again with a new invitation".to_owned(),
        left if left >= 2 * 24 * 3600 => format!("{} days left", left / (24 * 3600)),
        left => format!("{} left", format_duration(Duration::from_secs(left))),
    };
    let short = |id: &String| id.chars().take(8).collect::<String>();
    let revoked = trust.revoked.iter().map(|one| short(&one.key));
    values([
        ("cluster", Some(trust.cluster.clone())),
        ("node", Some(trust.node.clone())),
        ("roles", Some(joined(&trust.roles))),
        ("phases", trust.phases.as_ref().map(joined)),
        ("until", Some(format!("{} ({left})", moment(trust.expires_s)))),
        ("let in by", Some(trust.chain.iter().map(short).collect::<Vec<_>>().join(" > "))),
        ("root", trust.roots.last().map(|last| last.id.clone())),
        ("renews", trust.renews.then(|| "the certificates of others".to_owned())),
        ("shut out", (!trust.revoked.is_empty()).then(|| joined(revoked))),
    ])
}

fn moment(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "-".to_owned(), |at| at.to_string())
}

fn leaf_id(chain: &Chain) -> String {
    chain.leaf().map(|leaf| format!("{:#}", leaf.subject.id())).unwrap_or_default()
}

/// A certificate that lets its holder sign nodes' certificates, until further notice.
fn delegation(subject: PublicKey, rights: Rights) -> Statement {
    Statement {
        subject,
        rights,
        not_before_s: now_s().saturating_sub(CLOCK_SKEW.as_secs()),
        expires_s: now_s() + ISSUER_LIFETIME.as_secs(),
        issues: 1,
        only_for: None,
    }
}

fn new_issuer(root: &ed25519::Keypair) -> Result<Issuer, Failure> {
    let issuer = Issuer::new(PublicKey::of(root), (root, &Chain::default()), |subject| Statement {
        issues: 2,
        ..delegation(subject, Rights::ALL)
    });
    issuer.map_err(usage)
}

/// Lets a node do everything, and renew the certificates of others for as long as the issuer lives.
fn first_invitation(issuer: &Issuer, roots: &Roots) -> Result<Invitation, Failure> {
    let keypair = issuer.keypair().map_err(usage)?;
    let first = Issuer::new(issuer.root, (&keypair, &issuer.chain), |subject| {
        issuer.within(delegation(subject, Rights::ALL))
    });
    let roots = roots.successions().to_vec();
    Ok(Invitation { issuer: first.map_err(usage)?, addresses: Vec::new(), renews: true, roots })
}

/// The roots that lead to this one.
fn roots_of(last: PublicKey, later: Vec<Succession>) -> Result<Roots, Failure> {
    let first = later.first().map_or(last, Succession::old);
    let roots = Roots::of(first, later).map_err(usage)?;
    match roots.last() == last {
        true => Ok(roots),
        false => Err(usage(format!("{ROOTS} does not lead to this root: bring it back"))),
    }
}

/// Makes another root, which takes over from the present one, and tells a node of it.
async fn rotate_root(args: &RotateArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let folder = args.dir.display();
    // What was made before is told again: a node may not have been there.
    if !args.dir.join(ROOT).exists() {
        make_root(args)?;
    }
    let later = Roots::read_row(&args.dir.join(ROOTS)).map_err(usage)?;
    let last = later.last().ok_or_else(|| {
        usage(format!("{folder} has no {ROOTS}: a root that follows another has it beside its key"))
    })?;
    let (root, ends_s) = (format!("{:#}", last.successor().id()), last.ends_s());
    let cluster = later.first().map(|first| first.old().cluster()).unwrap_or_default();
    let mut news = false;
    for one in &later {
        let document = SuccessionDoc { entry: BASE64URL_NOPAD.encode(&codec::encode(one)) };
        let request = client.request(Method::POST, &["trust", "successions"], &[]).json(&document);
        let told = client.answer::<SucceededDoc>(request, Duration::ZERO).await;
        news |= told
            .inspect_err(|_| {
                let mut stderr = io::stderr().lock();
                // Nobody is left to tell if stderr is closed.
                let _ = writeln!(
                    stderr,
                    "hint: {folder} is made, and no node knows of it yet: the same command tells it again"
                );
            })?
            .document
            .news;
    }
    let document = json!({ "cluster": cluster, "root": root, "ends_s": ends_s, "news": news });
    out.document(&document, || {
        format!(
            "root {root} takes over in cluster {cluster}: all members hear of it within seconds, and go \
             on with the certificates that they have\n\n\
             {folder}/{ROOT}    signs issuers from now on; keep it offline\n\
             {folder}/{ISSUER}  invites as before, under the new root; take it in place of the old one\n\
             {folder}/{ROOTS}       what leads to it; keep it beside them\n\n\
             the old root counts until {}; invitations that it stands above can be used until they end",
            moment(ends_s)
        )
    })
}

fn make_root(args: &RotateArgs) -> Result<(), Failure> {
    let later = Roots::read_row(&args.keys.join(ROOTS)).map_err(usage)?;
    let mut issuers = vec![Issuer::read(&args.keys.join(ISSUER)).map_err(usage)?];
    for keys in &args.issuer {
        issuers.push(Issuer::read(&keys.join(ISSUER)).map_err(usage)?);
    }
    let old = open_root(&args.keys, args.passphrase_file.as_deref())?;
    let mut roots = roots_of(PublicKey::of(&old), later)?;
    let mut statements = Vec::new();
    for issuer in &issuers {
        let statement = issuer.statement().map_err(usage)?.clone();
        if issuer.root != roots.last() || issuer.chain.links().len() != 1 {
            return Err(usage(format!(
                "{} is no issuer right below this root: leave it out",
                leaf_id(&issuer.chain)
            )));
        }
        statements.push(statement);
    }
    let typed = args.new_passphrase_file.as_deref();
    if typed.is_none() {
        eprintln!("now one for the new root:");
    }
    let passphrase = passphrase(typed, true)?;
    let new = ed25519::Keypair::generate();
    let times = (now_s(), now_s().saturating_add(args.ends.as_secs()));
    let one = Succession::new(&old, &new, times, statements).map_err(usage)?;
    roots.learn(one).map_err(usage)?;
    make_folder(&args.dir)?;
    roots.write(&args.dir.join(ROOTS)).map_err(usage)?;
    let sealed = SealedRoot::seal(&new, &passphrase).map_err(usage)?;
    let first = &issuers[0];
    first
        .under(sealed.public, roots.renewed(&first.chain))
        .write(&args.dir.join(ISSUER))
        .map_err(usage)?;
    // The root comes last: without it the folder can be used anew after an interruption.
    sealed.write(&args.dir.join(ROOT)).map_err(usage)
}

fn open_root(keys: &Path, file: Option<&Path>) -> Result<ed25519::Keypair, Failure> {
    let sealed = SealedRoot::read(&keys.join(ROOT)).map_err(usage)?;
    sealed.open(&passphrase(file, false)?).map_err(usage)
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| usage(VaultError::Io { path: path.to_owned(), source }))
}

fn roles(names: &[String]) -> Result<Roles, Failure> {
    let mut roles = Roles { worker: false, replica: false, gateway: false };
    for name in names {
        match name.trim() {
            "worker" => roles.worker = true,
            "replica" => roles.replica = true,
            "gateway" => roles.gateway = true,
            other => {
                let reason = "is no role: take worker, replica or gateway";
                return Err(usage(format!("--role: `{other}` {reason}")));
            }
        }
    }
    Ok(roles)
}

/// Reads a node's id, or a peer id.
fn node_of(text: &str) -> Result<NodeId, Failure> {
    if let Some(node) = text.parse::<PeerId>().ok().and_then(|peer| node_id_of(&peer)) {
        return Ok(node);
    }
    let bytes = HEXLOWER.decode(text.to_ascii_lowercase().as_bytes()).unwrap_or_default();
    let bytes = <[u8; 16]>::try_from(bytes);
    bytes.map(NodeId::from_bytes).map_err(|_| {
        usage(format!(
            "`{text}` is no node's id: give all 32 digits, as `node ls -o json` has them"
        ))
    })
}

/// The one member with that name, or whose id begins so.
async fn find_node(text: &str, client: &Client) -> Result<NodeId, Failure> {
    let nodes = client.get::<NodesDoc>(&["nodes"], &[]).await?.document.nodes;
    let by_id = |id: &str| text.len() >= 4 && id.starts_with(&text.to_ascii_lowercase());
    let mut found = nodes.iter().filter(|one| one.name == text || by_id(&one.id));
    match (found.next(), found.next()) {
        (Some(one), None) => node_of(&one.id),
        (Some(_), Some(_)) => {
            Err(usage(format!("several nodes are called `{text}`: give an id, see `node ls`")))
        }
        (None, _) => Err(usage(format!(
            "the node at {} knows no node `{text}`: see `node ls`",
            client.url()
        ))),
    }
}

/// Those that were given, or those of the members that the node at hand knows.
async fn addresses(given: &[String], client: &Client) -> Result<Vec<String>, Failure> {
    if !given.is_empty() {
        let parse = |text: &String| parse_address(text.trim()).map(|address| address.to_string());
        return given.iter().map(parse).collect::<Result<_, _>>().map_err(usage);
    }
    let nodes = match client.get::<NodesDoc>(&["nodes"], &[]).await {
        Ok(answer) => answer.document.nodes,
        // It can be made where no node runs.
        Err(_) => return Ok(Vec::new()),
    };
    let all = nodes.into_iter().flat_map(|node| node.addresses);
    let mut all: Vec<_> = all.filter_map(|text| parse_address(&text).ok()).collect();
    if all.iter().any(|address| !is_loopback(address)) {
        all.retain(|address| !is_loopback(address));
    }
    all.truncate(ADDRESSES);
    Ok(all.iter().map(ToString::to_string).collect())
}

/// From a file, or typed; twice, if it is new.
fn passphrase(file: Option<&Path>, is_new: bool) -> Result<Passphrase, Failure> {
    if let Some(path) = file {
        let text = fs::read_to_string(path);
        let text =
            text.map_err(|source| usage(VaultError::Io { path: path.to_owned(), source }))?;
        return Passphrase::new(text).map_err(usage);
    }
    let typed = ask("passphrase of the root's key: ")?;
    if is_new && *ask("once more: ")? != *typed {
        return Err(usage("the two passphrases differ: nothing was made"));
    }
    Passphrase::new(typed.to_string()).map_err(usage)
}

/// Echoes keys again, however it ends.
struct Raw;

impl Drop for Raw {
    fn drop(&mut self) {
        // There is no better way if the terminal is gone.
        let _ = disable_raw_mode();
        eprintln!();
    }
}

/// What is typed, without showing it.
pub(super) fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    if !io::stdin().is_terminal() {
        return Err(usage(
            "there is no terminal to ask for the passphrase: give --passphrase-file",
        ));
    }
    eprint!("{prompt}");
    enable_raw_mode().map_err(usage)?;
    let _raw = Raw;
    let mut typed = Zeroizing::new(String::new());
    loop {
        let Event::Key(key) = read().map_err(usage)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Enter => return Ok(typed),
            KeyCode::Char('c' | 'd') if control => return Err(usage("given up: nothing was made")),
            KeyCode::Char('u') if control => typed.clear(),
            KeyCode::Char(character) => typed.push(character),
            KeyCode::Backspace => drop(typed.pop()),
            _ => {}
        }
    }
}
