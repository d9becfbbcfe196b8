//! Reads bodies, and counts what they take of memory before it is taken.
//!
//! bincode's own reader makes room for whatever length a text claims, and elements of a list can
//! have one byte and take a hundred in memory. Here texts are taken from the bytes that are there,
//! and lists are paid for, element by element, from a budget that the body's size gives.

use std::mem::size_of;

use crate::message::StoreResult;
use bincode::{config, de::Decode, error::DecodeError};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// What lists may take for each byte of the body; none that a node sends takes as much.
const PER_BYTE: usize = 4;

/// What lists may take whatever the body's size: a thousand answers have one byte each.
const FREE_BYTES: usize = 64 << 10;

const _: () = assert!(1000 * size_of::<StoreResult>() <= FREE_BYTES);

/// The most that lists may take: what is larger than this is payload.
const MOST_BYTES: usize = 32 << 20;

/// How bincode writes unsigned numbers: those up to this one in one byte, larger ones behind a mark that says in
/// how many bytes. What is written most is read here, since that is most of what reading takes; bincode
/// reads all else.
const LARGEST_BYTE: u8 = 250;
const EIGHT_BYTES: u8 = 253;
const SIXTEEN_BYTES: u8 = 254;

/// How deep optional values may lie within each other; what a node sends does less.
const MOST_DEPTH: usize = 16;

/// The value that the body begins with, and how many bytes it has not used.
pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), DecodeError> {
    let room = body.len().saturating_mul(PER_BYTE).saturating_add(FREE_BYTES).min(MOST_BYTES);
    let mut reader = Reader { rest: body, room, depth: 0 };
    let value = T::deserialize(&mut reader)?;
    Ok((value, reader.rest.len()))
}

struct Reader<'a> {
    rest: &'a [u8],
    /// What lists may still take of memory.
    room: usize,
    /// How deep in optional values it is: what may lie within itself does so by one of these.
    depth: usize,
}

impl<'a> Reader<'a> {
    /// A number, or another value of fixed size, as bincode reads it.
    fn value<T: Decode<()>>(&mut self) -> Result<T, DecodeError> {
        let (value, read) = bincode::decode_from_slice(self.rest, config::standard())?;
        self.rest = &self.rest[read..];
        Ok(value)
    }

    /// The next byte, where it is a whole number by itself, as most are.
    #[inline]
    fn small(&mut self) -> Option<u8> {
        match self.rest {
            [number, rest @ ..] if *number <= LARGEST_BYTE => {
                self.rest = rest;
                Some(*number)
            }
            _ => None,
        }
    }

    /// The number in so many bytes behind a mark, where it is written so.
    #[inline]
    fn marked<const N: usize>(&mut self, mark: u8) -> Option<[u8; N]> {
        let (number, rest) = self.rest.strip_prefix(&[mark])?.split_first_chunk()?;
        self.rest = rest;
        Some(*number)
    }

    #[inline]
    fn u32(&mut self) -> Result<u32, DecodeError> {
        match self.small() {
            Some(small) => Ok(small.into()),
            None => self.value(),
        }
    }

    #[inline]
    fn u64(&mut self) -> Result<u64, DecodeError> {
        if let Some(small) = self.small() {
            return Ok(small.into());
        }
        match self.marked(EIGHT_BYTES) {
            Some(bytes) => Ok(u64::from_le_bytes(bytes)),
            None => self.value(),
        }
    }

    #[inline]
    fn u128(&mut self) -> Result<u128, DecodeError> {
        match self.marked(SIXTEEN_BYTES) {
            Some(bytes) => Ok(u128::from_le_bytes(bytes)),
            None => self.value(),
        }
    }

    #[inline]
    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (byte, rest) =
            self.rest.split_first().ok_or(DecodeError::UnexpectedEnd { additional: 1 })?;
        self.rest = rest;
        Ok(*byte)
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        let length = self.u64()?;
        // Whatever it counts has at least one byte: what is not there is not waited for.
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.rest.len())
            .ok_or(DecodeError::UnexpectedEnd { additional: 1 })
    }

    fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.length()?;
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|inner| DecodeError::Utf8 { inner })
    }

    fn claim(&mut self, bytes: usize) -> Result<(), DecodeError> {
        let left = self.room.checked_sub(bytes);
        self.room = left.ok_or_else(|| DecodeError::custom("its lists take too much memory"))?;
        Ok(())
    }
}

/// Values of fixed size.
macro_rules! values {
    ($($deserialize:ident $visit:ident)*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            visitor.$visit(self.value()?)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'_> {
    type Error = DecodeError;

    values! {
        deserialize_bool visit_bool
        deserialize_u16 visit_u16
        deserialize_i8 visit_i8
        deserialize_i16 visit_i16
        deserialize_i32 visit_i32
        deserialize_i64 visit_i64
        deserialize_i128 visit_i128
        deserialize_f32 visit_f32
        deserialize_f64 visit_f64
        deserialize_char visit_char
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u8(self.byte()?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u32(self.u32()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u64(self.u64()?)
    }

    fn deserialize_u128<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_u128(self.u128()?)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DecodeError> {
        Err(DecodeError::custom("a body does not say what it holds"))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_any(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_string(self.text()?.to_owned())
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_bytes(self.bytes()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_byte_buf(self.bytes()?.to_vec())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 if self.depth == MOST_DEPTH => Err(DecodeError::custom("it lies too deep in itself")),
            1 => {
                self.depth += 1;
                let value = visitor.visit_some(&mut *self)?;
                self.depth -= 1;
                Ok(value)
            }
            other => Err(DecodeError::custom(format_args!("{other} is neither none nor some"))),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let left = self.length()?;
        visitor.visit_seq(Elements { reader: self, left, paid: true })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let left = self.length()?;
        visitor.visit_map(Elements { reader: self, left, paid: true })
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        left: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_seq(Elements { reader: self, left, paid: false })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        visitor.visit_enum(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl<'de> EnumAccess<'de> for &mut Reader<'_> {
    type Error = DecodeError;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self), DecodeError> {
        let index = self.u32()?;
        Ok((seed.deserialize(index.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'_> {
    type Error = DecodeError;

    fn unit_variant(self) -> Result<(), DecodeError> {
        Ok(())
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_tuple(fields.len(), visitor)
    }
}

/// The rest of a list, a map or a struct.
struct Elements<'r, 'a> {
    reader: &'r mut Reader<'a>,
    left: usize,
    /// Whether each takes memory of its own; fields lie in their struct.
    paid: bool,
}

impl Elements<'_, '_> {
    fn next<'de, S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.element(seed).map(Some)
    }

    fn element<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, DecodeError> {
        if self.paid {
            self.reader.claim(size_of::<S::Value>())?;
        }
        seed.deserialize(&mut *self.reader)
    }
}

impl<'de> SeqAccess<'de> for Elements<'_, '_> {
    type Error = DecodeError;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        self.next(seed)
    }

    fn size_hint(&self) -> Option<usize> {
        // A list grows as it is paid for; one that is short is made in one go.
        Some(self.left.min(64))
    }
}

impl<'de> MapAccess<'de> for Elements<'_, '_> {
    type Error = DecodeError;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, DecodeError> {
        self.next(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<S::Value, DecodeError> {
        self.element(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether bytes are read as bincode reads them: the same number and as many bytes, or neither.
    fn as_bincode<T: DeserializeOwned + Decode<()> + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
        let theirs = bincode::decode_from_slice::<T, _>(bytes, config::standard()).ok();
        let ours = decode::<T>(bytes).ok().map(|(value, left)| (value, bytes.len() - left));
        assert_eq!(ours, theirs, "{bytes:?}");
    }

    #[test]
    fn numbers_are_read_as_bincode_reads_them() {
        as_bincode::<u8>(&[]);
        as_bincode::<u64>(&[]);
        for first in 0..=u8::MAX {
            for length in 1..=20 {
                for fill in [0, 1, 0x7f, 0xff] {
                    let mut bytes = vec![fill; length];
                    bytes.iter_mut().skip(1).step_by(3).for_each(|byte| *byte ^= 0x5a);
                    bytes[0] = first;
                    as_bincode::<u8>(&bytes);
                    as_bincode::<u16>(&bytes);
                    as_bincode::<u32>(&bytes);
                    as_bincode::<u64>(&bytes);
                    as_bincode::<u128>(&bytes);
                    as_bincode::<i64>(&bytes);
                    as_bincode::<bool>(&bytes);
                }
            }
        }
    }
}
