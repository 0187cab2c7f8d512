//! What becomes of an attempt that fails: who is charged with it, when its image is tried again, and when no more.

use plan::{Cause, Epoch, ImageId, Rank, WorkerId};

use super::Control;
use crate::attempt::{Attempt, Suspicion};
use crate::health::{Charge, Quarantined};
use crate::job::{Image, Phase};
use crate::member::Member;
use crate::output::Output;

/// Failures of the program, or values that are not finite, after which an image fails. One more where the job's images
/// work elsewhere and somebody is left who has not tried.
const FEWEST_ALIKE: u32 = 2;

/// How often an image may fail.
struct Limits {
    /// Since its last step, whatever the cause.
    most_failures: u32,
    /// By a defect of the program, and by values that are not finite.
    most_alike: u32,
    /// Since its last step, those included that were the workers' fault.
    most_tries: u32,
}

impl Limits {
    fn are_reached(&self, image: &Image, cause: Cause) -> bool {
        match cause {
            Cause::Input => true,
            Cause::Bug => image.n_bugs >= self.most_alike,
            Cause::NotFinite => image.n_not_finite >= self.most_alike,
            Cause::Device | Cause::Peer => image.n_failures >= self.most_failures,
        }
    }
}

fn charge(image: &mut Image, cause: Cause) {
    image.n_failures = image.n_failures.saturating_add(1);
    image.n_bugs = image.n_bugs.saturating_add(u32::from(cause == Cause::Bug));
    image.n_not_finite = image.n_not_finite.saturating_add(u32::from(cause == Cause::NotFinite));
}

fn give_back(image: &mut Image, cause: Cause) {
    image.n_failures = image.n_failures.saturating_sub(1);
    image.n_bugs = image.n_bugs.saturating_sub(u32::from(cause == Cause::Bug));
    image.n_not_finite = image.n_not_finite.saturating_sub(u32::from(cause == Cause::NotFinite));
}

impl Control {
    /// An image goes on from an earlier step, or from the first. Its own fault it is not, nor a worker's.
    pub(super) fn checkpoint_lost(&mut self, id: &ImageId, n_steps_done: usize) -> bool {
        let Some(image) = self.image(id).filter(|image| image.is_open() && image.n_steps_done > n_steps_done) else {
            return false;
        };
        let n_before = image.n_steps_done;
        if let Some(epoch) = image.epoch {
            self.end(epoch, None);
        }
        self.change(id, |image| {
            (image.phase, image.epoch, image.n_steps_done) = (Phase::Queued, None, n_steps_done);
            image.message = format!("the checkpoint of step {n_before} is lost: goes on from step {n_steps_done}");
        });
        true
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
                let suspicion = Suspicion { due: now + pause_ms, message, lost: None, rifts: Vec::new() };
                let suspicion = attempt.suspicion.get_or_insert(suspicion);
                suspicion.rifts.extend(blamed.map(|blamed| (worker.clone(), blamed)));
            }
            return;
        }
        self.counters.not_finite += u64::from(cause == Cause::NotFinite);
        self.has_failed(worker, epoch, cause, message);
    }

    /// Ends an attempt that failed at `worker`, and charges one of the two: the worker if it fails again and again, else
    /// the image.
    pub(super) fn has_failed(&mut self, worker: &WorkerId, epoch: Epoch, cause: Cause, message: String) {
        let Some(attempt) = self.attempts.get(&epoch) else { return };
        self.counters.cut_by_failure += u64::from(!attempt.is_decoding);
        let (id, rank, seats) = (attempt.image.clone(), attempt.rank_of(worker), attempt.seats.clone());
        let quarantined = self.note_failure(worker, &id, cause, &message);
        if cause == Cause::NotFinite {
            // The value may have come from any of them.
            for (_, health) in self.healths.iter_mut().filter(|(name, _)| seats.contains(name)) {
                health.doubt();
            }
        }
        let (limits, not_before) = (self.limits(&id, worker), self.now + self.backoff_ms(&id));
        // A failure that puts its worker into quarantine is given back with the others; the image is to end some time.
        let is_charged = quarantined.is_none() || !self.is_given_back(&id, worker, cause);
        self.requeue(epoch, None, |image| {
            image.n_tries = image.n_tries.saturating_add(1);
            image.not_before = not_before;
            image.message = message;
            image.avoid.insert(worker.clone());
            charge(image, cause);
            let is_final = is_charged && limits.are_reached(image, cause);
            if is_final || image.n_tries >= limits.most_tries || cause == Cause::Input {
                image.phase = Phase::Failed;
                if cause == Cause::NotFinite {
                    let (rank, n) = (rank.map_or(0, |rank| rank.0), image.n_steps_done);
                    let last = format!("last by worker {worker} as rank {rank} with {n} steps done");
                    image.message = format!("{} (tried {} times, {last})", image.message, image.n_not_finite);
                }
            }
        });
        let has_failed = self.image(&id).is_some_and(|image| image.phase == Phase::Failed);
        if has_failed && let Some(health) = self.healths.get_mut(worker) {
            // It was the image, as far as anybody can tell.
            health.acquit();
        }
        for Charge { image, cause } in quarantined.into_iter().flatten() {
            self.give_back_if_due(&image, worker, cause);
        }
    }

    /// Counts a failure in a worker's record; the charges of its images if it goes into quarantine.
    fn note_failure(&mut self, worker: &WorkerId, image: &ImageId, cause: Cause, message: &str) -> Option<Vec<Charge>> {
        if cause == Cause::Input {
            return None;
        }
        let charge = Charge { image: image.clone(), cause };
        self.note(worker, image, Some(charge), message)
    }

    /// Counts in a worker's record that it died at an image, to which the loss stays charged: it may take many of them.
    pub(super) fn note_death(&mut self, worker: &WorkerId, image: &ImageId) {
        let charges = self.note(worker, image, None, "it died at work");
        for Charge { image, cause } in charges.into_iter().flatten() {
            self.give_back_if_due(&image, worker, cause);
        }
    }

    fn note(
        &mut self,
        worker: &WorkerId,
        image: &ImageId,
        charge: Option<Charge>,
        message: &str,
    ) -> Option<Vec<Charge>> {
        let job = self.jobs.get(&image.job).map_or(0, |job| job.number);
        let health = self.healths.entry(worker.clone()).or_default();
        let quarantined = health.failed(charge, job, message, self.now, self.config.quarantine_ms);
        if health.rests_until > self.now {
            self.rest_ends.insert(health.rests_until);
        }
        let Quarantined { for_ms, charges } = quarantined?;
        self.counters.quarantines += 1;
        self.put(Output::Quarantine { worker: worker.clone(), for_ms, message: message.to_owned() });
        Some(charges)
    }

    fn give_back_if_due(&mut self, image: &ImageId, worker: &WorkerId, cause: Cause) {
        if self.is_given_back(image, worker, cause) && self.image(image).is_some_and(Image::is_open) {
            self.change(image, |image| give_back(image, cause));
        }
    }

    /// Whether a failure of a worker that turns out to be sick is no fault of its image. What broke the program or gave
    /// no finite value may lie in the image, unless its job works and somebody else can show it.
    fn is_given_back(&self, image: &ImageId, worker: &WorkerId, cause: Cause) -> bool {
        cause == Cause::Device || self.works_elsewhere(image, worker)
    }

    /// Whether steps of an image's job were kept, and somebody is left who has not failed at the image.
    fn works_elsewhere(&self, image: &ImageId, worker: &WorkerId) -> bool {
        let (Some(need), Some(avoid)) = (self.need(image), self.image(image).map(|image| &image.avoid)) else {
            return false;
        };
        let is_another = |(other, member): (&WorkerId, &Member)| {
            other != worker
                && !member.is_draining
                && !member.is_stuck
                && !avoid.contains(other)
                && need.is_met_by(member)
        };
        let has_worked = self.jobs.get(&image.job).is_some_and(|job| job.has_worked);
        has_worked && self.members.iter().any(is_another)
    }

    /// How often an image may fail, now that it failed at `worker`.
    fn limits(&self, image: &ImageId, worker: &WorkerId) -> Limits {
        let most_alike = FEWEST_ALIKE + u32::from(self.works_elsewhere(image, worker));
        Limits { most_failures: self.config.most_failures, most_alike, most_tries: self.config.most_tries }
    }

    /// Ends attempts whose time is up: nobody said more than that it fails, or a rank did not come back.
    pub(super) fn give_up_overdue(&mut self) {
        let is_due = |attempt: &&Attempt| attempt.due().is_some_and(|due| due <= self.now);
        let overdue: Vec<Epoch> = self.attempts.values().filter(is_due).map(|attempt| attempt.epoch).collect();
        let most = self.config.most_failures;
        for epoch in overdue {
            let Some(attempt) = self.attempts.get(&epoch) else { continue };
            match attempt.suspicion.clone() {
                Some(Suspicion { message, lost: Some(_), .. }) => self.requeue_after_loss(epoch, None, message),
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

    pub(super) fn free(&mut self, seats: &[WorkerId], epoch: Epoch) {
        for worker in seats {
            if let Some(member) = self.members.get_mut(worker).filter(|member| member.epoch == Some(epoch)) {
                member.epoch = None;
            }
        }
    }
}
