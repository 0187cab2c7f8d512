//! One device, two branches: whoever computes holds the turn, and gives it up while it waits for a tensor.
//!
//! So the branches of one rank hide each other's traffic, exactly: nothing is computed in another order within a
//! branch. The time the turn is held is the time the rank computed, a GPU's copies to and from the host included.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The right to compute on one rank's device.
#[derive(Default)]
pub struct Turn {
    device: Mutex<Duration>,
}

/// The turn, taken.
pub struct Held<'a> {
    turn: &'a Turn,
    computed: Option<(MutexGuard<'a, Duration>, Instant)>,
}

impl Turn {
    /// Waits for the turn.
    pub fn take(&self) -> Held<'_> {
        Held { turn: self, computed: Some((self.lock(), Instant::now())) }
    }

    /// How long the device computed so far; the turn must be free.
    pub fn computed(&self) -> Duration {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        // A duration is whole whatever its holder did.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held<'_> {
    /// Does `wait` without the turn.
    pub fn aside<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        self.give_up();
        let result = wait();
        self.computed = Some((self.turn.lock(), Instant::now()));
        result
    }

    fn give_up(&mut self) {
        if let Some((mut total, since)) = self.computed.take() {
            *total += since.elapsed();
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.give_up();
    }
}
