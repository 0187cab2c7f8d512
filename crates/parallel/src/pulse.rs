//! What can be seen of a rank from outside while it works: that it moves, and whether it waits for somebody else.
//!
//! Whoever holds the rank reads both and compares them with what was there before; a rank that neither moves nor waits
//! hangs. Leaves out clocks and limits: how long is too long is not known here.

use std::borrow::Borrow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// A rank's signs of life. Threads of one rank share it.
#[derive(Debug)]
pub struct Pulse {
    n_moves: AtomicU64,
    /// Threads of the rank, and whoever works for it beside them, that do not wait for anybody else.
    n_at_work: AtomicUsize,
}

impl Default for Pulse {
    /// Of a rank with one thread at work.
    fn default() -> Self {
        Self { n_moves: AtomicU64::new(0), n_at_work: AtomicUsize::new(1) }
    }
}

impl Pulse {
    /// A piece of work is done.
    pub fn beat(&self) {
        self.n_moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Pieces of work done so far.
    pub fn n_moves(&self) -> u64 {
        self.n_moves.load(Ordering::Relaxed)
    }

    /// Whether all that works for the rank waits for another rank or for the coordinator.
    pub fn waits(&self) -> bool {
        self.n_at_work.load(Ordering::SeqCst) == 0
    }

    /// Does `wait`, during which the calling thread is not at work.
    pub fn aside<T>(&self, wait: impl FnOnce() -> T) -> T {
        let _aside = self.aside_while();
        wait()
    }

    /// The calling thread is not at work for as long as the result lives.
    pub fn aside_while(&self) -> Aside<'_> {
        self.n_at_work.fetch_sub(1, Ordering::SeqCst);
        Aside(self)
    }

    /// Somebody more is at work for the rank for as long as the result lives.
    pub fn at_work_while<P: Borrow<Self>>(pulse: P) -> AtWork<P> {
        pulse.borrow().n_at_work.fetch_add(1, Ordering::SeqCst);
        AtWork(pulse)
    }
}

/// A thread of the rank that waits.
pub struct Aside<'a>(&'a Pulse);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.0.n_at_work.fetch_add(1, Ordering::SeqCst);
    }
}

/// Somebody at work beside the rank's first thread.
pub struct AtWork<P: Borrow<Pulse>>(P);

impl<P: Borrow<Pulse>> Drop for AtWork<P> {
    fn drop(&mut self) {
        self.0.borrow().n_at_work.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_waits_when_all_its_threads_do() {
        let pulse = Pulse::default();
        assert!(!pulse.waits());
        pulse.aside(|| assert!(pulse.waits()));
        let branches = [Pulse::at_work_while(&pulse), Pulse::at_work_while(&pulse)];
        let joining = pulse.aside_while();
        let first = pulse.aside_while();
        assert!(!pulse.waits(), "the second branch computes");
        let second = pulse.aside_while();
        assert!(pulse.waits());
        drop((first, second));
        assert!(!pulse.waits());
        drop(branches);
        drop(joining);
        assert!(!pulse.waits());
    }
}
