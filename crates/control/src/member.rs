//! The coordinator's view of a worker: its session, its lease, what it holds.

use plan::{Epoch, Millis, ModelFacts};

use crate::input::{Hello, SessionId};

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

    /// Whether it could be given work.
    pub(crate) fn is_free(&self) -> bool {
        self.epoch.is_none() && !self.is_draining
    }
}
