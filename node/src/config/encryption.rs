//! The key of encryption at rest: from a file, a command or the environment.
//!
//! It comes from somewhere else than the disk that it protects, and is read once, at the start.

use std::{
    env,
    io::Read as _,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use carbonmesh_storage::OperatorKey;
use zeroize::Zeroizing;

use super::{ConfigError, private::private_text, wrong};

/// The variable that has the key itself.
pub(crate) const VARIABLE: &str = "CARBONMESH_ENCRYPTION_KEY";

/// How long a command may take to give the key.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than this is no key.
const MOST_BYTES: u64 = 64 << 10;

/// How often a command is looked after.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Where the key is.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct EncryptionArgs {
    /// Encrypt what is on disk with the key in this file, at least 32 random bytes (chmod 600)
    #[arg(long, env = "CARBONMESH_ENCRYPTION_KEY_FILE", value_name = "FILE")]
    encryption_key_file: Option<PathBuf>,
    /// The same with what this command prints; `sh` runs it at the start
    #[arg(
        long,
        env = "CARBONMESH_ENCRYPTION_KEY_COMMAND",
        value_name = "COMMAND",
        conflicts_with = "encryption_key_file"
    )]
    encryption_key_command: Option<String>,
    /// The key itself, which has no flag: every user of the machine sees these
    #[arg(skip)]
    key: Option<Key>,
}

/// Text that is not printed.
#[derive(Clone)]
struct Key(Zeroizing<String>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl EncryptionArgs {
    /// The same, with what the environment has.
    ///
    /// # Errors
    /// It is no text.
    pub(crate) fn with_variable(mut self) -> Result<Self, ConfigError> {
        match env::var(VARIABLE) {
            Ok(key) => self.key = Some(Key(Zeroizing::new(key))),
            Err(env::VarError::NotPresent) => {}
            Err(env::VarError::NotUnicode(_)) => {
                return Err(wrong(
                    VARIABLE,
                    "it is no text: use a file, and base64, for such a key",
                ));
            }
        }
        Ok(self)
    }

    /// The key, if there is one; `file` and `command` are what the configuration file says.
    ///
    /// # Errors
    /// It cannot be read, or is too short, or is given in several ways.
    pub(crate) fn resolve(
        self,
        file: Option<PathBuf>,
        command: Option<String>,
    ) -> Result<Option<OperatorKey>, ConfigError> {
        let given = self.encryption_key_file.is_some() || self.encryption_key_command.is_some();
        if self.key.is_some() && given {
            let reason = format!("{VARIABLE} is set too: give the key in one way only");
            return Err(wrong("--encryption-key-file", reason));
        }
        if file.is_some() && command.is_some() {
            let reason = "encryption_key_file is given too: give the key in one way only";
            return Err(wrong("encryption_key_command", reason));
        }
        let (file, command) = match given || self.key.is_some() {
            true => (self.encryption_key_file, self.encryption_key_command),
            false => (file, command),
        };
        let (setting, text) = match (self.key, file, command) {
            (Some(Key(text)), ..) => (VARIABLE.to_owned(), text),
            (None, Some(path), _) => {
                let setting = format!("--encryption-key-file {}", path.display());
                (setting, Zeroizing::new(private_text("--encryption-key-file", &path)?))
            }
            (None, None, Some(command)) => ("--encryption-key-command".to_owned(), run(&command)?),
            (None, None, None) => return Ok(None),
        };
        let key = OperatorKey::new(text.as_bytes());
        key.map(Some).map_err(|error| wrong(setting, error.to_string()))
    }
}

/// What a command prints.
fn run(command: &str) -> Result<Zeroizing<String>, ConfigError> {
    let failed = |reason: String| wrong("--encryption-key-command", reason);
    let spawned = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| failed(format!("sh cannot be run: {error}")))?;
    let Some(stdout) = child.stdout.take() else {
        return Err(failed("its output cannot be read".to_owned()));
    };
    let reader = thread::spawn(move || {
        let mut text = Zeroizing::new(String::new());
        stdout.take(MOST_BYTES).read_to_string(&mut text).map(|_| text)
    });
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < PATIENCE => thread::sleep(LOOK_EVERY),
            Ok(None) => {
                // It is waited for all the same: it cannot outlive this.
                let _ = child.kill().and_then(|()| child.wait());
                return Err(failed(format!("it gave no key within {} s", PATIENCE.as_secs())));
            }
            Err(error) => return Err(failed(format!("it cannot be waited for: {error}"))),
        }
    };
    if !status.success() {
        return Err(failed(format!("it failed ({status}): what it said stands above")));
    }
    // Something that it has left behind may hold its output open.
    while !reader.is_finished() {
        if began.elapsed() > PATIENCE {
            return Err(failed("something that it started keeps its output open".to_owned()));
        }
        thread::sleep(LOOK_EVERY);
    }
    match reader.join() {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(failed(format!("its output is no text: {error}"))),
        Err(_) => Err(failed("its output cannot be read".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn error(args: EncryptionArgs) -> String {
        args.resolve(None, None).unwrap_err().to_string()
    }

    fn by_command(command: &str) -> EncryptionArgs {
        let encryption_key_command = Some(command.to_owned());
        EncryptionArgs { encryption_key_command, ..EncryptionArgs::default() }
    }

    #[test]
    fn the_key_is_the_same_whichever_way_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, format!("{KEY}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file =
            EncryptionArgs { encryption_key_file: Some(path.clone()), ..EncryptionArgs::default() };
        let variable = EncryptionArgs {
            key: Some(Key(Zeroizing::new(KEY.to_owned()))),
            ..EncryptionArgs::default()
        };
        let id = OperatorKey::new(KEY.as_bytes()).unwrap().id();
        for args in [file, variable, by_command(&format!("echo {KEY}"))] {
            assert_eq!(args.resolve(None, None).unwrap().unwrap().id(), id);
        }
        let none = EncryptionArgs::default;
        assert_eq!(none().resolve(Some(path.clone()), None).unwrap().unwrap().id(), id);
        assert!(none().resolve(None, None).unwrap().is_none());
        let both = none().resolve(Some(path), Some("true".to_owned()));
        assert!(both.unwrap_err().to_string().contains("one way only"));
    }

    #[test]
    fn whatever_is_wrong_is_told_and_the_key_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, KEY).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = |path: &std::path::Path| EncryptionArgs {
            encryption_key_file: Some(path.to_owned()),
            ..EncryptionArgs::default()
        };
        assert!(error(file(&path)).contains("chmod 600"));
        assert!(error(file(&folder.path().join("no"))).contains("cannot read"));
        assert!(error(by_command("exit 3")).contains("failed"));
        let short = error(by_command("echo secret"));
        assert!(short.contains("at least 32") && !short.contains("secret"), "{short}");
        let two = EncryptionArgs { key: Some(Key(Zeroizing::new(KEY.to_owned()))), ..file(&path) };
        assert!(!format!("{two:?}").contains(KEY));
        assert!(error(two).contains("one way only"));
    }
}
