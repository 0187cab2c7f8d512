//! CRC-32C of what travels, with the widest instructions the processor has.

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    append(0, bytes)
}

/// The checksum of what `crc` is of, followed by `bytes`.
pub fn append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    #[test]
    fn another_library_finds_the_same_however_bytes_are_cut() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|idx| (idx.wrapping_mul(0x9E37_79B1) >> 24) as u8).collect();
        for (offset, n_bytes) in [(0, 0), (1, 1), (3, 71), (5, 255), (0, 256), (7, 1023), (2, 16_384), (9, 69_000)] {
            let part = &bytes[offset..offset + n_bytes];
            assert_eq!(super::crc32c(part), crc32c::crc32c(part), "{n_bytes} bytes from {offset}");
            let (front, back) = part.split_at(n_bytes / 3);
            assert_eq!(super::append(super::crc32c(front), back), crc32c::crc32c(part), "{n_bytes} bytes in two parts");
        }
    }
}
