//! How an attempt gets on: steps, a stop, a picture. What becomes of one that fails is in `control/failing.rs`.

use plan::{Epoch, ImageId, WorkerId};

use super::Control;
use crate::job::{ArtifactRef, Image, Phase};
use crate::member::Member;
use crate::output::Output;

impl Control {
    /// Takes in that a step is done. Whether it was news.
    pub(super) fn step_kept(&mut self, epoch: Epoch, n_steps_done: usize) -> bool {
        let Some(attempt) = self.attempts.get(&epoch) else {
            self.counters.old_epoch += 1;
            return false;
        };
        let (image, seats) = (attempt.image.clone(), attempt.seats.clone());
        let n_steps = self.jobs.get(&image.job).map_or(0, |job| job.spec.request.steps as usize);
        if self.image(&image).is_none_or(|image| n_steps_done <= image.n_steps_done) || n_steps_done > n_steps {
            return false;
        }
        self.change(&image, |image| {
            image.n_steps_done = n_steps_done;
            (image.n_failures, image.n_losses, image.n_tries) = (0, 0, 0);
            image.avoid.clear();
            image.message.clear();
        });
        for worker in seats {
            self.healths.entry(worker).or_default().proved();
        }
        if let Some(attempt) = self.attempts.get_mut(&epoch) {
            attempt.progress_at = self.now;
        }
        true
    }

    /// Written down, since it says what ranks that come back after a restart may have left behind.
    pub(super) fn decoding(&mut self, worker: &WorkerId, epoch: Epoch) {
        self.has_progressed(worker, epoch);
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        if !std::mem::replace(&mut attempt.is_decoding, true) {
            let image = attempt.image.clone();
            self.change(&image, |_| {});
        }
    }

    pub(super) fn step_taken(&mut self, worker: &WorkerId, epoch: Epoch, compute_ms: f64) {
        self.has_progressed(worker, epoch);
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        let Some(rank) = attempt.rank_of(worker) else { return };
        let is_guided = self.jobs.get(&attempt.image.job).is_some_and(|job| job.spec.request.is_guided());
        attempt.measured(rank, is_guided, compute_ms);
        if let Some(job) = self.jobs.get(&attempt.image.job) {
            // Ranks take about as long as each other: that is what rows are shared out for.
            let all_ms = compute_ms * attempt.seats.len() as f64;
            self.costs.measured(&job.spec.model, job.spec.request.size, all_ms);
        }
        self.learn_speeds(epoch);
        self.set_patience(epoch);
    }

    /// Speeds of members by the paces of their ranks, which tell how they compare; what they add up to stays what the
    /// probes said. They outlive the attempt: the next image is split by them from its first step on.
    pub(crate) fn learn_speeds(&mut self, epoch: Epoch) {
        let Some(attempt) = self.attempts.get(&epoch) else { return };
        let Some(paces) = attempt.known_paces().filter(|paces| paces.len() > 1) else { return };
        let speeds = attempt.seats.iter().map(|seat| self.members.get(seat).map_or(0.0, |member| member.speed));
        let scale = speeds.sum::<f64>() / paces.iter().sum::<f64>();
        for (seat, pace) in attempt.seats.iter().zip(paces) {
            if let Some(member) = self.members.get_mut(seat) {
                member.speed = Member::usable(pace * scale);
            }
        }
    }

    pub(super) fn stopped(&mut self, worker: &WorkerId, epoch: Epoch) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        let Some(rank) = attempt.rank_of(worker) else { return };
        // It was taken for lost with its last words.
        if attempt.suspicion.as_ref().is_some_and(|suspicion| suspicion.lost.as_ref() == Some(worker)) {
            attempt.suspicion = None;
        }
        let stopped = attempt.stopped.get_or_insert_default();
        stopped.insert(rank);
        if stopped.len() < attempt.seats.len() {
            return;
        }
        let for_speed = attempt.stops_for_speed;
        let Some(attempt) = self.attempts.remove(&epoch) else { return };
        self.free(&attempt.seats, epoch);
        self.change(&attempt.image, |image| {
            (image.phase, image.epoch) = (Phase::Queued, None);
            image.n_resplits = image.n_resplits.saturating_add(u32::from(for_speed));
        });
    }

    pub(super) fn finished(&mut self, epoch: Epoch, artifact: ArtifactRef) {
        let Some(attempt) = self.attempts.remove(&epoch) else { return };
        self.free(&attempt.seats, epoch);
        let n_steps = self.jobs.get(&attempt.image.job).map_or(0, |job| job.spec.request.steps as usize);
        self.change(&attempt.image, |image| {
            (image.phase, image.epoch, image.artifact) = (Phase::Done, None, Some(artifact));
            image.n_steps_done = n_steps;
            image.message.clear();
        });
        self.put(Output::DropCheckpoint { image: attempt.image });
    }

    pub(super) fn artifact_refused(&mut self, epoch: Epoch, message: String) {
        let Some(attempt) = self.attempts.get(&epoch) else {
            self.counters.old_epoch += 1;
            return;
        };
        let image = attempt.image.clone();
        // Its worker tries again every few seconds: once is enough to be told.
        if self.image(&image).is_some_and(|image| image.message != message) {
            self.change(&image, |image| image.message = message);
        }
    }

    /// A finished image has lost its picture: a client may ask for it again.
    pub(super) fn picture_lost(&mut self, id: &ImageId, sha256: &str, message: String) {
        let has_it = |image: &&Image| image.artifact.as_ref().is_some_and(|artifact| artifact.sha256 == sha256);
        if self.image(id).filter(has_it).is_none() {
            return;
        }
        self.change(id, |image| {
            (image.phase, image.artifact, image.message) = (Phase::Failed, None, message);
        });
    }
}
