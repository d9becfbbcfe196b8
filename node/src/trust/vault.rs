//! Keys in files: the root's, sealed with a passphrase, and issuers'.
//!
//! ```text
//! root.key    Argon2id(passphrase, salt) ─► XChaCha20-Poly1305(key, nonce, secret; the public key)
//! issuer.key  the secret as it is, for its owner's eyes only (mode 600), and its certificates
//! ```

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use carbonmesh_protocol::codec::{self, Encoded, Kind};
use carbonmesh_storage::{Files, SealError};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use libp2p::identity::ed25519;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{Chain, ChainError, PublicKey, Statement, certificate::MAX_LINKS, now_s};

/// What it takes to try one passphrase: 64 MiB, thrice over.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;

/// A file that asks for more memory or time than this is damaged.
const MOST_MEMORY_KIB: u32 = 1 << 20;
const MOST_PASSES: u32 = 64;

/// The shortest passphrase, in bytes.
const SHORTEST: usize = 12;

const LABEL: &[u8] = b"carbonmesh/1/root-key\0";

/// The name by which an issuer's key on a node is sealed.
const SEALED_AS: &str = "trust/issuer.key";

/// A key cannot be had. Nothing was changed.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The file cannot be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others: run chmod 600 on it, and think of who may have copied it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} is damaged or no such key: bring it back from a backup", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
    /// It is sealed, and does not open.
    #[error("cannot open {}: {source}", path.display())]
    Sealed {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: SealError,
    },
    /// The passphrase does not open it.
    #[error("the passphrase does not open the root's key")]
    Passphrase,
    /// The passphrase is too short.
    #[error("the passphrase has {0} bytes: at least {SHORTEST} are needed")]
    Short(usize),
    /// There is no memory for it.
    #[error("cannot derive a key from the passphrase: {0}")]
    Derive(argon2::Error),
    /// The certificates cannot be made.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// What opens the root's key; never printed.
pub(crate) struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// A passphrase; line ends behind it do not count.
    ///
    /// # Errors
    /// It is too short.
    pub(crate) fn new(text: String) -> Result<Self, VaultError> {
        let text = Zeroizing::new(text);
        let trimmed = text.trim_end_matches(['\r', '\n']);
        match trimmed.len() {
            ..SHORTEST => Err(VaultError::Short(trimmed.len())),
            _ => Ok(Self(Zeroizing::new(trimmed.to_owned()))),
        }
    }
}

/// A root's key as it lies in its file.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SealedRoot {
    /// The public half: what the cluster goes by.
    pub(crate) public: PublicKey,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    salt: [u8; 16],
    nonce: [u8; 24],
    sealed: Bytes,
}

impl Encoded for SealedRoot {
    const KIND: Kind = 0x210;
}

impl SealedRoot {
    /// Seals a key.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn seal(
        root: &ed25519::Keypair,
        passphrase: &Passphrase,
    ) -> Result<Self, VaultError> {
        let mut sealed = Self {
            public: PublicKey::of(root),
            memory_kib: MEMORY_KIB,
            passes: PASSES,
            lanes: LANES,
            salt: rand::random(),
            nonce: rand::random(),
            sealed: Bytes::new(),
        };
        let secret = root.secret();
        let associated = sealed.associated();
        let payload = Payload { msg: secret.as_ref(), aad: &associated };
        let cipher = sealed.cipher(passphrase)?;
        let closed = cipher.encrypt(&sealed.nonce.into(), payload);
        sealed.sealed = closed.map_err(|_| VaultError::Passphrase)?.into();
        Ok(sealed)
    }

    /// Opens it.
    ///
    /// # Errors
    /// The passphrase is another, or the file was changed.
    pub(crate) fn open(&self, passphrase: &Passphrase) -> Result<ed25519::Keypair, VaultError> {
        let associated = self.associated();
        let payload = Payload { msg: &self.sealed, aad: &associated };
        let opened = self.cipher(passphrase)?.decrypt(&self.nonce.into(), payload);
        let opened = Zeroizing::new(opened.map_err(|_| VaultError::Passphrase)?);
        let secret = ed25519::SecretKey::try_from_bytes(opened.to_vec());
        let keypair = ed25519::Keypair::from(secret.map_err(|_| VaultError::Passphrase)?);
        match PublicKey::of(&keypair) == self.public {
            true => Ok(keypair),
            false => Err(VaultError::Passphrase),
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or it is damaged.
    pub(crate) fn read(path: &Path) -> Result<Self, VaultError> {
        let damaged = || VaultError::Damaged { path: path.to_owned() };
        let sealed: Self = codec::decode(&read_private(path)?).map_err(|_| damaged())?;
        let sane = sealed.memory_kib <= MOST_MEMORY_KIB && sealed.passes <= MOST_PASSES;
        if sane { Ok(sealed) } else { Err(damaged()) }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written, or is there already.
    pub(crate) fn write(&self, path: &Path) -> Result<(), VaultError> {
        write_private(path, &codec::encode(self))
    }

    fn cipher(&self, passphrase: &Passphrase) -> Result<XChaCha20Poly1305, VaultError> {
        let params = argon2::Params::new(self.memory_kib, self.passes, self.lanes, Some(32));
        let params = params.map_err(VaultError::Derive)?;
        let argon =
            argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut key = Zeroizing::new([0_u8; 32]);
        argon
            .hash_password_into(passphrase.0.as_bytes(), &self.salt, &mut *key)
            .map_err(VaultError::Derive)?;
        Ok(XChaCha20Poly1305::new((&*key).into()))
    }

    /// What must not be exchanged for something else beside the secret.
    fn associated(&self) -> Vec<u8> {
        [LABEL, &self.public.0].concat()
    }
}

/// A key that may sign certificates, and who says so.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Issuer {
    /// The cluster's root.
    pub(crate) root: PublicKey,
    secret: [u8; 32],
    /// The certificates up to this key's own.
    pub(crate) chain: Chain,
}

impl Encoded for Issuer {
    const KIND: Kind = 0x211;
}

impl Issuer {
    /// A new key, certified by the holder of `by`; its subject is put in.
    ///
    /// # Errors
    /// `by` may not sign that.
    pub(crate) fn new(
        root: PublicKey,
        by: (&ed25519::Keypair, &Chain),
        statement: impl FnOnce(PublicKey) -> Statement,
    ) -> Result<Self, ChainError> {
        let keypair = ed25519::Keypair::generate();
        let chain = by.1.extend(by.0, statement(PublicKey::of(&keypair)))?;
        let mut secret = [0; 32];
        secret.copy_from_slice(keypair.secret().as_ref());
        Ok(Self { root, secret, chain })
    }

    /// The same key, as another root says of it what the one before did.
    pub(crate) fn under(&self, root: PublicKey, chain: Chain) -> Self {
        Self { root, secret: self.secret, chain }
    }

    /// The key itself.
    ///
    /// # Errors
    /// It does not belong to its certificates.
    pub(crate) fn keypair(&self) -> Result<ed25519::Keypair, ChainError> {
        let secret = ed25519::SecretKey::try_from_bytes(self.secret);
        let keypair = ed25519::Keypair::from(secret.map_err(|_| ChainError::WrongKey)?);
        match self.chain.leaf() {
            Some(leaf) if leaf.subject == PublicKey::of(&keypair) => Ok(keypair),
            _ => Err(ChainError::WrongKey),
        }
    }

    /// What it may grant, checked now.
    ///
    /// # Errors
    /// Its certificates are not valid, or not for issuing.
    pub(crate) fn statement(&self) -> Result<&Statement, ChainError> {
        let leaf = self.chain.verify(self.root, now_s())?;
        match leaf.issues {
            0 => Err(ChainError::NotIssuer(self.chain.links().len())),
            _ => Ok(leaf),
        }
    }

    /// The statement, narrowed to what this key may grant in time.
    pub(crate) fn within(&self, statement: Statement) -> Statement {
        let Some(own) = self.chain.leaf() else { return statement };
        Statement {
            not_before_s: statement.not_before_s.max(own.not_before_s),
            expires_s: statement.expires_s.min(own.expires_s),
            ..statement
        }
    }

    /// Signs one certificate more.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn issue(&self, statement: Statement) -> Result<Chain, ChainError> {
        self.statement()?;
        self.chain.extend(&self.keypair()?, statement)
    }

    /// Whether there is room for an invitation between this key's certificate and a node's.
    pub(crate) fn may_invite(&self) -> bool {
        self.chain.links().len() + 2 <= MAX_LINKS
    }

    /// Reads the file.
    ///
    /// # Errors
    /// It cannot be read, others may read it, or it is damaged.
    pub(crate) fn read(path: &Path) -> Result<Self, VaultError> {
        Self::read_in(path, &Files::default())
    }

    /// Reads the file of a node, which may be sealed.
    ///
    /// # Errors
    /// It cannot be read, others may read it, it does not open, or it is damaged.
    pub(crate) fn read_in(path: &Path, files: &Files) -> Result<Self, VaultError> {
        let damaged = |_| VaultError::Damaged { path: path.to_owned() };
        let sealed = |source| VaultError::Sealed { path: path.to_owned(), source };
        let bytes = files.open(SEALED_AS, read_private(path)?).map_err(sealed)?;
        let issuer: Self = codec::decode(&bytes).map_err(damaged)?;
        issuer.chain.verify_genuine(issuer.root)?;
        issuer.keypair()?;
        Ok(issuer)
    }

    /// Writes the file anew.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), VaultError> {
        self.write_in(path, &Files::default())
    }

    /// Writes the file of a node anew, which may be sealed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write_in(&self, path: &Path, files: &Files) -> Result<(), VaultError> {
        write_private(path, &files.seal(SEALED_AS, codec::encode(self).to_vec()))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// Reads a file that nobody else may.
///
/// # Errors
/// It cannot be read, or others may.
pub(crate) fn read_private(path: &Path) -> Result<Vec<u8>, VaultError> {
    let failed = |source| VaultError::Io { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(VaultError::Exposed { path: path.to_owned() });
    }
    fs::read(path).map_err(failed)
}

/// Replaces a file as a whole, for its owner's eyes only.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), VaultError> {
    let write = || {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        // What an interrupted write left may have another mode.
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => fs::File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|source| VaultError::Io { path: path.to_owned(), source })
}
