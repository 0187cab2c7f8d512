//! One rank's place in one epoch: what arrived for it, and who waits for it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plan::{Epoch, Rank};

use crate::{FabricError, Payload, Tag};

/// How often a wait looks whether the peer is gone. Arrivals and aborts end a wait at once.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Takes a lock whether or not another thread died with it: everything behind these locks is consistent
/// between two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a notice, at most for `time`.
pub(crate) fn wait<'a, T>(notice: &Condvar, guard: MutexGuard<'a, T>, time: Duration) -> MutexGuard<'a, T> {
    notice.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0
}

pub(crate) struct Seat {
    epoch: Epoch,
    arrivals: Mutex<Arrivals>,
    notice: Condvar,
    born: Instant,
    /// By rank: when something last came from it, in ms since `born`.
    heard_ms: Vec<AtomicU64>,
}

#[derive(Default)]
struct Arrivals {
    tensors: HashMap<(Rank, Tag), Result<Payload, FabricError>>,
    aborted: bool,
}

impl Seat {
    pub(crate) fn new(epoch: Epoch, n_ranks: usize) -> Self {
        let heard_ms = (0..n_ranks).map(|_| AtomicU64::new(0)).collect();
        Self { epoch, arrivals: Mutex::default(), notice: Condvar::new(), born: Instant::now(), heard_ms }
    }

    /// Keeps what came for whoever asks. A tag is sent once, so nothing is replaced.
    pub(crate) fn put(&self, from: Rank, tag: Tag, tensor: Result<Payload, FabricError>) {
        self.hear(from);
        let mut arrivals = lock(&self.arrivals);
        if !arrivals.aborted {
            arrivals.tensors.entry((from, tag)).or_insert(tensor);
            self.notice.notify_all();
        }
    }

    /// Notes that bytes came from `from`, whole tensor or not.
    pub(crate) fn hear(&self, from: Rank) {
        if let Some(heard) = self.heard_ms.get(usize::from(from.0)) {
            heard.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// Ends every wait, forgets what came.
    pub(crate) fn abort(&self) {
        let mut arrivals = lock(&self.arrivals);
        arrivals.aborted = true;
        arrivals.tensors.clear();
        self.notice.notify_all();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        lock(&self.arrivals).aborted
    }

    /// Waits for a tensor until nothing came from its sender for `silence`, or `gone` says why nothing will.
    pub(crate) fn recv(
        &self,
        from: Rank,
        tag: Tag,
        silence: Duration,
        gone: impl Fn() -> Option<String>,
    ) -> Result<Payload, FabricError> {
        let Some(heard) = self.heard_ms.get(usize::from(from.0)) else {
            return Err(self.no_such_rank(from));
        };
        let began_ms = self.now_ms();
        let silence_ms = silence.as_millis() as u64;
        let mut arrivals = lock(&self.arrivals);
        loop {
            if arrivals.aborted {
                return Err(FabricError::Aborted { epoch: self.epoch });
            }
            if let Some(tensor) = arrivals.tensors.remove(&(from, tag)) {
                return tensor;
            }
            if let Some(reason) = gone() {
                return Err(FabricError::PeerGone { peer: from, reason });
            }
            let waited_ms = self.now_ms().saturating_sub(began_ms.max(heard.load(Ordering::Relaxed)));
            if waited_ms >= silence_ms {
                return Err(FabricError::Silent { peer: from, waited_ms });
            }
            let left = Duration::from_millis(silence_ms - waited_ms);
            arrivals = wait(&self.notice, arrivals, left.min(LOOK_AROUND));
        }
    }

    pub(crate) fn no_such_rank(&self, rank: Rank) -> FabricError {
        let reason = format!("epoch {} has {} ranks", self.epoch, self.heard_ms.len());
        FabricError::PeerGone { peer: rank, reason }
    }

    fn now_ms(&self) -> u64 {
        self.born.elapsed().as_millis() as u64
    }
}
