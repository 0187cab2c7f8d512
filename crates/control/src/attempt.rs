//! One attempt at an image: who sits where, what was measured, whether it is to stop.

use std::collections::BTreeSet;

use plan::{Epoch, ImageId, Mesh, Millis, Rank, WorkerId};
use serde::{Deserialize, Serialize};

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Its number.
    pub epoch: Epoch,
    /// At which image.
    pub image: ImageId,
    /// Who does what.
    pub mesh: Mesh,
    /// Every rank's worker.
    pub seats: Vec<WorkerId>,
    /// Steps that were done when it began.
    pub n_steps_before: usize,
    /// Ranks that stopped; none while nobody was asked to.
    #[serde(skip)]
    pub(crate) stopped: Option<BTreeSet<Rank>>,
    #[serde(skip)]
    pub(crate) is_decoding: bool,
    /// After a restart: ranks that are back, until when the others may come.
    #[serde(skip)]
    pub(crate) reattaching: Option<(BTreeSet<Rank>, Millis)>,
    /// Speed of each rank as measured: rows × branches a millisecond, smoothed.
    pub(crate) paces: Vec<Option<f64>>,
}

impl Attempt {
    /// An attempt that begins behind `n_steps_before` steps.
    pub fn new(epoch: Epoch, image: ImageId, mesh: Mesh, seats: Vec<WorkerId>, n_steps_before: usize) -> Self {
        let paces = vec![None; seats.len()];
        Self { epoch, image, mesh, seats, n_steps_before, stopped: None, is_decoding: false, reattaching: None, paces }
    }

    /// The rank `worker` sits at.
    pub(crate) fn rank_of(&self, worker: &WorkerId) -> Option<Rank> {
        self.seats.iter().position(|seat| seat == worker).map(|rank| Rank(rank as u16))
    }

    /// Takes in how long a rank computed in a step.
    pub(crate) fn measured(&mut self, rank: Rank, is_guided: bool, compute_ms: f64) {
        const WEIGHT: f64 = 0.5;
        if !compute_ms.is_finite() || compute_ms <= 0.0 || usize::from(rank.0) >= self.seats.len() {
            return;
        }
        let work = (self.mesh.band(rank).n_rows() * self.mesh.branches(rank, is_guided).len()) as f64;
        let pace = work / compute_ms;
        let smoothed = &mut self.paces[usize::from(rank.0)];
        *smoothed = Some(smoothed.map_or(pace, |before| before + WEIGHT * (pace - before)));
    }

    /// Length of a step of this mesh for ranks of these speeds, in the measure of [`Mesh::choose`].
    pub(crate) fn cost(&self, is_guided: bool, speeds: &[f64]) -> f64 {
        let of = |rank: Rank| {
            let work = self.mesh.band(rank).n_rows() * self.mesh.branches(rank, is_guided).len();
            work as f64 / speeds[usize::from(rank.0)].max(f64::MIN_POSITIVE)
        };
        self.mesh.ranks().map(of).fold(0.0, f64::max)
    }
}
