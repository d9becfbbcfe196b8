//! The envelope of wire and disk, written here a second time: what a peer sends need not be made
//! by the codec, and mutated bytes have to come past its checksum.

/// A body in an envelope that is in order, whatever the body is.
pub fn seal(kind: u16, schema: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"CM".to_vec();
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&[schema, 0]);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The body of one envelope.
pub fn body(bytes: &[u8]) -> &[u8] {
    bytes.get(14..).unwrap_or_default()
}
