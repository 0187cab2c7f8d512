//! The fixed layout of an `ExchangeRequest`: what stands before a tensor's memory, and the checksum behind it.
//!
//! Written and read by hand, byte for byte as protobuf would (a test compares), because a protobuf library
//! would copy the tensor into the message and out of it.

use bytes::{BufMut, BytesMut};
use plan::{Epoch, Rank};
use wire::checksum;
use wire::v1::exchange_request as proto;

use crate::Tag;
use crate::payload::Dtype;

/// Bytes of gRPC's prefix: compressed or not, and the message's length.
pub(crate) const PREFIX_BYTES: usize = 5;
/// Bytes of the fields before the payload.
pub(crate) const HEADER_BYTES: usize = 76;
/// Bytes of the checksum behind the payload.
pub(crate) const TRAILER_BYTES: usize = 5;
/// Most bytes of a message beside its payload.
pub(crate) const OVERHEAD_BYTES: usize = PREFIX_BYTES + HEADER_BYTES + 1 + MAX_VARINT_BYTES + TRAILER_BYTES;
/// Bytes of the header that its checksum covers.
const CHECKED_BYTES: usize = HEADER_BYTES - 5;
/// Most bytes the payload's length takes: a message is at most `u32::MAX` bytes.
pub(crate) const MAX_VARINT_BYTES: usize = 5;
/// The largest payload that fits into one gRPC message.
pub(crate) const MAX_PAYLOAD_BYTES: u64 =
    (u32::MAX as usize - HEADER_BYTES - TRAILER_BYTES - MAX_VARINT_BYTES - 1) as u64;

const MAGIC: u32 = u32::from_le_bytes(*b"FXT1");
const VERSION: u32 = 1;

/// A field's key: its number and how it is written.
const fn key(number: u8, wire_type: u8) -> u8 {
    number << 3 | wire_type
}
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

pub(crate) const PAYLOAD_KEY: u8 = key(14, DELIMITED);
const TRAILER_KEY: u8 = key(15, FIXED32);

/// One direction between two ranks in one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkKey {
    pub(crate) epoch: Epoch,
    pub(crate) from: Rank,
    pub(crate) to: Rank,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello,
    Tensor,
    Probe,
}

/// What a request says about its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) link: LinkKey,
    pub(crate) image: u64,
    pub(crate) tag: Tag,
    pub(crate) sequence: u64,
    pub(crate) dtype: Dtype,
    pub(crate) length: u64,
}

/// What is wrong with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("header does not match its checksum")]
    Checksum,
    #[error("not a tensor stream of version {VERSION}, or not in its fixed layout")]
    Layout,
}

impl Header {
    /// A request without a payload.
    pub(crate) fn bare(kind: Kind, link: LinkKey, image: u64, sequence: u64) -> Self {
        Self { kind, link, image, tag: Tag(0), sequence, dtype: Dtype::Bytes, length: 0 }
    }

    /// Appends everything before the payload, gRPC's prefix included. Returns the checksum so far, to be continued
    /// over the payload.
    pub(crate) fn encode(&self, out: &mut BytesMut) -> u32 {
        let varint_bytes = varint_bytes(self.length);
        let message_bytes = HEADER_BYTES + 1 + varint_bytes + self.length as usize + TRAILER_BYTES;
        out.reserve(OVERHEAD_BYTES);
        let start = out.len() + PREFIX_BYTES;
        out.put_u8(0);
        out.put_u32(message_bytes as u32);

        let kind = match self.kind {
            Kind::Hello => proto::Kind::Hello,
            Kind::Tensor => proto::Kind::Tensor,
            Kind::Probe => proto::Kind::Probe,
        };
        let dtype = match self.dtype {
            Dtype::Bytes => proto::Dtype::Bytes,
            Dtype::F32 => proto::Dtype::F32,
            Dtype::F64 => proto::Dtype::F64,
            Dtype::Bf16 => proto::Dtype::Bf16,
        };
        put_u32(out, 1, MAGIC);
        put_u32(out, 2, VERSION);
        put_enum(out, 3, kind as u8);
        put_u64(out, 4, self.link.epoch.0);
        put_u64(out, 5, self.image);
        put_u32(out, 6, self.link.from.0.into());
        put_u32(out, 7, self.link.to.0.into());
        put_u64(out, 8, self.tag.0);
        put_u64(out, 9, self.sequence);
        put_enum(out, 10, dtype as u8);
        put_enum(out, 11, proto::Codec::Unspecified as u8);
        put_u64(out, 12, self.length);
        let crc = checksum::crc32c(&out[start..]);
        put_u32(out, 13, crc);

        out.put_u8(PAYLOAD_KEY);
        let mut left = self.length;
        while left >= 0x80 {
            out.put_u8(left as u8 | 0x80);
            left >>= 7;
        }
        out.put_u8(left as u8);
        crc
    }

    /// Reads a header, and returns the checksum so far, to be continued over the payload.
    pub(crate) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<(Self, u32), HeaderError> {
        let mut fields = Fields { left: bytes };
        // What follows is unreadable unless this is a header at all; whether its values are right is told by
        // the checksum, which comes last.
        let (magic, version) = (fields.u32(1)?, fields.u32(2)?);
        if (magic, version) != (MAGIC, VERSION) {
            return Err(HeaderError::Layout);
        }
        let kind = fields.number(3)?;
        let epoch = Epoch(fields.u64(4)?);
        let image = fields.u64(5)?;
        let (from, to) = (fields.u32(6)?, fields.u32(7)?);
        let (tag, sequence) = (Tag(fields.u64(8)?), fields.u64(9)?);
        let (dtype, codec) = (fields.number(10)?, fields.number(11)?);
        let length = fields.u64(12)?;
        let crc = checksum::crc32c(&bytes[..CHECKED_BYTES]);
        if fields.u32(13)? != crc {
            return Err(HeaderError::Checksum);
        }

        let kind = match proto::Kind::try_from(i32::from(kind)) {
            Ok(proto::Kind::Hello) => Kind::Hello,
            Ok(proto::Kind::Tensor) => Kind::Tensor,
            Ok(proto::Kind::Probe) => Kind::Probe,
            Ok(proto::Kind::Unspecified) | Err(_) => return Err(HeaderError::Layout),
        };
        let dtype = match proto::Dtype::try_from(i32::from(dtype)) {
            Ok(proto::Dtype::Bytes) => Dtype::Bytes,
            Ok(proto::Dtype::F32) => Dtype::F32,
            Ok(proto::Dtype::F64) => Dtype::F64,
            Ok(proto::Dtype::Bf16) => Dtype::Bf16,
            Ok(proto::Dtype::Unspecified) | Err(_) => return Err(HeaderError::Layout),
        };
        let rank = |number: u32| u16::try_from(number).map(Rank).map_err(|_| HeaderError::Layout);
        let link = LinkKey { epoch, from: rank(from)?, to: rank(to)? };
        let is_whole = length.is_multiple_of(dtype.size_bytes() as u64);
        if codec != proto::Codec::Unspecified as u8 || !is_whole {
            return Err(HeaderError::Layout);
        }
        Ok((Self { kind, link, image, tag, sequence, dtype, length }, crc))
    }
}

/// Appends the checksum behind a payload.
pub(crate) fn put_trailer(out: &mut BytesMut, crc: u32) {
    put_u32(out, 15, crc);
}

/// The checksum a trailer holds, if it is one.
pub(crate) fn decode_trailer(bytes: &[u8; TRAILER_BYTES]) -> Option<u32> {
    let [TRAILER_KEY, crc @ ..] = *bytes else { return None };
    Some(u32::from_le_bytes(crc))
}

pub(crate) fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

fn put_u32(out: &mut BytesMut, number: u8, value: u32) {
    out.put_u8(key(number, FIXED32));
    out.put_u32_le(value);
}

fn put_u64(out: &mut BytesMut, number: u8, value: u64) {
    out.put_u8(key(number, FIXED64));
    out.put_u64_le(value);
}

fn put_enum(out: &mut BytesMut, number: u8, value: u8) {
    out.put_u8(key(number, VARINT));
    out.put_u8(value);
}

/// Takes fields off the front, each of which must have the number it is asked by.
struct Fields<'a> {
    left: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self, key: u8) -> Result<[u8; N], HeaderError> {
        let Some(([found], rest)) = self.left.split_first_chunk() else { return Err(HeaderError::Layout) };
        let Some((value, rest)) = rest.split_first_chunk::<N>() else { return Err(HeaderError::Layout) };
        self.left = rest;
        if *found == key { Ok(*value) } else { Err(HeaderError::Layout) }
    }

    fn u32(&mut self, number: u8) -> Result<u32, HeaderError> {
        self.take(key(number, FIXED32)).map(u32::from_le_bytes)
    }

    fn u64(&mut self, number: u8) -> Result<u64, HeaderError> {
        self.take(key(number, FIXED64)).map(u64::from_le_bytes)
    }

    fn number(&mut self, number: u8) -> Result<u8, HeaderError> {
        self.take::<1>(key(number, VARINT)).map(|[value]| value)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use wire::v1::ExchangeRequest;

    use super::*;

    fn header(length: u64) -> Header {
        let link = LinkKey { epoch: Epoch(1 << 40), from: Rank(0), to: Rank(65_535) };
        let (tag, sequence) = (Tag(u64::MAX), 7);
        Header { kind: Kind::Tensor, link, image: 5, tag, sequence, dtype: Dtype::F32, length }
    }

    fn whole(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        let crc = header.encode(&mut out);
        out.extend_from_slice(payload);
        put_trailer(&mut out, checksum::append(crc, payload));
        out.to_vec()
    }

    #[test]
    fn a_protobuf_library_reads_the_layout_and_writes_the_same_bytes() {
        for length in [0, 4, 124, 128, 16_384, 3 << 20] {
            let payload: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            let ours = whole(&header(length), &payload);
            let message = ExchangeRequest::decode(&ours[PREFIX_BYTES..]).expect("valid protobuf");
            assert_eq!(message.length, Some(length));
            assert_eq!(message.payload.as_deref(), Some(payload.as_slice()));
            assert_eq!(message.encode_to_vec(), ours[PREFIX_BYTES..]);
            assert_eq!(ours[1..PREFIX_BYTES], (ours.len() as u32 - 5).to_be_bytes());
        }
    }

    #[test]
    fn what_was_written_is_read() {
        for length in [0, 8, 1 << 31] {
            let mut bytes = BytesMut::new();
            let crc = header(length).encode(&mut bytes);
            let fixed = bytes[PREFIX_BYTES..][..HEADER_BYTES].try_into().expect("a header's length");
            assert_eq!(Header::decode(&fixed), Ok((header(length), crc)));
            assert_eq!(bytes.len(), PREFIX_BYTES + HEADER_BYTES + 1 + varint_bytes(length));
        }
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_seen() {
        let bytes = whole(&header(0), &[]);
        let fixed: [u8; HEADER_BYTES] = bytes[PREFIX_BYTES..][..HEADER_BYTES].try_into().expect("a header's length");
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = fixed;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&flipped).is_err(), "bit {bit}");
        }
    }
}
