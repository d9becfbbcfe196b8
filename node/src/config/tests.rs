//! Precedence, and what wrong settings are told.

use std::os::unix::fs::PermissionsExt;

use clap::Parser;
use tempfile::TempDir;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: UpArgs,
}

struct Given {
    folder: TempDir,
    args: Vec<String>,
    secret: Option<String>,
}

fn given(args: &[&str]) -> Given {
    let folder = tempfile::tempdir().unwrap();
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    Given { folder, args, secret: None }
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        let path = self.folder.path().join("node.toml");
        fs::write(&path, text).unwrap();
        self.args.extend(["--config".to_owned(), path.display().to_string()]);
        self
    }

    fn secret(mut self, secret: &str) -> Self {
        self.secret = Some(secret.to_owned());
        self
    }

    fn resolve(self) -> Result<Settings, ConfigError> {
        let line = Line::try_parse_from(std::iter::once("up".to_owned()).chain(self.args));
        let line = line.unwrap_or_else(|error| panic!("{error}"));
        line.args.resolve_with(&PhaseRegistry::default(), self.secret)
    }

    fn error(self) -> String {
        self.resolve().unwrap_err().to_string()
    }
}

#[test]
fn without_flags_a_node_does_everything_on_loopback() {
    let settings = given(&[]).resolve().unwrap();
    assert_eq!(settings.roles, Roles::ALL);
    assert_eq!(settings.listen[0].to_string(), "/ip4/127.0.0.1/tcp/7401");
    assert!(!settings.listen_is_explicit && !settings.mdns);
    assert_eq!(settings.http.to_string(), "127.0.0.1:7400");
}

#[test]
fn flags_come_before_the_file_and_the_file_before_defaults() {
    let file = "name = 'file'\ncluster = 'c'\nrole = ['replica']\nhttp = '127.0.0.1:1'\n";
    let settings = given(&["--name", "flag", "--role", "worker,gateway"]).file(file).resolve();
    let settings = settings.unwrap();
    assert_eq!((settings.name.as_str(), settings.cluster.as_str()), ("flag", "c"));
    assert_eq!(settings.roles.to_string(), "worker,gateway");
    assert_eq!(settings.http.port(), 1);
}

#[test]
fn a_secret_opens_the_node_to_the_network() {
    let settings = given(&["--peer", "oak:7401"]).secret("0123456789abcdef").resolve().unwrap();
    assert_eq!(settings.listen[0].to_string(), "/ip4/0.0.0.0/tcp/7401");
    assert!(settings.mdns);
}

#[test]
fn elsewhere_than_on_loopback_there_is_tls_and_somebody_asks() {
    let near = given(&[]).resolve().unwrap().access;
    assert!(!near.tls && near.tokens_file.is_none());
    let far = given(&["--http", "0.0.0.0:1", "--tokens-file", "t"]).resolve().unwrap().access;
    assert!(far.tls && far.certificate.is_none());
    let file = "http = '[::]:1'\n[api]\ntokens_file = 't'\ntls_cert = 'c'\ntls_key = 'k'\n";
    let far = given(&["--tokens-file", "u"]).file(file).resolve().unwrap().access;
    assert!(far.tls && far.certificate.is_some());
    assert_eq!(far.tokens_file, Some("u".into()));
    assert!(given(&["--tls"]).resolve().unwrap().access.tls);
}

#[test]
fn phases_are_chosen_from_what_there_is() {
    let file = "[phases.a]\nslots = 2\ncommand = ['true']\n[phases.b]\ncommand = ['true']\n";
    let all = given(&[]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", all.phases), "[a=2, b=1]");
    let one = given(&["--phase", "b=7"]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", one.phases), "[b=7]");
    let none = given(&["--role", "replica"]).file(file).resolve().unwrap();
    assert!(none.phases.is_empty());
}

#[cfg(feature = "wasm")]
#[test]
fn modules_are_phases_with_the_limits_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let module = at("m.wasm", &wat::parse_str("(module (func (export \"_start\")))").unwrap());
    let (garbage, none) = (at("g.wasm", b"garbage"), format!("{}/none", folder.path().display()));
    let file = "[phases.b]\nslots = 3\ntimeout = '2s'\nmax_memory = 65536\n";
    let flag = |value: &str| format!("--wasm={value}");
    let (a, b) = (flag(&format!("a={module}")), flag(&format!("b={module}")));
    let both = given(&[&a, &b]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", both.phases), "[a=1, b=3]");
    assert_eq!(both.phases[1].timeout, Some(std::time::Duration::from_secs(2)));
    let in_file = format!("[phases.c]\nwasm = '{module}'\nwrite_folders = {{ '/out' = '/tmp' }}\n");
    let chosen = given(&["--phase", "c=4"]).file(&in_file).resolve().unwrap();
    assert_eq!(format!("{:?}", chosen.phases), "[c=4]");

    let of_file = |more: &str| format!("[phases.c]\nwasm = '{module}'\n{more}\n");
    for (flags, file, parts) in [
        (vec![flag("a")], String::new(), ["--wasm", "NAME=FILE"]),
        (vec![flag(&format!("a={none}"))], String::new(), ["--wasm", "No such file"]),
        (vec![flag(&format!("a={garbage}"))], String::new(), ["--wasm", "no valid WebAssembly"]),
        (vec![a.clone(), a.clone()], String::new(), ["--wasm", "given twice"]),
        (vec![a.clone(), "--role=gateway".to_owned()], String::new(), ["--wasm", "no worker"]),
        (vec![a], "[phases.a]\ncommand = ['x']".to_owned(), ["--wasm", "command too"]),
        (vec![], format!("[phases.c]\nwasm = '{garbage}'"), ["phases.c.wasm", "g.wasm"]),
        (vec![], of_file("directory = '/'"), ["phases.c.directory", "read_folders"]),
        (vec![], of_file("max_memory = 0"), ["phases.c.max_memory", "at least 1"]),
        (vec![], of_file("max_output = 0"), ["phases.c.max_output", "at least 1"]),
        (vec![], of_file("read_folders = { '/i' = '/no/such' }"), ["phases.c.wasm", "/no/such"]),
        (
            vec![],
            of_file("read_folders = { '/i' = '/' }\nwrite_folders = { '/i' = '/' }"),
            ["phases.c.write_folders", "`/i`"],
        ),
        (
            vec![],
            "[phases.c]\ncommand = ['x']\nmax_memory = 1".to_owned(),
            ["phases.c.max_memory", "WebAssembly"],
        ),
    ] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let error = given(&flags).file(&file).error();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
}

#[test]
fn wrong_settings_are_named_with_the_way_out() {
    for (args, file, parts) in [
        (&["--role", "boss"] as &[&str], "", &["--role", "`boss`", "gateway"] as &[&str]),
        (&["--listen", "0.0.0.0:1"], "", &["--listen", "0.0.0.0:1", "--secret-file"]),
        (&["--peer", "oak"], "", &["--peer", "`oak`", "HOST:PORT"]),
        (&["--http", "0.0.0.0:1"], "", &["--http", "loopback", "--tokens-file", "SSH tunnel"]),
        (&["--http", "0.0.0.0:1", "--tls"], "", &["--http", "--tokens-file"]),
        (&["--tls-client-ca", "ca"], "", &["--tls-client-ca", "--tokens-file"]),
        (&["--http-origin", "dash.example"], "", &["--http-origin", "https://dash.example"]),
        (&["--http-origin", "https://dash.example/"], "", &["--http-origin", "without a path"]),
        (&["--http-host", "a:1"], "", &["--http-host", "without a port"]),
        (&["--audit", "some"], "", &["--audit", "`some`", "changes"]),
        (&[], "[api]\ntls_cert = 'c'", &["api.tls_key", "missing"]),
        (&[], "[api]\ntoken = 't'", &["node.toml", "token"]),
        (&["--http", "here"], "", &["--http", "`here`", "127.0.0.1:7400"]),
        (&["--label", "x"], "", &["--label", "KEY=VALUE"]),
        (&["--phase", "x=1"], "", &["--phase", "`x`", "[phases.x]"]),
        (&["--phase", "a=x"], "[phases.a]\ncommand=['true']", &["--phase", "a=4"]),
        (&["--phase", "a=0"], "[phases.a]\ncommand=['true']", &["a has 0 slots"]),
        (&["--cluster", "a/b"], "", &["--cluster"]),
        (&[], "colour = 1", &["node.toml", "colour", "line 1"]),
        (&[], "[phases.a]\nslots = 1", &["phases.a.command", "missing"]),
        (&[], "[phases.a]\ncommand = []", &["phases.a.command", "empty"]),
        (&[], "[phases.a]\ncommand = ['x']\ntimeout = 'soon'", &["phases.a.timeout"]),
        (&[], "[timing]\nlease = '1s'", &["timing.lease", "timing.beat"]),
        (&[], "[limits]\njob_bytes = 0", &["limits.job_bytes"]),
        (&[], "[results]\nfolder = '/no/such'", &["results.folder", "/no/such"]),
        (
            &[],
            "[results.mail]\nserver = 'x'\nfrom = 'a@b.c'\nto = []",
            &["results.mail.server", "HOST:PORT"],
        ),
        (
            &[],
            "[results.mail]\nserver = 'x:25'\nfrom = 'a@b.c'\nto = []",
            &["results.mail.to", "@example.org"],
        ),
        (
            &[],
            "[results.post]\nurls = []\nsecret_file = '/no/such'",
            &["results.post.urls", "empty"],
        ),
        (&[], "[results.post]\nurls = ['http://x/']\nsecret_file = '/no/such'", &["/no/such"]),
    ] {
        let error = given(args).file(file).error();
        for part in parts {
            assert!(error.contains(part), "{args:?} {file:?}: `{part}` is not in `{error}`");
        }
    }
    let short = given(&[]).secret("short").error();
    assert!(short.contains("CARBONMESH_SECRET") && short.contains("16"), "{short}");
    let absent = given(&["--config", "/no/such/file"]).error();
    assert!(absent.contains("/no/such/file"), "{absent}");
}

#[test]
fn results_go_where_the_operator_lets_them() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "a secret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let (folder, secret) = (folder.path().display(), secret.display());
    let file = format!(
        "[results]\nfolder = '{folder}'\n\
         [results.post]\nurls = ['https://hooks.example/']\nsecret_file = '{secret}'\n\
         [results.mail]\nserver = 'localhost:25'\ntls = 'none'\nfrom = 'a@b.example'\n\
         to = ['@b.example']\n"
    );
    let settings = given(&[]).file(&file).resolve().unwrap();
    let expected = "[carbonmesh.email=8, carbonmesh.http-post=8, carbonmesh.write-file=8]";
    assert_eq!(format!("{:?}", settings.phases), expected);
    let none = given(&["--role", "replica"]).file(&file).resolve().unwrap();
    assert!(none.phases.is_empty());
    let open = file
        .replace("tls = 'none'", &format!("tls = 'none'\nuser = 'u'\npassword_file = '{secret}'"));
    assert!(given(&[]).file(&open).error().contains("in the clear"));
}

#[test]
fn a_secret_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let flags = ["--secret-file", path.to_str().unwrap()];
    assert!(given(&flags).error().contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let settings = given(&flags).resolve().unwrap();
    assert_eq!(settings.secret.unwrap().as_bytes(), b"0123456789abcdef");
}

#[test]
fn an_invitation_says_what_a_node_may_be() {
    use crate::trust::tests::{Operator, WORKER};
    let operator = Operator::new();
    let phases = Some(["a".parse().unwrap()].into());
    let mut invitation = operator.invite(Rights { roles: WORKER, phases }, 1, false);
    invitation.addresses = vec!["/ip4/10.0.0.7/tcp/7401".to_owned()];
    let token = invitation.to_string();
    let file = "[phases.a]\ncommand = ['true']\n[phases.b]\ncommand = ['true']\n";
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let with = |more: &[&str]| given(&[&["--join", &token, "--data-dir", &data], more].concat());
    let settings = with(&[]).file(file).resolve().unwrap();
    assert_eq!(settings.roles, WORKER);
    assert_eq!(format!("{:?}", settings.phases), "[a=1]");
    assert_eq!(settings.peers[0].to_string(), invitation.addresses[0]);
    assert_eq!(settings.listen[0].to_string(), "/ip4/0.0.0.0/tcp/7401");
    assert_eq!(settings.cluster, operator.root().cluster());
    for (args, word) in [
        (&["--role", "gateway"] as &[&str], "grants worker only"),
        (&["--phase", "b"], "does not grant phase `b`"),
        (&["--cluster", "c"], "leave it out"),
    ] {
        let error = with(args).file(file).error();
        assert!(error.contains(word), "{error}");
    }
    let phases = Some(["team/*".parse().unwrap()].into());
    let token = operator.invite(Rights { roles: WORKER, phases }, 1, false).to_string();
    let team = |more: &[&str]| given(&[&["--join", &token, "--data-dir", &data], more].concat());
    let settings = team(&[]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", settings.phases), "[team/a=1, team/b=1]");
    let others = team(&["--namespaces", "other"]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", others.phases), "[]");
    let both = with(&[]).secret("0123456789abcdef").error();
    assert!(both.contains("--secret-file") && both.contains("one of both"), "{both}");
    let damaged = given(&["--join", &token[..40], "--data-dir", &data]).error();
    assert!(damaged.contains("--join: this is no invitation"), "{damaged}");
}
