//! Who gets which image: images first, then more workers for those that are left; a change at a step boundary when
//! it is worth it.

use std::cmp::Reverse;

use plan::{Assignment, Epoch, ImageId, ImageIdx, Mesh, Millis, ModelFacts, Peer, Rank, WorkerId};

use crate::attempt::Attempt;
use crate::control::Control;
use crate::job::{Image, Job, Phase};
use crate::member::Member;
use crate::output::{Output, Record};

/// Steps that must be left for a stop to be worth it.
const FEWEST_STEPS_LEFT: usize = 2;

impl Control {
    /// Gives free members work, and asks attempts to stop where another split would be better.
    pub(crate) fn place(&mut self, now: Millis) {
        self.assign_waiting(now);
        self.release_drained();
        let waiting = self.waiting(now);
        let stops: Vec<Epoch> = self
            .attempts
            .values()
            .filter(|attempt| self.can_stop(attempt) && self.should_stop(attempt, &waiting))
            .map(|attempt| attempt.epoch)
            .collect();
        for epoch in stops {
            let Some(attempt) = self.attempts.get_mut(&epoch) else { continue };
            let Some(first) = attempt.seats.first().cloned() else { continue };
            attempt.stopped.get_or_insert_default();
            if let Some(session) = self.members.get(&first).map(|member| member.session) {
                self.put(Output::Stop { worker: first, session, epoch });
            }
        }
    }

    /// Images that wait and may be tried, the oldest job's first.
    fn waiting(&self, now: Millis) -> Vec<ImageId> {
        let mut jobs: Vec<&Job> = self.jobs.values().filter(|job| job.n_open() > 0).collect();
        jobs.sort_by_key(|job| job.number);
        let images = jobs
            .into_iter()
            .flat_map(|job| job.images.iter().enumerate().map(|(idx, image)| (&job.id, ImageIdx(idx as u32), image)));
        let may_be_tried = |image: &Image| image.phase == Phase::Queued && image.not_before <= now;
        let waiting = images.filter(|(_, _, image)| may_be_tried(image));
        waiting.map(|(job, image, _)| ImageId { job: job.clone(), image }).collect()
    }

    fn assign_waiting(&mut self, now: Millis) {
        let waiting = self.waiting(now);
        let mut free: Vec<WorkerId> = {
            let mut free: Vec<_> = self.members.iter().filter(|(_, member)| member.is_free()).collect();
            // Fastest first; names decide between equals.
            free.sort_by(|a, b| b.1.speed.total_cmp(&a.1.speed).then(a.0.cmp(b.0)));
            free.into_iter().map(|(worker, _)| worker.clone()).collect()
        };
        let mut teams: Vec<(ImageId, Vec<WorkerId>)> = Vec::new();
        for image in waiting {
            if free.is_empty() {
                break;
            }
            let fits = |worker: &&WorkerId| self.suits(&image, worker, true);
            let found = free.iter().find(fits).or_else(|| free.iter().find(|worker| self.suits(&image, worker, false)));
            match found.cloned() {
                Some(worker) => {
                    free.retain(|other| *other != worker);
                    teams.push((image, vec![worker]));
                }
                None => self.say_what_is_missing(&image),
            }
        }
        // Who is left joins the team that is weakest.
        for worker in free {
            let strength = |team: &[WorkerId]| team.iter().map(|worker| self.speed(worker)).sum::<f64>();
            let class = |team: &[WorkerId]| team.first().and_then(|first| self.members.get(first));
            let may_join = |(image, team): &&mut (ImageId, Vec<WorkerId>)| {
                self.suits(image, &worker, true)
                    && class(team)
                        .zip(self.members.get(&worker))
                        .is_some_and(|(first, other)| first.hello.numeric_class == other.hello.numeric_class)
            };
            let weakest =
                teams.iter_mut().filter(may_join).min_by(|(_, a), (_, b)| strength(a).total_cmp(&strength(b)));
            if let Some((_, team)) = weakest {
                team.push(worker);
            }
        }
        for (image, team) in teams {
            self.assign(&image, &team);
        }
    }

    /// Whether a worker can serve an image: weights, numeric class, and, if `spares`, not where it failed before.
    fn suits(&self, id: &ImageId, worker: &WorkerId, spares: bool) -> bool {
        let (Some(image), Some(member)) = (self.image(id), self.members.get(worker)) else { return false };
        let Some(facts) = self.facts(id, member) else { return false };
        let class = image.numeric_class.as_ref().is_none_or(|class| *class == member.hello.numeric_class);
        let weights = image.weights_sha256.as_ref().is_none_or(|sha256| *sha256 == facts.id.weights_sha256);
        class && weights && !(spares && image.avoid.contains(worker))
    }

    fn facts<'a>(&self, id: &ImageId, member: &'a Member) -> Option<&'a ModelFacts> {
        member.facts(&self.jobs.get(&id.job)?.spec.model)
    }

    fn speed(&self, worker: &WorkerId) -> f64 {
        self.members.get(worker).map_or(1.0, |member| member.speed)
    }

    fn say_what_is_missing(&mut self, id: &ImageId) {
        let Some(model) = self.jobs.get(&id.job).map(|job| job.spec.model.clone()) else { return };
        let has_model = self.members.values().any(|member| member.facts(&model).is_some());
        let message = match self.image(id).and_then(|image| image.numeric_class.as_ref()) {
            Some(class) if has_model => format!("waits for a worker of numeric class {class}, in which it began"),
            _ => format!("waits for a worker that has the model `{model}`"),
        };
        if self.image(id).is_some_and(|image| image.message != message) {
            self.change(id, |image| image.message = message);
        }
    }

    /// A new attempt at an image by a team.
    fn assign(&mut self, id: &ImageId, team: &[WorkerId]) {
        let Some(job) = self.jobs.get(&id.job) else { return };
        let (request, artifact) = (job.request(id.image), job.spec.artifact);
        let n_steps_done = self.image(id).map_or(0, |image| image.n_steps_done);
        let Some(facts) = team.first().and_then(|first| self.members.get(first)).and_then(|m| self.facts(id, m)) else {
            return;
        };
        let facts = facts.clone();
        let mut team: Vec<(f64, WorkerId)> = team.iter().map(|worker| (self.speed(worker), worker.clone())).collect();
        team.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let speeds: Vec<f64> = team.iter().map(|(speed, _)| *speed).collect();
        let grid = request.size.latent(facts.vae_factor).tokens();
        let choice = Mesh::choose(grid, facts.kv_ratio, request.is_guided(), &speeds);
        let seats: Vec<WorkerId> = choice.seats.iter().map(|seat| team[*seat].1.clone()).collect();

        let epoch = self.next_epoch;
        self.next_epoch = Epoch(epoch.0 + 1);
        self.put(Output::Persist(Box::new(Record::NextEpoch(self.next_epoch))));
        let attempt = Attempt::new(epoch, id.clone(), choice.mesh.clone(), seats.clone(), n_steps_done);
        self.attempts.insert(epoch, attempt);
        for worker in &seats {
            if let Some(member) = self.members.get_mut(worker) {
                member.epoch = Some(epoch);
            }
        }
        self.change(id, |image| (image.phase, image.epoch) = (Phase::Running, Some(epoch)));
        let peer = |worker: &WorkerId| {
            let address = self.members.get(worker).map(|member| member.hello.address.clone());
            Peer { worker: worker.clone(), address: address.unwrap_or_default() }
        };
        let peers: Vec<Peer> = seats.iter().map(peer).collect();
        for (rank, worker) in seats.iter().enumerate() {
            let Some(session) = self.members.get(worker).map(|member| member.session) else { continue };
            let assignment = Box::new(Assignment {
                epoch,
                image: id.clone(),
                request: request.clone(),
                model: facts.id.clone(),
                artifact,
                mesh: choice.mesh.clone(),
                rank: Rank(rank as u16),
                peers: peers.clone(),
                n_steps_done,
            });
            self.put(Output::Assign { worker: worker.clone(), session, assignment });
        }
    }

    fn release_drained(&mut self) {
        let done = self.members.iter().filter(|(_, member)| member.is_draining && member.epoch.is_none());
        let done: Vec<_> = done.map(|(worker, member)| (worker.clone(), member.session)).collect();
        for (worker, session) in done {
            self.members.remove(&worker);
            self.put(Output::Drained { worker, session });
        }
    }

    fn can_stop(&self, attempt: &Attempt) -> bool {
        let Some(job) = self.jobs.get(&attempt.image.job) else { return false };
        let n_steps_done = self.image(&attempt.image).map_or(0, |image| image.n_steps_done);
        let n_left = (job.spec.request.steps as usize).saturating_sub(n_steps_done);
        attempt.stopped.is_none()
            && attempt.reattaching.is_none()
            && !attempt.is_decoding
            && n_left >= FEWEST_STEPS_LEFT
    }

    /// Whether the members of an attempt would better be dealt anew.
    fn should_stop(&self, attempt: &Attempt, waiting: &[ImageId]) -> bool {
        let members = attempt.seats.iter().filter_map(|seat| self.members.get(seat));
        if members.clone().any(|member| member.is_draining) {
            return true;
        }
        let n_steps_done = self.image(&attempt.image).map_or(0, |image| image.n_steps_done);
        if n_steps_done < attempt.n_steps_before + 1 {
            return false;
        }
        // Images first: two halves of two images are done no sooner than one after the other, whole ones are.
        let could_serve = |id: &ImageId| attempt.seats.iter().any(|seat| self.suits(id, seat, true));
        if attempt.seats.len() > 1 && waiting.iter().any(could_serve) {
            return true;
        }
        if !waiting.is_empty() {
            return false;
        }
        let class = members.clone().next().map(|member| member.hello.numeric_class.clone());
        let joins = self.members.iter().filter(|(worker, member)| {
            member.is_free()
                && Some(&member.hello.numeric_class) == class.as_ref()
                && self.suits(&attempt.image, worker, true)
        });
        let joins: Vec<f64> = joins.map(|(_, member)| member.speed).collect();
        let is_settled = n_steps_done >= attempt.n_steps_before + self.config.replan_after_steps;
        let is_measured = attempt.seats.len() == 1 || attempt.paces.iter().all(Option::is_some);
        if joins.is_empty() && !(is_settled && is_measured) {
            return false;
        }
        self.gain(attempt, &joins) > self.config.replan_gain
    }

    /// Share of a step that a new split would save, were the members `joins` to join.
    fn gain(&self, attempt: &Attempt, joins: &[f64]) -> f64 {
        let Some(job) = self.jobs.get(&attempt.image.job) else { return 0.0 };
        let first = attempt.seats.first().and_then(|seat| self.members.get(seat));
        let Some(facts) = first.and_then(|member| self.facts(&attempt.image, member)) else { return 0.0 };
        let is_guided = job.spec.request.is_guided();
        let speeds: Vec<f64> = attempt.seats.iter().map(|seat| self.speed(seat)).collect();
        let now = attempt.cost(is_guided, &speeds);
        let mut all: Vec<f64> = speeds.into_iter().chain(joins.iter().copied()).collect();
        all.sort_by_key(|speed| Reverse(speed.to_bits()));
        let grid = job.spec.request.size.latent(facts.vae_factor).tokens();
        1.0 - Mesh::choose(grid, facts.kv_ratio, is_guided, &all).cost / now
    }
}
