//! Who gets which image: images first, then more workers for those that are left.
//!
//! When to stop an attempt for a better split is in `place/stop.rs`.

use std::collections::BTreeSet;

use plan::{Assignment, Epoch, ImageId, JobId, Mesh, ModelFacts, Peer, Rank, WorkerId};

use crate::attempt::Attempt;
use crate::control::Control;
use crate::health::Health;
use crate::job::Phase;
use crate::member::{Member, Progress};
use crate::output::{Output, Record};
use crate::queue::{Need, Queue, Turn};

mod room;
mod stop;

/// Images of one need that are told what they wait for: all would be a flood, and the queue moves them up.
const MOST_TOLD: usize = 16;
/// Images that were tried and wait for another worker than those that are free: so many are looked at, no more.
const MOST_PASSED_OVER: usize = 64;
/// Jobs that nobody who is free has room for: so many are looked at, no more.
const MOST_JOBS: usize = 256;

/// An image and who is to make it.
struct Team {
    image: ImageId,
    need: Need,
    workers: Vec<WorkerId>,
}

impl Control {
    /// Gives free members work, and asks attempts to stop where another split would be better.
    pub(crate) fn place(&mut self) {
        self.assign_waiting();
        self.release_drained();
        self.ask_to_stop();
        self.say_what_is_missing();
    }

    fn assign_waiting(&mut self) {
        let free = self.free_members();
        if free.is_empty() {
            return;
        }
        // Who failed and has done nothing well since is given what is left: an image fails sooner than it is made.
        let is_suspect = |worker: &WorkerId| self.healths.get(worker).is_some_and(Health::is_suspect);
        let (suspects, mut free): (Vec<WorkerId>, Vec<WorkerId>) = free.into_iter().partition(is_suspect);
        let mut teams = self.teams_of(&mut free);
        for worker in suspects {
            if let Some((need, image)) = self.image_for_suspect(&worker, &teams) {
                teams.push(Team { image, need, workers: vec![worker] });
            }
        }
        // Who is left joins the team that is weakest.
        let speed = |worker: &WorkerId| self.members.get(worker).map_or(1.0, |member| member.speed);
        for worker in free {
            let strength = |team: &Team| team.workers.iter().map(speed).sum::<f64>();
            let may_join = |team: &&mut Team| self.may_join(team, &worker);
            let weakest = teams.iter_mut().filter(may_join).min_by(|a, b| strength(a).total_cmp(&strength(b)));
            if let Some(team) = weakest {
                team.workers.push(worker);
            }
        }
        for team in teams {
            self.assign(&team.image, &team.workers);
        }
    }

    /// Members that may be given work, fastest first; names decide between equals.
    fn free_members(&self) -> Vec<WorkerId> {
        let may_work = |(worker, member): &(&WorkerId, &Member)| {
            member.is_free() && self.healths.get(*worker).is_none_or(|health| health.rests_until <= self.now)
        };
        let mut free: Vec<_> = self.members.iter().filter(may_work).collect();
        free.sort_by(|a, b| b.1.speed.total_cmp(&a.1.speed).then(a.0.cmp(b.0)));
        free.into_iter().map(|(worker, _)| worker.clone()).collect()
    }

    /// The first images of the queue, each with one of the free, who are taken out of `free`.
    fn teams_of(&self, free: &mut Vec<WorkerId>) -> Vec<Team> {
        let mut teams: Vec<Team> = Vec::new();
        let meets =
            |need: &Need, worker: &WorkerId| self.members.get(worker).is_some_and(|member| need.is_met_by(member));
        let mut queues: Vec<_> =
            self.queue.ready().map(|(need, turns)| (need, turns, turns.range::<Turn, _>(..))).collect();
        let (mut n_passed_over, mut n_jobs_passed_over) = (0, 0);
        loop {
            // A queue nobody who is free can serve need not be walked, nor images without end that wait for others.
            queues.retain(|(need, _, turns)| {
                turns.clone().next().is_some()
                    && if need.is_tried { n_passed_over < MOST_PASSED_OVER } else { n_jobs_passed_over < MOST_JOBS }
                    && free.iter().any(|worker| meets(need, worker))
            });
            let next = queues.iter_mut().min_by_key(|(_, _, turns)| turns.clone().next());
            let Some((need, all, turns)) = next else { break };
            let Some((number, image)) = turns.next() else { break };
            match self.workers_for(image, need, free) {
                Some(workers) => {
                    free.retain(|other| !workers.contains(other));
                    teams.push(Team { image: image.clone(), need: (*need).clone(), workers });
                }
                // Images of a job are as large as each other.
                None if !need.is_tried => {
                    *turns = all.range(Queue::after_job(*number)..);
                    n_jobs_passed_over += 1;
                }
                None => n_passed_over += 1,
            }
        }
        teams
    }

    /// Who is to make an image: one worker that has room for it, or as few as have, if nobody in the farm has alone.
    fn workers_for(&self, image: &ImageId, need: &Need, free: &[WorkerId]) -> Option<Vec<WorkerId>> {
        if let Some(worker) = self.worker_for(image, need, free) {
            return Some(vec![worker]);
        }
        let able = |(worker, member): (&WorkerId, &Member)| {
            !member.is_draining && !member.is_stuck && need.is_met_by(member) && self.fits_alone(image, worker)
        };
        if self.members.iter().any(able) {
            return None;
        }
        let avoid = &self.image(image)?.avoid;
        let serves = |worker: &&WorkerId| {
            !avoid.contains(*worker) && self.members.get(*worker).is_some_and(|member| need.is_met_by(member))
        };
        let serving: Vec<WorkerId> = free.iter().filter(serves).cloned().collect();
        self.team_with_room(image, &serving)
    }

    /// Who is to make an image alone: of the free that can, the fastest. One that was tried is kept for a worker known to be
    /// well, and from those that failed at it, as long as there are others.
    fn worker_for(&self, image: &ImageId, need: &Need, free: &[WorkerId]) -> Option<WorkerId> {
        let serves = |worker: &WorkerId| {
            self.members.get(worker).is_some_and(|member| need.is_met_by(member)) && self.fits_alone(image, worker)
        };
        if !need.is_tried {
            return free.iter().find(|worker| serves(worker)).cloned();
        }
        let avoid = &self.image(image)?.avoid;
        let is_proven = |worker: &WorkerId| self.healths.get(worker).is_some_and(Health::is_proven);
        let is_fresh = |worker: &&WorkerId| serves(worker) && !avoid.contains(*worker);
        if let Some(worker) = free.iter().filter(is_fresh).find(|worker| is_proven(worker)) {
            return Some(worker.clone());
        }
        let rests = |worker: &WorkerId| self.healths.get(worker).is_some_and(|health| health.is_quarantined(self.now));
        let mut others = self.members.iter().filter(|(worker, member)| {
            !member.is_draining && !member.is_stuck && serves(worker) && !avoid.contains(*worker) && !rests(worker)
        });
        // Who is at work may turn out to be well.
        if others.any(|(worker, member)| is_proven(worker) || member.epoch.is_some()) {
            return None;
        }
        free.iter().find(is_fresh).or_else(|| free.iter().find(|worker| serves(worker))).cloned()
    }

    /// What a worker is given that failed and has done nothing well since: an image of a job it has not failed at, which
    /// tells whether it is the worker or the job; else one it has not failed at; else any that nobody else can try.
    fn image_for_suspect(&self, worker: &WorkerId, teams: &[Team]) -> Option<(Need, ImageId)> {
        let (member, health) = (self.members.get(worker)?, self.healths.get(worker)?);
        let is_taken = |image: &ImageId| teams.iter().any(|team| team.image == *image);
        let alone = [worker.clone()];
        let candidates = |(need, turns): (&'_ Need, &'_ BTreeSet<Turn>)| {
            // The first job may be the one it failed at, or one it has no room for.
            let passed_over = health.failed_jobs().iter().copied().chain(turns.first().map(|turn| turn.0));
            let after = passed_over.flat_map(|job| turns.range(Queue::after_job(job)..).take(MOST_PASSED_OVER));
            let open = turns.iter().take(MOST_PASSED_OVER).chain(after).filter(|(_, image)| !is_taken(image));
            let able = open.filter(|(_, image)| self.worker_for(image, need, &alone).is_some());
            let preferred = able.min_by_key(|turn| {
                let has_failed_at = self.image(&turn.1).is_none_or(|image| image.avoid.contains(worker));
                (health.failed_jobs().contains(&turn.0), has_failed_at, *turn)
            });
            preferred.map(|turn| (need.clone(), turn.clone()))
        };
        let met = self.queue.ready().filter(|(need, _)| need.is_met_by(member));
        let preferred = met
            .filter_map(candidates)
            .min_by_key(|(need, turn)| (health.failed_jobs().contains(&turn.0), need.is_tried, turn.clone()));
        preferred.map(|(need, (_, image))| (need, image))
    }

    /// Whether a worker may work together with a team: the same weights, bytes that are equal, and nothing between them.
    fn may_join(&self, team: &Team, worker: &WorkerId) -> bool {
        // A value that is not finite may come from any of a team: who is alone with it gives itself away.
        let is_spared =
            self.image(&team.image).is_none_or(|image| image.n_not_finite > 0 || image.avoid.contains(worker));
        let first = team.workers.first().and_then(|first| self.members.get(first));
        let model = &team.need.model;
        let is_parted = self.rifts.part(worker, &team.workers, self.now);
        !is_spared
            && !is_parted
            && first.zip(self.members.get(worker)).is_some_and(|(first, other)| first.equals(other, model))
            && self.fits_cut(&team.image, &[team.workers.as_slice(), std::slice::from_ref(worker)].concat())
    }

    pub(crate) fn facts<'a>(&self, id: &ImageId, member: &'a Member) -> Option<&'a ModelFacts> {
        member.facts(&self.jobs.get(&id.job)?.spec.model)
    }

    pub(crate) fn speed(&self, worker: &WorkerId) -> f64 {
        self.members.get(worker).map_or(1.0, |member| member.speed)
    }

    /// A new attempt at an image by a team.
    fn assign(&mut self, id: &ImageId, team: &[WorkerId]) {
        let Some(job) = self.jobs.get(&id.job) else { return };
        let (request, artifact) = (job.request(id.image), job.spec.artifact);
        let Some(image) = self.image(id) else { return };
        let Some(first) = team.first().and_then(|first| self.members.get(first)) else { return };
        let Some(facts) = self.facts(id, first).cloned() else { return };
        let n_steps_done = image.n_steps_done;
        let (numeric_class, weights_sha256) = (first.hello.numeric_class.clone(), facts.id.weights_sha256.clone());
        // Rows that an attempt of another class left behind must not be put together with this one's.
        let differs = |before: &Option<String>, other| before.as_ref().is_some_and(|before| before != other);
        let begins_anew =
            differs(&image.numeric_class, &numeric_class) || differs(&image.weights_sha256, &weights_sha256);
        let mut team: Vec<(f64, WorkerId)> = team.iter().map(|worker| (self.speed(worker), worker.clone())).collect();
        team.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let speeds: Vec<f64> = team.iter().map(|(speed, _)| *speed).collect();
        let grid = request.size.latent(facts.vae_factor()).tokens();
        let choice = Mesh::choose(grid, facts.kv_ratio(), request.is_guided(), &speeds);
        let seats: Vec<WorkerId> = choice.seats.iter().map(|seat| team[*seat].1.clone()).collect();

        let epoch = self.next_epoch;
        self.next_epoch = Epoch(epoch.0.saturating_add(1));
        self.put(Output::Persist(Box::new(Record::NextEpoch(self.next_epoch))));
        if begins_anew {
            self.put(Output::DropCheckpoint { image: id.clone() });
        }
        let incarnation = |worker| self.members.get(worker).map(|member| member.hello.incarnation.clone());
        let incarnations = seats.iter().map(|worker| incarnation(worker).unwrap_or_default()).collect();
        let who = (seats.clone(), incarnations);
        let mut attempt = Attempt::new(epoch, id.clone(), choice.mesh.clone(), who, n_steps_done, self.now);
        let others = team.into_iter().map(|(_, worker)| worker).filter(|worker| !seats.contains(worker));
        attempt.passed_over = others.collect();
        for worker in &attempt.passed_over {
            if let Some(member) = self.members.get_mut(worker) {
                member.is_passed_over();
            }
        }
        self.attempts.insert(epoch, attempt);
        for worker in &seats {
            if let Some(member) = self.members.get_mut(worker) {
                member.epoch = Some(epoch);
                member.progress = Progress::new(self.now);
            }
        }
        self.set_patience(epoch);
        let (turn, need) = (self.turn(id), self.need(id));
        let was_told = need.and_then(|need| self.told.get(&need)).is_some_and(|told| told.contains(&turn));
        let was_told = self.too_large.remove(id) || was_told;
        self.change(id, |image| {
            (image.phase, image.epoch) = (Phase::Running, Some(epoch));
            (image.numeric_class, image.weights_sha256) = (Some(numeric_class), Some(weights_sha256));
            if was_told {
                image.message.clear();
            }
        });
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

    fn turn(&self, id: &ImageId) -> Turn {
        (self.jobs.get(&id.job).map_or(0, |job| job.number), id.clone())
    }

    /// Whether a member could serve it, now or later.
    fn is_met(&self, need: &Need) -> bool {
        self.members.values().any(|member| !member.is_draining && need.is_met_by(member))
    }

    /// Tells the first images of each queue that nobody can serve; takes it back when somebody can.
    fn say_what_is_missing(&mut self) {
        let met: Vec<Need> = self.told.keys().filter(|need| self.is_met(need)).cloned().collect();
        for need in met {
            for (_, image) in self.told.remove(&need).unwrap_or_default() {
                self.change(&image, |image| image.message.clear());
            }
        }
        let unmet = self.queue.ready().filter(|(need, _)| !self.is_met(need));
        let silent = unmet.flat_map(|(need, turns)| {
            let told = self.told.get(need);
            turns.iter().take(MOST_TOLD).filter(move |turn| told.is_none_or(|told| !told.contains(*turn)))
        });
        let silent: Vec<ImageId> = silent.map(|(_, image)| image.clone()).collect();
        for image in silent {
            self.say_what_image_waits_for(&image);
        }
        self.say_what_is_too_large();
    }

    /// Tells the first image of each queue that no worker has room for; takes it back when one has.
    fn say_what_is_too_large(&mut self) {
        let fit_now: Vec<ImageId> =
            self.too_large.iter().filter(|image| self.says_too_large(image).is_none()).cloned().collect();
        for image in fit_now {
            self.too_large.remove(&image);
            self.change(&image, |image| image.message.clear());
        }
        let first = self.queue.ready().filter_map(|(_, turns)| Some(&turns.first()?.1));
        let new: Vec<(ImageId, String)> = first
            .filter(|image| !self.too_large.contains(*image))
            .filter_map(|image| Some((image.clone(), self.says_too_large(image)?)))
            .collect();
        for (id, message) in new {
            self.change(&id, |image| image.message = message);
            self.too_large.insert(id);
        }
    }

    /// Tells a new job, however far behind in the queue it is.
    pub(crate) fn say_what_job_waits_for(&mut self, job: &JobId) {
        let first = ImageId { job: job.clone(), image: plan::ImageIdx(0) };
        if self.need(&first).is_some_and(|need| !self.is_met(&need)) {
            self.say_what_image_waits_for(&first);
        }
    }

    fn say_what_image_waits_for(&mut self, id: &ImageId) {
        let Some(need) = self.need(id) else { return };
        let model = need.model.clone();
        let has_model = self.members.values().any(|member| !member.is_draining && member.facts(&model).is_some());
        let message = match &need.begun {
            Some(begun) if has_model => {
                format!("waits for a worker of numeric class {}, in which it began", begun.numeric_class)
            }
            _ => format!("waits for a worker that has the model `{model}`"),
        };
        if self.image(id).is_some_and(|image| image.message != message) {
            self.change(id, |image| image.message = message);
        }
        let turn = self.turn(id);
        self.told.entry(need).or_default().insert(turn);
    }
}
