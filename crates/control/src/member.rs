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
        self.epoch.is_none() && !self.is_draining
    }

    pub(crate) fn state(&self) -> MemberState {
        match self.epoch {
            _ if self.is_draining => MemberState::Draining,
            Some(_) => MemberState::Busy,
            None => MemberState::Idle,
        }
    }
}
