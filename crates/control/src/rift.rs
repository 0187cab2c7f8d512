//! Pairs of workers that could not reach each other: both are well, the network between them is not, so for a while
//! they are put into no common team.

use std::collections::BTreeMap;

use plan::{Millis, WorkerId};

/// With so many others behind rifts it is the worker that cannot be reached, or reaches nobody: it works alone.
const MOST_RIFTS: usize = 3;

/// Every such pair, the lesser name first, and until when it is kept apart.
#[derive(Debug, Default)]
pub(crate) struct Rifts(BTreeMap<(WorkerId, WorkerId), Millis>);

impl Rifts {
    /// Keeps two workers apart for a while. Whether they were not yet.
    pub(crate) fn note(&mut self, (a, b): &(WorkerId, WorkerId), now: Millis, for_ms: u64) -> bool {
        self.0.retain(|_, until| *until > now);
        a != b && self.0.insert(in_order(a.clone(), b.clone()), now + for_ms).is_none()
    }

    /// A worker is another process now, or gone: what was between it and others says nothing of its next one.
    pub(crate) fn forget(&mut self, worker: &WorkerId) {
        self.0.retain(|(a, b), _| a != worker && b != worker);
    }

    /// Whether something is between a worker and any of `others`.
    pub(crate) fn part(&self, worker: &WorkerId, others: &[WorkerId], now: Millis) -> bool {
        let until = |other: &WorkerId| self.0.get(&in_order(worker.clone(), other.clone()));
        !self.0.is_empty()
            && (others.iter().filter_map(until).any(|until| *until > now)
                || others.iter().chain([worker]).any(|one| self.is_alone(one, now)))
    }

    fn is_alone(&self, worker: &WorkerId, now: Millis) -> bool {
        let is_its = |((a, b), until): &(&(WorkerId, WorkerId), &Millis)| (a == worker || b == worker) && **until > now;
        self.0.iter().filter(is_its).count() >= MOST_RIFTS
    }
}

fn in_order(a: WorkerId, b: WorkerId) -> (WorkerId, WorkerId) {
    if a <= b { (a, b) } else { (b, a) }
}
