//! When an attempt is asked to stop at its next step boundary: a member drains, an image waits, another split would
//! be faster.
//!
//! A stop costs its image the start of an attempt, so each has to be worth it, and what was tried once is tried
//! again only after twice as many steps. A split by speed has to be borne out by several steps in a row: it must pay
//! even if the rank that others wait for is as fast from now on as in the fastest of them, and the others as slow as
//! in their slowest.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use plan::{Epoch, Mesh, WorkerId};

use crate::attempt::Attempt;
use crate::control::Control;
use crate::health::Health;
use crate::member::Member;
use crate::output::Output;
use crate::queue::{Need, Turn};

/// Steps that must be left for a stop to be worth it.
const FEWEST_STEPS_LEFT: usize = 2;
/// Steps in a row that bear a gain of `replan_gain` out; half as many must bear out twice as much.
const STEPS_OF_PROOF: usize = 10;
/// Most times the pause between two splits by speed is doubled.
const MOST_DOUBLINGS: u32 = 10;

/// A gain that was borne out.
struct Proof {
    /// Share of a step that is saved.
    gain: f64,
    /// By so many of the last steps.
    n_steps: usize,
}

impl Control {
    pub(super) fn ask_to_stop(&mut self) {
        let draining: Vec<Epoch> = self.stoppable().filter(|attempt| self.drains(attempt)).map(|a| a.epoch).collect();
        for epoch in draining {
            self.stop(epoch, false);
        }
        for epoch in self.to_make_room() {
            self.stop(epoch, false);
        }
        self.split_better(|_| true);
    }

    /// A step of an attempt was kept: whether it is to stop now. What the others are asked does not depend on it, but for
    /// room: an attempt may be stopped for that only once it has taken a step.
    pub(crate) fn judge(&mut self, epoch: Epoch) {
        let attempt = self.attempts.get(&epoch).filter(|attempt| self.is_stoppable(attempt));
        if attempt.is_some_and(|attempt| self.drains(attempt)) {
            self.stop(epoch, false);
        }
        let is_shared = self.attempts.get(&epoch).is_some_and(|attempt| attempt.seats.len() > 1);
        if is_shared && self.queue.ready().next().is_some() {
            for epoch in self.to_make_room() {
                self.stop(epoch, false);
            }
        }
        self.split_better(|attempt| attempt.epoch == epoch);
    }

    /// Stops one attempt of those that are `meant`, if another split is better. One at a time: who is free can join but
    /// one image, and the next is judged by what is true then.
    pub(crate) fn split_better(&mut self, meant: impl Fn(&Attempt) -> bool) {
        let Some((epoch, for_speed)) = self.to_split_better(meant) else { return };
        let proof = self.attempts.get(&epoch).filter(|_| for_speed).and_then(|attempt| self.proof(attempt));
        if let Some(proof) = proof {
            self.forget_before(epoch, proof.n_steps);
        }
        self.stop(epoch, for_speed);
    }

    /// What was before the last `n_steps` was another speed.
    fn forget_before(&mut self, epoch: Epoch, n_steps: usize) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        attempt.paces.iter_mut().for_each(|pace| pace.keep_last(n_steps));
        self.learn_speeds(epoch);
    }

    fn stop(&mut self, epoch: Epoch, for_speed: bool) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        attempt.stopped.get_or_insert_default();
        attempt.stops_for_speed = for_speed;
        let Some(worker) = attempt.seats.first().cloned() else { return };
        if let Some(session) = self.members.get(&worker).map(|member| member.session) {
            self.put(Output::Stop { worker, session, epoch });
        }
    }

    /// Attempts that can be stopped and went far enough for it.
    fn stoppable(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.values().filter(|attempt| self.is_stoppable(attempt))
    }

    fn is_stoppable(&self, attempt: &Attempt) -> bool {
        let Some(job) = self.jobs.get(&attempt.image.job) else { return false };
        let n_left = (job.spec.request.steps as usize).saturating_sub(self.n_steps_done(attempt));
        attempt.stopped.is_none()
            && attempt.reattaching.is_none()
            && attempt.suspicion.is_none()
            && !attempt.is_decoding
            && n_left >= FEWEST_STEPS_LEFT
    }

    fn n_steps_done(&self, attempt: &Attempt) -> usize {
        self.image(&attempt.image).map_or(0, |image| image.n_steps_done)
    }

    /// Steps an attempt has taken; one that has taken none gained nothing yet from being begun.
    fn n_steps_taken(&self, attempt: &Attempt) -> usize {
        self.n_steps_done(attempt).saturating_sub(attempt.n_steps_before)
    }

    fn drains(&self, attempt: &Attempt) -> bool {
        attempt.seats.iter().any(|seat| self.members.get(seat).is_some_and(|member| member.is_draining))
    }

    fn could_serve(&self, attempt: &Attempt, need: &Need) -> bool {
        attempt.seats.iter().filter_map(|seat| self.members.get(seat)).any(|member| need.is_met_by(member))
    }

    /// Images first: two halves of two images are done no sooner than one after the other, whole ones are. So the
    /// attempts with most seats stop, as many as there are images that wait for their members.
    fn to_make_room(&self) -> Vec<Epoch> {
        let is_shared = |attempt: &&Attempt| attempt.seats.len() > 1;
        let waits_for_one = |need: &Need| self.attempts.values().filter(is_shared).any(|a| self.could_serve(a, need));
        // An image that would not be given any of their members gains nothing from a stop. No more are looked at than
        // there are members to be freed.
        let gains = |(_, id): &&Turn| {
            let Some(image) = self.image(id) else { return false };
            let is_spared = |attempt: &Attempt| attempt.seats.iter().all(|seat| image.avoid.contains(seat));
            image.avoid.is_empty() || self.attempts.values().filter(is_shared).any(|attempt| !is_spared(attempt))
        };
        let waiting: Vec<(&Need, usize)> = self
            .queue
            .ready()
            .filter(|(need, _)| waits_for_one(need))
            .map(|(need, turns)| (need, turns.iter().take(self.members.len()).filter(gains).count()))
            .filter(|(_, n)| *n > 0)
            .collect();
        let mut n_waiting: usize = waiting.iter().map(|(_, n)| n).sum();
        // What is stopping already makes room for its own image and others.
        for attempt in self.attempts.values().filter(|attempt| attempt.stopped.is_some()) {
            n_waiting = n_waiting.saturating_sub(attempt.seats.len() - 1);
        }
        let mut shared: Vec<&Attempt> = self.stoppable().filter(is_shared).collect();
        shared.retain(|attempt| self.n_steps_taken(attempt) > 0);
        shared.retain(|attempt| waiting.iter().any(|(need, _)| self.could_serve(attempt, need)));
        shared.sort_by_key(|attempt| (Reverse(attempt.seats.len()), attempt.epoch));
        let mut stops = Vec::new();
        for attempt in shared {
            if n_waiting == 0 {
                break;
            }
            n_waiting = n_waiting.saturating_sub(attempt.seats.len() - 1);
            stops.push(attempt.epoch);
        }
        stops
    }

    /// The attempt that would gain most from members that are free, or from bands cut by measured speed; and whether
    /// speed is all that it stops for.
    fn to_split_better(&self, meant: impl Fn(&Attempt) -> bool) -> Option<(Epoch, bool)> {
        if self.attempts.values().any(|attempt| attempt.stopped.is_some()) {
            return None;
        }
        let mut best: Option<(f64, Epoch, bool)> = None;
        let meant = self.attempts.values().filter(|attempt| meant(attempt));
        for attempt in meant.filter(|attempt| self.is_stoppable(attempt) && self.n_steps_taken(attempt) > 0) {
            if self.queue.ready().any(|(need, _)| self.could_serve(attempt, need)) {
                continue;
            }
            let joins = self.joins(attempt);
            let for_speed = joins.iter().all(|worker| attempt.passed_over.contains(*worker));
            if for_speed && !self.is_settled(attempt) {
                continue;
            }
            let gain = if for_speed && attempt.seats.len() > 1 {
                self.proof(attempt).map_or(0.0, |proof| proof.gain)
            } else {
                self.gain(attempt, &joins)
            };
            if gain > self.config.replan_gain && best.as_ref().is_none_or(|(most, ..)| gain > *most) {
                best = Some((gain, attempt.epoch, for_speed));
            }
        }
        best.map(|(_, epoch, for_speed)| (epoch, for_speed))
    }

    /// Members that are free and could take a seat.
    fn joins(&self, attempt: &Attempt) -> BTreeSet<&WorkerId> {
        let first = attempt.seats.first().and_then(|seat| self.members.get(seat));
        let (Some(first), Some(image)) = (first, self.image(&attempt.image)) else { return BTreeSet::new() };
        let Some(job) = self.jobs.get(&attempt.image.job) else { return BTreeSet::new() };
        if image.n_not_finite > 0 {
            return BTreeSet::new();
        }
        let is_well = |worker: &WorkerId| !self.healths.get(worker).is_some_and(Health::is_suspect);
        let may_sit = |(worker, member): &(&WorkerId, &Member)| {
            member.is_free() && is_well(worker) && !image.avoid.contains(*worker)
        };
        let free = self.members.iter().filter(may_sit);
        let may_join = |(worker, member): &(&WorkerId, &Member)| {
            first.equals(member, &job.spec.model)
                && !self.rifts.part(worker, &attempt.seats, self.now)
                && self.fits_cut(&attempt.image, &[attempt.seats.as_slice(), std::slice::from_ref(*worker)].concat())
        };
        free.filter(may_join).map(|(worker, _)| worker).collect()
    }

    /// Whether an attempt went on long enough to be judged by its speeds.
    fn is_settled(&self, attempt: &Attempt) -> bool {
        let n_resplits = self.image(&attempt.image).map_or(0, |image| image.n_resplits);
        let n_steps = self.config.replan_after_steps.saturating_mul(1 << n_resplits.min(MOST_DOUBLINGS));
        self.n_steps_taken(attempt) >= n_steps
    }

    /// The gain of a split by speed that the last steps bear out, if it is worth a stop.
    fn proof(&self, attempt: &Attempt) -> Option<Proof> {
        let job = self.jobs.get(&attempt.image.job)?;
        let first = attempt.seats.first().and_then(|seat| self.members.get(seat));
        let facts = first.and_then(|member| self.facts(&attempt.image, member))?;
        let is_guided = job.spec.request.is_guided();
        let grid = job.spec.request.size.latent(facts.vae_factor()).tokens();
        let n_left = (job.spec.request.steps as usize).saturating_sub(self.n_steps_done(attempt)) as f64;
        let of = |n_steps: usize| {
            let ranges: Vec<(f64, f64)> =
                attempt.paces.iter().map(|pace| pace.range(n_steps)).collect::<Option<_>>()?;
            // All wait for one rank, at its fastest this long.
            let waited_ms =
                ranges.iter().zip(attempt.mesh.ranks()).map(|((_, most), rank)| attempt.work(rank, is_guided) / most);
            let (slow, now_ms) = waited_ms.enumerate().max_by(|a, b| a.1.total_cmp(&b.1))?;
            let mut paces: Vec<f64> = ranges
                .iter()
                .enumerate()
                .map(|(idx, (least, most))| if idx == slow { *most } else { *least })
                .collect();
            let asked = self.config.replan_gain * STEPS_OF_PROOF as f64 / n_steps as f64;
            // No cut is better than one to the fraction of a row, which costs nothing to try.
            let n_branches = if is_guided { 2.0 } else { 1.0 };
            let least_ms = n_branches * grid.rows as f64 / paces.iter().sum::<f64>();
            if 1.0 - least_ms / now_ms <= asked {
                return None;
            }
            paces.sort_by(|a, b| b.total_cmp(a));
            let gain = 1.0 - Mesh::choose(grid, facts.kv_ratio(), is_guided, &paces).cost / now_ms;
            // The step in which all stop is split as it was.
            let saved_ms = gain * now_ms * (n_left - 1.0);
            (gain > asked && saved_ms > now_ms + self.config.replan_cost_ms).then_some(Proof { gain, n_steps })
        };
        // The more of them, the better is known how fast the ranks are.
        (self.config.replan_after_steps.min(STEPS_OF_PROOF)..=STEPS_OF_PROOF).rev().find_map(of)
    }

    /// Share of a step that a new split would save, were these members to join.
    fn gain(&self, attempt: &Attempt, joins: &BTreeSet<&WorkerId>) -> f64 {
        let Some(job) = self.jobs.get(&attempt.image.job) else { return 0.0 };
        let first = attempt.seats.first().and_then(|seat| self.members.get(seat));
        let Some(facts) = first.and_then(|member| self.facts(&attempt.image, member)) else { return 0.0 };
        let is_guided = job.spec.request.is_guided();
        let speeds: Vec<f64> = attempt.seats.iter().map(|seat| self.speed(seat)).collect();
        let now = attempt.cost(is_guided, &speeds);
        let mut all: Vec<f64> = speeds.into_iter().chain(joins.iter().map(|worker| self.speed(worker))).collect();
        all.sort_by(|a, b| b.total_cmp(a));
        let grid = job.spec.request.size.latent(facts.vae_factor()).tokens();
        1.0 - Mesh::choose(grid, facts.kv_ratio(), is_guided, &all).cost / now
    }
}
