//! The one place that turns values into bytes and back, for the wire and for the disk.
//!
//! ```text
//! 0        2      4        5       6        10        14
//! | magic  | kind | schema | flags | length | crc32c  | bincode ...
//! ```
//! All numbers of the envelope are little-endian; the checksum covers the ten bytes before it and
//! the body. `kind` says which struct the body is, `schema` which frozen version of it. Whoever does
//! not know a kind can still skip it, keep it and pass it on byte for byte.

mod body;

use bincode::{enc::write::Writer, error::EncodeError};
use bytes::{BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The envelope's size.
pub const ENVELOPE_BYTES: usize = 14;

/// The largest body that is read or written.
pub const MAX_BODY_BYTES: usize = 64 << 20;

const MAGIC: [u8; 2] = *b"CM";

/// What the body is.
pub type Kind = u16;

/// The bytes are not what they should be. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Shorter than they say.
    #[error("{have} bytes where {need} are needed")]
    Short {
        /// How many there are.
        have: usize,
        /// How many there should be.
        need: usize,
    },
    /// Not ours.
    #[error("no envelope: the first bytes are {0:02x?}")]
    Magic([u8; 2]),
    /// Damaged.
    #[error("checksum of kind {kind:#x} does not match: the bytes are damaged")]
    Checksum {
        /// What it claims to be.
        kind: Kind,
    },
    /// Too much.
    #[error("a body of {0} bytes is over the limit of {MAX_BODY_BYTES}")]
    Long(usize),
    /// Another struct, or a newer version of it.
    #[error("kind {kind:#x} schema {schema} is not known here")]
    Unknown {
        /// The kind.
        kind: Kind,
        /// Its version.
        schema: u8,
    },
    /// The body does not fit its kind.
    #[error("body of kind {kind:#x} cannot be read: {reason}")]
    Body {
        /// The kind.
        kind: Kind,
        /// Why not.
        reason: String,
    },
}

/// A struct that has a kind and a frozen schema.
pub trait Encoded: Serialize + DeserializeOwned {
    /// What names it on the wire and on disk.
    const KIND: Kind;
    /// Which frozen version of it this is.
    const SCHEMA: u8 = 1;

    /// The version that this value is written as: a later one where nodes that do not know it are to pass
    /// over it.
    fn schema(&self) -> u8 {
        Self::SCHEMA
    }

    /// Whether a version can be read.
    fn reads(schema: u8) -> bool {
        schema == Self::SCHEMA
    }
}

/// An envelope that was read: whose body is still bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// What the body is.
    pub kind: Kind,
    /// Which version of it.
    pub schema: u8,
    /// The body.
    pub body: Bytes,
}

/// The value in its envelope.
pub fn encode<T: Encoded>(value: &T) -> Bytes {
    // Most values fit: what grows step by step is copied at each.
    let mut out = BytesMut::with_capacity(192);
    encode_into(value, &mut out);
    out.freeze()
}

/// Appends the value in its envelope.
pub fn encode_into<T: Encoded>(value: &T, out: &mut BytesMut) {
    let start = out.len();
    out.put_slice(&MAGIC);
    out.put_u16_le(T::KIND);
    out.put_u8(value.schema());
    out.put_u8(0);
    out.put_bytes(0, 8);
    // Writing to memory fails for no value of ours: none has a custom serializer that errs.
    bincode::serde::encode_into_writer(value, Out(out), bincode::config::standard())
        .expect("encoding to memory");
    let length = (out.len() - start - ENVELOPE_BYTES) as u32;
    out[start + 6..start + 10].copy_from_slice(&length.to_le_bytes());
    let crc = checksum(&out[start..start + 10], &out[start + ENVELOPE_BYTES..]);
    out[start + 10..start + ENVELOPE_BYTES].copy_from_slice(&crc.to_le_bytes());
}

struct Out<'a>(&'a mut BytesMut);

impl Writer for Out<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Many small pieces of bytes, which share the memory of a few large ones.
pub(crate) struct Pieces(BytesMut);

/// What pieces are cut from has at most this size: it stays as long as any piece of it.
const SHARED_BYTES: usize = 64 << 10;

impl Pieces {
    /// Room for so many bytes, which more may follow.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes.min(SHARED_BYTES)))
    }

    /// What is appended.
    pub(crate) fn take(&mut self, append: impl FnOnce(&mut BytesMut)) -> Bytes {
        append(&mut self.0);
        self.0.split().freeze()
    }

    /// A value in its envelope.
    pub(crate) fn encode<T: Encoded>(&mut self, value: &T) -> Bytes {
        self.take(|out| encode_into(value, out))
    }
}

/// Takes the next envelope off `bytes`.
///
/// # Errors
/// The bytes are short, damaged or no envelope; `bytes` is then unchanged.
pub fn split_envelope(bytes: &mut Bytes) -> Result<Envelope, DecodeError> {
    let (kind, schema, length) = read_head(bytes)?;
    let body = bytes.split_to(ENVELOPE_BYTES + length).slice(ENVELOPE_BYTES..);
    Ok(Envelope { kind, schema, body })
}

/// What the envelope at the front holds: its kind, its version and the size of its body, which is
/// there and sound.
fn read_head(bytes: &[u8]) -> Result<(Kind, u8, usize), DecodeError> {
    let need = |need: usize| match bytes.len() {
        have if have < need => Err(DecodeError::Short { have, need }),
        _ => Ok(()),
    };
    need(ENVELOPE_BYTES)?;
    if bytes[..2] != MAGIC {
        return Err(DecodeError::Magic([bytes[0], bytes[1]]));
    }
    let kind = u16::from_le_bytes([bytes[2], bytes[3]]);
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (length, crc) = (word(6) as usize, word(10));
    if length > MAX_BODY_BYTES {
        return Err(DecodeError::Long(length));
    }
    need(ENVELOPE_BYTES + length)?;
    if checksum(&bytes[..10], &bytes[ENVELOPE_BYTES..ENVELOPE_BYTES + length]) != crc {
        return Err(DecodeError::Checksum { kind });
    }
    Ok((kind, bytes[4], length))
}

/// The value of an envelope that holds nothing but it.
///
/// # Errors
/// The bytes are no such value, or there are more of them than there should be.
pub fn decode<T: Encoded>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (kind, schema, length) = read_head(bytes)?;
    let body = &bytes[ENVELOPE_BYTES..];
    if body.len() > length {
        return Err(DecodeError::Body {
            kind: T::KIND,
            reason: format!("{} bytes follow it", body.len() - length),
        });
    }
    read_body(kind, schema, body)
}

/// The value in an envelope.
///
/// # Errors
/// It is of another kind or schema, or its body does not fit.
pub fn open<T: Encoded>(envelope: &Envelope) -> Result<T, DecodeError> {
    read_body(envelope.kind, envelope.schema, &envelope.body)
}

fn read_body<T: Encoded>(kind: Kind, schema: u8, bytes: &[u8]) -> Result<T, DecodeError> {
    if kind != T::KIND || !T::reads(schema) {
        return Err(DecodeError::Unknown { kind, schema });
    }
    let (value, left) = body::decode(bytes)
        .map_err(|error| DecodeError::Body { kind, reason: error.to_string() })?;
    match left {
        0 => Ok(value),
        extra => Err(DecodeError::Body { kind, reason: format!("{extra} bytes too many") }),
    }
}

/// A value's bytes alone, for hashes.
pub(crate) fn encode_body<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard()).expect("encoding to memory")
}

/// Reads a value's bytes alone.
#[cfg(test)]
pub(crate) fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    body::decode(bytes).ok().and_then(|(value, left)| (left == 0).then_some(value))
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}
