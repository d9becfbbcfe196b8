//! Precedence, and what wrong settings are told.

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
fn phases_are_chosen_from_what_there_is() {
    let file = "[phases.a]\nslots = 2\ncommand = ['true']\n[phases.b]\ncommand = ['true']\n";
    let all = given(&[]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", all.phases), "[a=2, b=1]");
    let one = given(&["--phase", "b=7"]).file(file).resolve().unwrap();
    assert_eq!(format!("{:?}", one.phases), "[b=7]");
    let none = given(&["--role", "replica"]).file(file).resolve().unwrap();
    assert!(none.phases.is_empty());
}

#[test]
fn wrong_settings_are_named_with_the_way_out() {
    for (args, file, parts) in [
        (&["--role", "boss"] as &[&str], "", &["--role", "`boss`", "gateway"] as &[&str]),
        (&["--listen", "0.0.0.0:1"], "", &["--listen", "0.0.0.0:1", "--secret-file"]),
        (&["--peer", "oak"], "", &["--peer", "`oak`", "HOST:PORT"]),
        (&["--http", "0.0.0.0:1"], "", &["--http", "loopback"]),
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
