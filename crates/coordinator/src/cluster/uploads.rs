//! How many transfers of one seat are served at a time, and how long one may take.
//!
//! A worker has one upload of each kind under way, and another when a connection broke and nobody knows yet. More are a
//! defect or an attack: they are refused and cost nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use plan::{Epoch, Rank};
use tokio::time::Instant;
use tonic::{Status, Streaming};

/// Transfers of one seat at a time.
const MOST_OF_A_SEAT: usize = 4;
/// Slower than this no transfer goes on for long.
const LEAST_BYTES_PER_S: u64 = 16 << 10;

type Counts = Mutex<BTreeMap<(Epoch, Rank), usize>>;

/// Transfers under way.
#[derive(Clone, Default)]
pub(super) struct Uploads {
    counts: Arc<Counts>,
}

/// One transfer; over when it is dropped.
pub(super) struct Upload {
    counts: Arc<Counts>,
    seat: (Epoch, Rank),
}

impl Uploads {
    /// Counts one more; nothing if the seat has too many already.
    pub(super) fn begin(&self, epoch: Epoch, rank: Rank) -> Option<Upload> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry((epoch, rank)).or_default();
        if *count == MOST_OF_A_SEAT {
            return None;
        }
        *count += 1;
        Some(Upload { counts: Arc::clone(&self.counts), seat: (epoch, rank) })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.seat) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.seat)),
        }
    }
}

/// How long a transfer may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    part_within: Duration,
    deadline: Instant,
}

impl Limits {
    /// Of a transfer that begins now, of which the next part must come within `part_within`.
    pub(super) fn of(part_within: Duration, n_bytes: u64) -> Self {
        let most = 2 * part_within + Duration::from_secs(n_bytes / LEAST_BYTES_PER_S);
        let now = Instant::now();
        // Whatever is announced, a day is enough.
        Self { part_within, deadline: now + most.min(Duration::from_secs(86_400)) }
    }

    /// The next part of what is sent. A sender that says nothing, or a few bytes now and then, holds nothing here.
    pub(super) async fn next<T>(&self, parts: &mut Streaming<T>) -> Result<Option<T>, Status> {
        let by = self.deadline.min(Instant::now() + self.part_within);
        let next = tokio::time::timeout_at(by, parts.message()).await;
        next.map_err(|_| Status::deadline_exceeded("the next part did not come in time"))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_has_a_few_transfers_at_a_time_and_others_are_not_kept_from_theirs() {
        let uploads = Uploads::default();
        let seat = |rank| uploads.begin(Epoch(1), Rank(rank));
        let mut held: Vec<_> = std::iter::from_fn(|| seat(0)).collect();
        assert_eq!(held.len(), MOST_OF_A_SEAT);
        assert!(seat(1).is_some());
        held.pop();
        assert!(seat(0).is_some());
        drop(held);
        assert!(uploads.counts.lock().expect("nobody panicked").is_empty());
    }
}
