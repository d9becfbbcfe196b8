//! Encryption at rest: what seals values and small files, and the file that holds the key to them.
//!
//! ```text
//! operator's key ─ seals ─► the folder's data key (in the file `encryption`) ─ seals ─► all values and files
//! sealed = nonce(24), cipher text, tag(16)      nonce = drawn at the start(16), a counter(8)
//! ```
//! XChaCha20-Poly1305 throughout. What a value belongs to (its table and key, or the name of its file) is
//! authenticated with it, so that neither rows nor files can be exchanged for each other. Another key of the
//! operator's seals the data key anew, and no row is written for that.
//!
//! Invariant: one data key never seals twice with one nonce.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chacha20poly1305::{
    AeadInPlace as _, KeyInit as _, Tag, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// The file in a data folder that holds its data key, sealed by the operator's.
pub(crate) const FILE: &str = "encryption";

/// Its first line.
const FIRST_LINE: &str = "carbonmesh encryption 1";

/// The shortest key of an operator's, in bytes.
pub const SHORTEST_KEY: usize = 32;

const WRAP_LABEL: &[u8] = b"carbonmesh/1/encryption/wrap\0";
const ID_LABEL: &[u8] = b"carbonmesh/1/encryption/id\0";

/// A data key is sealed for nothing else.
const DATA_KEY_LABEL: &[u8] = b"carbonmesh/1/encryption/data-key\0";

const NONCE_BYTES: usize = 24;
const PREFIX_BYTES: usize = 16;
const TAG_BYTES: usize = 16;

/// What sealing adds to a value, in bytes.
pub const SEALED_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// How sealed files begin, so that they are told from others.
const MAGIC: &[u8] = b"CMSEAL1\n";

/// Before a file's name, where rows have their table's number.
const FILE_PLACE: u8 = 0xff;

/// Something is not encrypted as it should be, or does not open. Nothing was changed.
#[derive(Debug, Error)]
pub enum SealError {
    /// There is no key for it.
    #[error(
        "it is encrypted: give its key with --encryption-key-file, --encryption-key-command or CARBONMESH_ENCRYPTION_KEY"
    )]
    Locked,
    /// The key is another.
    #[error("it is encrypted with key {needed}, and key {given} was given: give the right one")]
    WrongKey {
        /// The id of the key that opens it.
        needed: String,
        /// The id of the key that was given.
        given: String,
    },
    /// A key was given for a folder that is not encrypted.
    #[error(
        "it is not encrypted (it has no file `{FILE}`), and a key was given. To encrypt it: make a backup, and restore that with \
         the key (`carbonmesh restore --encryption-key-file`); or start with an empty --data-dir as a \
         new node, which the others fill. To go on as before: leave the key out"
    )]
    Plain,
    /// It is encrypted already.
    #[error("it is encrypted already: `carbonmesh rekey` gives it another key")]
    Already,
    /// The file with the data key is damaged.
    #[error(
        "its file `{FILE}` is damaged: bring it back from a backup; nothing else opens what is encrypted"
    )]
    Damaged,
    /// The key is too short.
    #[error(
        "the key has {0} bytes, at least {SHORTEST_KEY} are needed: make one with `head -c 32 /dev/urandom | base64`"
    )]
    Short(usize),
    /// A file does not open.
    #[error("`{0}` does not open with this folder's key: it was changed, or is another folder's")]
    Changed(String),
    /// A file is plain, and should not be.
    #[error(
        "`{0}` is not encrypted, but the folder is: somebody has put it there; bring the file back from a backup"
    )]
    NotSealed(String),
    /// The system refuses.
    #[error("its file `{FILE}` cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// What the operator gives to open data folders; never printed.
#[derive(Clone)]
pub struct OperatorKey {
    wrap: Zeroizing<[u8; 32]>,
    id: [u8; 8],
}

impl fmt::Debug for OperatorKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperatorKey({})", self.id())
    }
}

impl OperatorKey {
    /// A key from what the operator keeps, which has to be random: it is not stretched as a passphrase
    /// would have to be. Line ends behind it do not count.
    ///
    /// # Errors
    /// It is too short.
    pub fn new(text: &[u8]) -> Result<Self, SealError> {
        let end = text.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'));
        let text = &text[..end.map_or(0, |last| last + 1)];
        if text.len() < SHORTEST_KEY {
            return Err(SealError::Short(text.len()));
        }
        let derived = |label: &[u8]| {
            let mut sum = Sha256::new();
            sum.update(label);
            sum.update(text);
            sum.finalize()
        };
        let mut key = Self { wrap: Zeroizing::new([0; 32]), id: [0; 8] };
        key.wrap.copy_from_slice(&derived(WRAP_LABEL));
        key.id.copy_from_slice(&derived(ID_LABEL)[..8]);
        Ok(key)
    }

    /// What tells it from others, and nothing of it: 16 hexadecimal digits.
    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.id)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.wrap).into())
    }

    /// What is authenticated with a data key: which key has sealed it.
    fn associated(&self) -> Vec<u8> {
        [DATA_KEY_LABEL, &self.id].concat()
    }
}

/// Seals and opens with a folder's data key; cheap to clone.
#[derive(Clone)]
pub struct Sealer(Arc<Inner>);

struct Inner {
    cipher: XChaCha20Poly1305,
    /// Drawn anew for each start, so that its counter may begin at 0.
    prefix: [u8; PREFIX_BYTES],
    count: AtomicU64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

impl Sealer {
    /// One that seals with this key.
    pub fn new(data_key: &[u8; 32]) -> Self {
        let cipher = XChaCha20Poly1305::new(data_key.into());
        Self(Arc::new(Inner { cipher, prefix: rand::random(), count: AtomicU64::new(0) }))
    }

    fn nonce(&self) -> XNonce {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..PREFIX_BYTES].copy_from_slice(&self.0.prefix);
        let count = self.0.count.fetch_add(1, Ordering::Relaxed);
        nonce[PREFIX_BYTES..].copy_from_slice(&count.to_le_bytes());
        nonce.into()
    }

    /// What is to be written in place of `plain`.
    pub(crate) fn seal(&self, associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce = self.nonce();
        let mut sealed = Vec::with_capacity(plain.len() + SEALED_BYTES);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let body = &mut sealed[NONCE_BYTES..];
        let tag = self.0.cipher.encrypt_in_place_detached(&nonce, associated, body);
        // It fails beyond 256 GiB, which no value has.
        let tag = tag.expect("a value is shorter than the cipher's limit");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// What was sealed; nothing if it was changed, or sealed for another place or with another key.
    pub(crate) fn open(&self, associated: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES)?;
        let (body, tag) = rest.split_at_checked(rest.len().checked_sub(TAG_BYTES)?)?;
        let mut plain = body.to_vec();
        let (nonce, tag) = (XNonce::from_slice(nonce), Tag::from_slice(tag));
        let opened = self.0.cipher.decrypt_in_place_detached(nonce, associated, &mut plain, tag);
        opened.ok().map(|()| plain)
    }
}

/// How small files beside the store are written: sealed, or as they are where encryption is off.
#[derive(Clone, Debug, Default)]
pub struct Files(Option<Sealer>);

impl Files {
    pub(crate) fn new(sealer: Option<Sealer>) -> Self {
        Self(sealer)
    }

    /// Those of a folder that may not be there yet, or that this key does not open: plain then, for whoever
    /// only looks. [`crate::DataDir`] tells what is wrong.
    pub fn of(folder: &Path, key: Option<&OperatorKey>) -> Self {
        let read = key.and_then(|key| read(folder, key).ok().flatten());
        Self(read)
    }

    /// Whether they are sealed.
    pub fn are_sealed(&self) -> bool {
        self.0.is_some()
    }

    /// What is to be written as the file of that name.
    pub fn seal(&self, name: &str, plain: Vec<u8>) -> Vec<u8> {
        match &self.0 {
            None => plain,
            Some(sealer) => [MAGIC, &sealer.seal(&place_of(name), &plain)].concat(),
        }
    }

    /// What the file of that name says.
    ///
    /// # Errors
    /// It is sealed and there is no key, or the other way round, or it does not open.
    pub fn open(&self, name: &str, written: Vec<u8>) -> Result<Vec<u8>, SealError> {
        match (&self.0, written.strip_prefix(MAGIC)) {
            (None, None) => Ok(written),
            (None, Some(_)) => Err(SealError::Locked),
            (Some(_), None) => Err(SealError::NotSealed(name.to_owned())),
            (Some(sealer), Some(sealed)) => sealer
                .open(&place_of(name), sealed)
                .ok_or_else(|| SealError::Changed(name.to_owned())),
        }
    }
}

fn place_of(name: &str) -> Vec<u8> {
    [&[FILE_PLACE], name.as_bytes()].concat()
}

/// What opens a folder; none, if it is not encrypted. `is_new` folders are encrypted if there is a key.
///
/// # Errors
/// Folder and key do not go together.
pub(crate) fn open(
    folder: &Path,
    key: Option<&OperatorKey>,
    is_new: bool,
) -> Result<Option<Sealer>, SealError> {
    let Some(key) = key else {
        return match folder.join(FILE).try_exists()? {
            true => Err(SealError::Locked),
            false => Ok(None),
        };
    };
    match read(folder, key)? {
        Some(sealer) => Ok(Some(sealer)),
        None if is_new => create(folder, key).map(Some),
        None => Err(SealError::Plain),
    }
}

/// Draws a data key for a folder that has none.
pub(crate) fn create(folder: &Path, key: &OperatorKey) -> Result<Sealer, SealError> {
    if folder.join(FILE).try_exists()? {
        return Err(SealError::Already);
    }
    let data_key = Zeroizing::new(rand::random::<[u8; 32]>());
    write(folder, key, &data_key)?;
    Ok(Sealer::new(&data_key))
}

fn read(folder: &Path, key: &OperatorKey) -> Result<Option<Sealer>, SealError> {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(SealError::Damaged),
        read => read?,
    };
    unwrap(&text, key).map(|data_key| Some(Sealer::new(&data_key)))
}

/// Has another key of the operator's open a folder from now on; nothing else in it changes, and a node
/// may run on it meanwhile.
///
/// # Errors
/// The folder is not encrypted, the old key does not open it, or it cannot be written.
pub fn rekey(folder: &Path, old: &OperatorKey, new: &OperatorKey) -> Result<(), SealError> {
    let text = match fs::read_to_string(folder.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SealError::Plain),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(SealError::Damaged),
        read => read?,
    };
    let data_key = unwrap(&text, old)?;
    write(folder, new, &data_key)
}

fn unwrap(text: &str, key: &OperatorKey) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let mut lines = text.lines();
    let mut hex = || lines.next().and_then(|line| HEXLOWER.decode(line.as_bytes()).ok());
    // The first line is no hexadecimal number.
    if !text.starts_with(FIRST_LINE) || hex().is_some() {
        return Err(SealError::Damaged);
    }
    let parts = hex().zip(hex()).zip(hex());
    let ((id, nonce), sealed) = parts.ok_or(SealError::Damaged)?;
    if id.len() != key.id.len() || nonce.len() != NONCE_BYTES {
        return Err(SealError::Damaged);
    }
    if id != key.id {
        return Err(SealError::WrongKey { needed: HEXLOWER.encode(&id), given: key.id() });
    }
    let payload = Payload { msg: &sealed, aad: &key.associated() };
    let opened = key.cipher().decrypt(XNonce::from_slice(&nonce), payload);
    let opened = Zeroizing::new(opened.map_err(|_| SealError::Damaged)?);
    let mut data_key = Zeroizing::new([0; 32]);
    if opened.len() != data_key.len() {
        return Err(SealError::Damaged);
    }
    data_key.copy_from_slice(&opened);
    Ok(data_key)
}

/// In one step, so that a crash leaves the old key's file or the new one's.
fn write(folder: &Path, key: &OperatorKey, data_key: &[u8; 32]) -> Result<(), SealError> {
    // A key of the operator's seals few data keys: nonces that are drawn do not meet.
    let nonce: [u8; NONCE_BYTES] = rand::random();
    let payload = Payload { msg: data_key, aad: &key.associated() };
    let sealed = key.cipher().encrypt(&nonce.into(), payload).map_err(|_| SealError::Damaged)?;
    let parts = [&key.id[..], &nonce, &sealed].map(|part| HEXLOWER.encode(part));
    let text = format!("{FIRST_LINE}\n{}\n", parts.join("\n"));
    let fresh = folder.join("encryption.new");
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(fresh, folder.join(FILE))?;
    File::open(folder)?.sync_all()?;
    Ok(())
}
