//! What becomes of an attempt: steps, a stop, a picture, a failure.

use plan::{Cause, Epoch, ImageId, Rank, WorkerId};

use super::Control;
use crate::attempt::{Attempt, Suspicion};
use crate::job::{ArtifactRef, Image, Phase};
use crate::member::Member;
use crate::output::Output;

/// What a second value that is not finite makes of an image: it fails.
const MOST_NOT_FINITE: u32 = 2;
/// Nor is it tried a third time where a worker's program went wrong: one worker may be sick, two are not.
const MOST_BUGS: u32 = 2;

impl Control {
    /// Takes in that a step is done. Whether it was news.
    pub(super) fn step_kept(&mut self, epoch: Epoch, n_steps_done: usize) -> bool {
        let Some(attempt) = self.attempts.get(&epoch) else {
            self.counters.old_epoch += 1;
            return false;
        };
        let image = attempt.image.clone();
        let n_steps = self.jobs.get(&image.job).map_or(0, |job| job.spec.request.steps as usize);
        if self.image(&image).is_none_or(|image| n_steps_done <= image.n_steps_done) || n_steps_done > n_steps {
            return false;
        }
        self.change(&image, |image| {
            image.n_steps_done = n_steps_done;
            (image.n_failures, image.n_losses) = (0, 0);
            image.message.clear();
        });
        true
    }

    /// Written down, since it says what ranks that come back after a restart may have left behind.
    pub(super) fn decoding(&mut self, epoch: Epoch) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        if !std::mem::replace(&mut attempt.is_decoding, true) {
            let image = attempt.image.clone();
            self.change(&image, |_| {});
        }
    }

    pub(super) fn step_taken(&mut self, worker: &WorkerId, epoch: Epoch, compute_ms: f64) {
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

    pub(super) fn failed(
        &mut self,
        worker: &WorkerId,
        epoch: Epoch,
        cause: Cause,
        (message, blamed): (String, Option<Rank>),
    ) {
        let now = self.now;
        if cause == Cause::Peer {
            // Somebody else is at fault, who may still say why, or be lost; both decide better than this report.
            let pause_ms = self.attempts.get(&epoch).map_or(0, |attempt| self.backoff_ms(&attempt.image));
            if let Some(attempt) = self.attempts.get_mut(&epoch) {
                let blamed = blamed.and_then(|rank| attempt.seats.get(usize::from(rank.0)).cloned());
                let suspicion = Suspicion { due: now + pause_ms, message, is_loss: false, rifts: Vec::new() };
                let suspicion = attempt.suspicion.get_or_insert(suspicion);
                suspicion.rifts.extend(blamed.map(|blamed| (worker.clone(), blamed)));
            }
            return;
        }
        self.counters.not_finite += u64::from(cause == Cause::NotFinite);
        let Some(attempt) = self.attempts.get(&epoch) else { return };
        self.counters.cut_by_failure += u64::from(!attempt.is_decoding);
        let most = self.config.most_failures;
        let (not_before, rank) = (now + self.backoff_ms(&attempt.image), attempt.rank_of(worker));
        self.requeue(epoch, None, |image| {
            image.n_failures = image.n_failures.saturating_add(1);
            image.not_before = not_before;
            image.message = message;
            image.avoid.insert(worker.clone());
            let is_final = match cause {
                Cause::Input => true,
                Cause::Bug => {
                    image.n_bugs = image.n_bugs.saturating_add(1);
                    image.n_bugs >= MOST_BUGS
                }
                Cause::NotFinite => {
                    image.n_not_finite = image.n_not_finite.saturating_add(1);
                    image.n_not_finite >= MOST_NOT_FINITE
                }
                Cause::Device | Cause::Peer => image.n_failures >= most,
            };
            if is_final {
                image.phase = Phase::Failed;
            }
            if is_final && cause == Cause::NotFinite {
                let (rank, n) = (rank.map_or(0, |rank| rank.0), image.n_steps_done);
                let last = format!("tried twice, last by worker {worker} as rank {rank} with {n} steps done");
                image.message = format!("{} ({last})", image.message);
            }
        });
    }

    /// Ends attempts whose time is up: nobody said more than that it fails, or a rank did not come back.
    pub(super) fn give_up_overdue(&mut self) {
        let is_due = |attempt: &&Attempt| attempt.due().is_some_and(|due| due <= self.now);
        let overdue: Vec<Epoch> = self.attempts.values().filter(is_due).map(|attempt| attempt.epoch).collect();
        let most = self.config.most_failures;
        for epoch in overdue {
            let Some(attempt) = self.attempts.get(&epoch) else { continue };
            match attempt.suspicion.clone() {
                Some(Suspicion { message, is_loss: true, .. }) => self.requeue_after_loss(epoch, None, message),
                Some(Suspicion { message, rifts, .. }) => {
                    // Nobody was lost and nobody said more: the two cannot reach each other. Who were not known to be
                    // apart are no fault of the image's.
                    let (now, for_ms) = (self.now, self.config.rift_ms);
                    let n_new = rifts.into_iter().filter(|rift| self.rifts.note(rift, now, for_ms)).count();
                    self.requeue(epoch, None, |image| {
                        image.n_failures = image.n_failures.saturating_add(u32::from(n_new == 0));
                        image.message = message;
                        if image.n_failures >= most {
                            image.phase = Phase::Failed;
                        }
                    });
                }
                None => self.requeue(epoch, None, |image| {
                    image.message = "a worker did not come back after the restart".into();
                }),
            }
        }
    }

    /// How long an image rests after its next failure.
    fn backoff_ms(&self, image: &ImageId) -> u64 {
        const MOST_DOUBLINGS: u32 = 10;
        let n_failures = self.image(image).map_or(0, |image| image.n_failures);
        let first_ms = self.config.backoff_ms.max(self.config.lease_ttl_ms / 30);
        first_ms.saturating_mul(1 << (2 * n_failures).min(MOST_DOUBLINGS))
    }

    /// Ends an attempt that lost a member; its image goes on without it, unless it loses one after the other.
    pub(super) fn requeue_after_loss(&mut self, epoch: Epoch, lost: Option<&WorkerId>, message: String) {
        let most = self.config.most_losses;
        let is_cut = self.attempts.get(&epoch).is_some_and(|attempt| !attempt.is_decoding);
        self.counters.cut_by_loss += u64::from(is_cut);
        self.requeue(epoch, lost, |image| {
            image.n_losses = image.n_losses.saturating_add(1);
            image.message = message;
            if image.n_losses > most {
                image.phase = Phase::Failed;
                image.message = format!("{} workers were lost at it without a step forward", image.n_losses);
            }
        });
    }

    /// Ends an attempt; its image waits again from its last checkpoint on, or has failed if `change` says so.
    fn requeue(&mut self, epoch: Epoch, lost: Option<&WorkerId>, change: impl FnOnce(&mut Image)) {
        let Some(image) = self.end(epoch, lost) else { return };
        self.change(&image, |image| {
            (image.phase, image.epoch) = (Phase::Queued, None);
            change(image);
        });
        if self.image(&image).is_some_and(|image| image.phase == Phase::Failed) {
            self.put(Output::DropCheckpoint { image });
        }
    }

    /// Ends an attempt and aborts it on all its members but one that is lost.
    pub(super) fn end(&mut self, epoch: Epoch, lost: Option<&WorkerId>) -> Option<ImageId> {
        let attempt = self.attempts.remove(&epoch)?;
        for worker in attempt.seats.iter().filter(|worker| Some(*worker) != lost) {
            if let Some(member) = self.members.get(worker).filter(|member| member.epoch == Some(epoch)) {
                let (worker, session) = (worker.clone(), member.session);
                self.put(Output::Abort { worker, session, epoch });
            }
        }
        self.free(&attempt.seats, epoch);
        Some(attempt.image)
    }

    fn free(&mut self, seats: &[WorkerId], epoch: Epoch) {
        for worker in seats {
            if let Some(member) = self.members.get_mut(worker).filter(|member| member.epoch == Some(epoch)) {
                member.epoch = None;
            }
        }
    }
}
