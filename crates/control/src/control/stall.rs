//! Ranks that make no progress: when one is given up, and by what measure.
//!
//! A worker's heartbeats come from another thread than its rank's work, so a lease says nothing of a kernel that never
//! ends. What a rank does is counted by its worker; a count that stands still for ten expected steps is a rank that hangs,
//! unless it waits for others.

use plan::{Cause, Epoch, Millis, Rank, WorkerId, flop};

use super::Control;
use crate::attempt::Attempt;
use crate::input::{SessionId, Work};

/// Expected steps without progress after which a rank is given up.
const STEPS: f64 = 10.0;
/// An attempt whose ranks all wait for each other is given up after so many times the patience with one of them.
const ALL_WAIT: u64 = 2;

impl Control {
    /// A worker is alive, and says what its rank's thread does.
    pub(super) fn heartbeat(&mut self, worker: &WorkerId, session: SessionId, work: Option<Work>) -> bool {
        let now = self.now;
        let Some(member) = self.renew(worker, session) else { return false };
        let epoch = member.epoch;
        let mine = work.filter(|work| Some(work.epoch) == epoch);
        // Its thread has ended, or has gone on to what it was given since.
        let is_free_again = member.is_stuck && (work.is_none() || mine.is_some());
        member.is_stuck &= !is_free_again;
        let has_progressed = mine.is_some_and(|work| member.progress.heard(work.progress, work.waits, now));
        if let Some(attempt) = epoch.filter(|_| has_progressed).and_then(|epoch| self.attempts.get_mut(&epoch)) {
            attempt.progress_at = now;
        }
        is_free_again
    }

    /// A step, or something else that can be seen from here, came out of a rank.
    pub(super) fn has_progressed(&mut self, worker: &WorkerId, epoch: Epoch) {
        let now = self.now;
        if let Some(member) = self.members.get_mut(worker) {
            member.progress.stepped(now);
        }
        if let Some(attempt) = self.attempts.get_mut(&epoch) {
            attempt.progress_at = now;
        }
    }

    /// When an attempt is given up for want of progress, if nothing happens before.
    pub(crate) fn stall_due(&self, attempt: &Attempt) -> Option<Millis> {
        let seats = attempt.seats.iter().zip(attempt.mesh.ranks());
        let at_work = seats.filter_map(|(seat, rank)| {
            let member = self.members.get(seat).filter(|member| member.epoch == Some(attempt.epoch))?;
            let patience_ms = attempt.patience_ms.get(usize::from(rank.0)).copied()?;
            Some(if member.progress.waits {
                attempt.progress_at + patience_ms.saturating_mul(ALL_WAIT)
            } else {
                member.progress.at + patience_ms
            })
        });
        at_work.min()
    }

    /// Gives up ranks that made no progress for too long.
    pub(super) fn give_up_stalled(&mut self) {
        let now = self.now;
        let is_due = |attempt: &&Attempt| self.stall_due(attempt).is_some_and(|due| due <= now);
        let stalled: Vec<Epoch> = self.attempts.values().filter(is_due).map(|attempt| attempt.epoch).collect();
        for epoch in stalled {
            self.give_up_stalled_attempt(epoch);
        }
    }

    fn give_up_stalled_attempt(&mut self, epoch: Epoch) {
        let Some(attempt) = self.attempts.get(&epoch) else { return };
        let n_steps_done = self.image(&attempt.image).map_or(0, |image| image.n_steps_done);
        let seats = attempt.seats.iter().zip(attempt.mesh.ranks());
        // Who waits is not at fault as long as somebody else stands still and does not wait.
        let hangs = seats.filter_map(|(seat, rank)| {
            let progress = self.members.get(seat)?.progress;
            let silent_ms = self.now.0.saturating_sub(progress.at.0);
            (!progress.waits && silent_ms >= self.patience_ms(attempt, rank)).then(|| (seat.clone(), silent_ms))
        });
        let hangs: Vec<(WorkerId, u64)> = hangs.collect();
        self.counters.stalled += 1;
        let Some((first, silent_ms)) = hangs.first().cloned() else {
            let message = format!("no rank made progress after step {n_steps_done}: each waited for another");
            return self.requeue_after_loss(epoch, None, message);
        };
        let message =
            format!("worker {first} made no progress for {} s after step {n_steps_done}: it hangs", silent_ms / 1000);
        self.has_failed(&first, epoch, Cause::Device, message);
        for (worker, _) in hangs {
            if let Some(member) = self.members.get_mut(&worker) {
                member.is_stuck = true;
            }
            if let Some(health) = self.healths.get_mut(&worker) {
                health.doubt();
            }
        }
    }

    /// Works out how long the ranks of an attempt may stand still, by what is known of their speeds now.
    pub(crate) fn set_patience(&mut self, epoch: Epoch) {
        let Some(attempt) = self.attempts.get(&epoch) else { return };
        let patience_ms = attempt.mesh.ranks().map(|rank| self.patience_ms(attempt, rank)).collect();
        if let Some(attempt) = self.attempts.get_mut(&epoch) {
            attempt.patience_ms = patience_ms;
        }
    }

    /// How long a rank may stand still.
    fn patience_ms(&self, attempt: &Attempt, rank: Rank) -> u64 {
        let expected_ms = self.expected_step_ms(attempt, rank).unwrap_or(0.0);
        // A probe may say anything: a day is long enough for any step.
        const MOST_MS: f64 = 86_400_000.0;
        self.config.stall_ms.max((STEPS * expected_ms).min(MOST_MS) as u64)
    }

    /// How long a rank's step is expected to take: by its last ones, else by the arithmetic in it.
    fn expected_step_ms(&self, attempt: &Attempt, rank: Rank) -> Option<f64> {
        let job = self.jobs.get(&attempt.image.job)?;
        let is_guided = job.spec.request.is_guided();
        let work = attempt.work(rank, is_guided);
        if let Some(pace) = attempt.paces.get(usize::from(rank.0)).and_then(crate::pace::Pace::median) {
            return Some(work / pace);
        }
        let member = self.members.get(attempt.seats.get(usize::from(rank.0))?)?;
        let facts = self.facts(&attempt.image, member)?;
        let latent = job.spec.request.size.latent(facts.vae_factor());
        let rows = latent.tokens().rows.max(1) as f64;
        let flop = flop::forward(&facts.spec.dit, latent) * work / rows;
        Some(flop / crate::member::Member::usable(member.hello.flop_per_s) * 1e3)
    }
}
