//! One attempt at an image: who sits where, what was measured, whether it is to stop.

use std::collections::BTreeSet;

use plan::{Epoch, ImageId, Mesh, Millis, Rank, WorkerId};
use serde::{Deserialize, Serialize};

use crate::pace::Pace;

/// A sign that an attempt has failed: the cause may still come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Suspicion {
    pub(crate) due: Millis,
    pub(crate) message: String,
    /// Whose part is lost together with its session; else a rank blamed another.
    pub(crate) lost: Option<WorkerId>,
    /// Who blames whom.
    pub(crate) rifts: Vec<(WorkerId, WorkerId)>,
}

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
    /// Every rank's process.
    pub(crate) incarnations: Vec<String>,
    /// Steps that were done when it began.
    pub n_steps_before: usize,
    /// Ranks that stopped; none while nobody was asked to.
    #[serde(skip)]
    pub(crate) stopped: Option<BTreeSet<Rank>>,
    /// Whether it stops for nothing but to be split anew by speed.
    #[serde(skip)]
    pub(crate) stops_for_speed: bool,
    /// Whether all steps are done and the ranks make pixels of them.
    pub(crate) is_decoding: bool,
    /// Why it will be given up if nobody says more.
    #[serde(skip)]
    pub(crate) suspicion: Option<Suspicion>,
    /// Workers that were free when it began and would not have made it faster.
    #[serde(skip)]
    pub(crate) passed_over: BTreeSet<WorkerId>,
    /// After a restart: ranks that are back, until when the others may come.
    #[serde(skip)]
    pub(crate) reattaching: Option<(BTreeSet<Rank>, Millis)>,
    /// When a rank last made progress.
    #[serde(skip)]
    pub(crate) progress_at: Millis,
    /// How long each rank may stand still.
    #[serde(skip)]
    pub(crate) patience_ms: Vec<u64>,
    /// How fast each rank is. Not written down: a few steps tell it again.
    #[serde(skip)]
    pub(crate) paces: Vec<Pace>,
}

impl Attempt {
    /// An attempt that begins behind `n_steps_before` steps.
    pub(crate) fn new(
        epoch: Epoch,
        image: ImageId,
        mesh: Mesh,
        (seats, incarnations): (Vec<WorkerId>, Vec<String>),
        n_steps_before: usize,
        now: Millis,
    ) -> Self {
        let paces = vec![Pace::default(); seats.len()];
        Self {
            epoch,
            image,
            mesh,
            seats,
            incarnations,
            n_steps_before,
            stopped: None,
            stops_for_speed: false,
            is_decoding: false,
            suspicion: None,
            passed_over: BTreeSet::new(),
            reattaching: None,
            progress_at: now,
            patience_ms: Vec::new(),
            paces,
        }
    }

    /// Whether this process of `worker` was given a seat.
    pub(crate) fn seats_process(&self, worker: &WorkerId, incarnation: &str) -> bool {
        self.seats.iter().zip(&self.incarnations).any(|(seat, given)| seat == worker && given == incarnation)
    }

    /// A rank is back after a restart; with the last of them, nobody is waited for.
    pub(crate) fn reattach(&mut self, rank: Rank) {
        if let Some((back, _)) = self.reattaching.as_mut() {
            back.insert(rank);
            if back.len() == self.seats.len() {
                self.reattaching = None;
            }
        }
    }

    /// When it is given up, if nothing happens before.
    pub(crate) fn due(&self) -> Option<Millis> {
        let suspected = self.suspicion.as_ref().map(|suspicion| suspicion.due);
        suspected.or(self.reattaching.as_ref().map(|(_, until)| *until))
    }

    /// The rank `worker` sits at.
    pub(crate) fn rank_of(&self, worker: &WorkerId) -> Option<Rank> {
        self.seats.iter().position(|seat| seat == worker).map(|rank| Rank(rank as u16))
    }

    /// Takes in how long a rank computed in a step.
    pub(crate) fn measured(&mut self, rank: Rank, is_guided: bool, compute_ms: f64) {
        let work = self.work(rank, is_guided);
        // After a restart there is no place for them yet.
        self.paces.resize_with(self.seats.len(), Pace::default);
        if let Some(pace) = self.paces.get_mut(usize::from(rank.0)) {
            pace.measured(work, compute_ms);
        }
    }

    /// What `rank` does in a step: token rows × branches.
    pub(crate) fn work(&self, rank: Rank, is_guided: bool) -> f64 {
        (self.mesh.band(rank).n_rows() * self.mesh.branches(rank, is_guided).len()) as f64
    }

    /// The pace of every rank, once all are known.
    pub(crate) fn known_paces(&self) -> Option<Vec<f64>> {
        self.paces.iter().map(Pace::median).collect::<Option<Vec<f64>>>().filter(|paces| !paces.is_empty())
    }

    /// Length of a step of this mesh for ranks of these speeds, in the measure of [`Mesh::choose`].
    pub(crate) fn cost(&self, is_guided: bool, speeds: &[f64]) -> f64 {
        let of = |(rank, speed): (Rank, &f64)| self.work(rank, is_guided) / speed.max(f64::MIN_POSITIVE);
        self.mesh.ranks().zip(speeds).map(of).fold(0.0, f64::max)
    }
}
