//! The coordinator's view of a worker: its session, its lease, what it holds.

use plan::{Epoch, Millis, ModelFacts, WorkerId};

use crate::input::{Hello, SessionId};

/// What a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// Nothing.
    Idle,
    /// An image.
    Busy,
    /// Its last image, or nothing any more.
    Draining,
    /// Nothing for a while, after failures in a row or while a thread of it does not end.
    Quarantined,
}

/// A worker as others may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Its name.
    pub worker: WorkerId,
    /// What it is at.
    pub state: MemberState,
    /// The session it is in.
    pub session: SessionId,
    /// Since it last said something.
    pub silent_ms: u64,
}

/// A worker that is in.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) session: SessionId,
    pub(crate) hello: Hello,
    pub(crate) lease_until: Millis,
    pub(crate) is_draining: bool,
    /// The attempt it holds a seat in.
    pub(crate) epoch: Option<Epoch>,
    /// Arithmetic in a second; the probe's until steps were measured.
    pub(crate) speed: f64,
    /// Whether its session is open. Without one it keeps its seat for a moment and is given nothing.
    pub(crate) is_connected: bool,
    /// Whether a rank of it made no progress and its thread has not ended.
    pub(crate) is_stuck: bool,
    /// What its rank's thread said of itself.
    pub(crate) progress: Progress,
}

/// How far a rank's thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// As the worker counts it.
    n_done: u64,
    /// When it last grew, or when the thread last waited for others.
    pub(crate) at: Millis,
    /// Whether it waits for another rank or the coordinator.
    pub(crate) waits: bool,
}

impl Progress {
    /// Of a rank that begins at `now`.
    pub(crate) fn new(now: Millis) -> Self {
        Self { n_done: 0, at: now, waits: false }
    }

    /// Takes in what the worker says. Whether there is progress.
    pub(crate) fn heard(&mut self, n_done: u64, waits: bool, now: Millis) -> bool {
        let has_grown = n_done != self.n_done;
        if has_grown || waits {
            self.at = now;
        }
        (self.n_done, self.waits) = (n_done, waits);
        has_grown
    }

    /// A step or the picture came out of it.
    pub(crate) fn stepped(&mut self, now: Millis) {
        (self.at, self.waits) = (now, false);
    }
}

impl Member {
    /// The weights it holds under this name.
    pub(crate) fn facts(&self, model: &str) -> Option<&ModelFacts> {
        self.hello.models.iter().find(|facts| facts.id.name == model)
    }

    /// Whether the two may work at one image: the same weights of its model, and bytes that are equal.
    pub(crate) fn equals(&self, other: &Self, model: &str) -> bool {
        let facts = self.facts(model);
        facts.is_some() && facts == other.facts(model) && self.hello.numeric_class == other.hello.numeric_class
    }

    /// A speed that can be divided by and summed, whatever a probe says.
    pub(crate) fn usable(speed: f64) -> f64 {
        const MOST: f64 = 1e30;
        if speed.is_finite() { speed.clamp(1.0, MOST) } else { 1.0 }
    }

    /// It was too slow for a seat. Whatever made it so may be over, which only a step it takes can tell: little by
    /// little it is believed again what its probe said.
    pub(crate) fn is_passed_over(&mut self) {
        const REGAINED: f64 = 1.1;
        let most = Self::usable(self.hello.flop_per_s).max(self.speed);
        self.speed = (self.speed * REGAINED).min(most);
    }

    /// Whether it could be given work.
    pub(crate) fn is_free(&self) -> bool {
        self.epoch.is_none() && !self.is_draining && self.is_connected && !self.is_stuck
    }

    pub(crate) fn state(&self) -> MemberState {
        match self.epoch {
            _ if self.is_draining => MemberState::Draining,
            Some(_) => MemberState::Busy,
            None if self.is_stuck => MemberState::Quarantined,
            None => MemberState::Idle,
        }
    }
}
