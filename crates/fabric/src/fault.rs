//! For tests: what can go wrong between two ports, from a seed.
//!
//! Sits where a port's bytes leave, so that everything behind it (checksums, sequences, answers, connections)
//! works as in earnest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// How often each fault strikes, of 1,000 messages, and the seed that says which ones.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The same seed and the same messages give the same faults.
    pub seed: u64,
    /// Messages held back for `delay` before they leave.
    pub delayed_of_1000: u32,
    /// How long a delayed message is held back.
    pub delay: Duration,
    /// Messages and answers that never leave.
    pub dropped_of_1000: u32,
    /// Messages that leave twice.
    pub duplicated_of_1000: u32,
    /// Messages that leave behind the one after them.
    pub reordered_of_1000: u32,
    /// Messages in the midst of which the connection breaks.
    pub truncated_of_1000: u32,
    /// Messages and answers of which one bit is flipped.
    pub flipped_of_1000: u32,
    /// Streams begun so far: each has its own faults, or the same message would fail for ever.
    pub streams: Arc<AtomicU64>,
}

/// What happens to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    Delayed,
    Dropped,
    Duplicated,
    Reordered,
    /// The stream breaks after this many bytes.
    Truncated(u64),
    /// This bit is flipped.
    Flipped(u64),
}

/// The faults of one stream.
pub(crate) struct Sabotage {
    faults: Faults,
    random: u64,
}

impl Sabotage {
    pub(crate) fn new(faults: &Faults) -> Self {
        let stream = faults.streams.fetch_add(1, Ordering::Relaxed);
        Self { random: faults.seed ^ stream.wrapping_mul(0xA076_1D64_78BD_642F), faults: faults.clone() }
    }

    pub(crate) fn delay(&self) -> Duration {
        self.faults.delay
    }

    /// Draws what happens to a message of `n_bytes`.
    pub(crate) fn message(&mut self, n_bytes: u64) -> Fate {
        let at = self.draw() % n_bytes.max(1);
        let bit = at * 8 + self.draw() % 8;
        let faults = [
            (self.faults.delayed_of_1000, Fate::Delayed),
            (self.faults.dropped_of_1000, Fate::Dropped),
            (self.faults.duplicated_of_1000, Fate::Duplicated),
            (self.faults.reordered_of_1000, Fate::Reordered),
            (self.faults.truncated_of_1000, Fate::Truncated(at)),
            (self.faults.flipped_of_1000, Fate::Flipped(bit)),
        ];
        let mut drawn = (self.draw() % 1000) as u32;
        for (rate, fate) in faults {
            if drawn < rate {
                return fate;
            }
            drawn -= rate;
        }
        Fate::Sent
    }

    /// Spoils answers; false if they are lost.
    pub(crate) fn answer(&mut self, bytes: &mut BytesMut) -> bool {
        match self.message(bytes.len() as u64) {
            Fate::Dropped => return false,
            // gRPC's prefix is spared: a wrong length is a truncation, which has its own rate.
            Fate::Flipped(bit) if bit / 8 >= 5 => bytes[(bit / 8) as usize] ^= 1 << (bit % 8),
            _ => {}
        }
        true
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// `piece` with one bit flipped, in memory of its own: the sender's stays whole, to be sent again.
pub(crate) fn flip(piece: &Bytes, bit: u64) -> Bytes {
    let mut spoilt = piece.to_vec();
    spoilt[(bit / 8) as usize] ^= 1 << (bit % 8);
    spoilt.into()
}
