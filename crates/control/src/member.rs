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

    pub(crate) fn is_free(&self) -> bool {
        self.epoch.is_none() && !self.is_draining
    }
}
