//! The machine itself: takes what happened, keeps what is true, says what is to be done.
//!
//! Who gets which image is decided in `place.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use plan::{Cause, Epoch, ImageId, JobId, Millis, Rank, WorkerId};

use crate::attempt::Attempt;
use crate::input::{Hello, Input, JobSpec, ReplyId, SessionId};
use crate::job::{ArtifactRef, Image, Job, Phase};
use crate::member::Member;
use crate::output::{ControlError, Event, Output, Record};

/// What can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Version of the program; workers of another are refused.
    pub version: String,
    /// How long a lease lasts without a heartbeat.
    pub lease_ttl_ms: u64,
    /// How long running images wait for their ranks after a restart.
    pub reattach_ms: u64,
    /// Images that may wait or be made at a time.
    pub most_images: usize,
    /// Images of one job.
    pub most_images_per_job: u32,
    /// Reported failures without a step forward before an image fails.
    pub most_failures: u32,
    /// Members lost without a step forward before an image fails.
    pub most_losses: u32,
    /// A failed attempt is tried again after this, doubled with each failure.
    pub backoff_ms: u64,
    /// Shortening of a step, as a share, that is worth stopping for.
    pub replan_gain: f64,
    /// Steps an attempt takes before it is planned anew for its speeds.
    pub replan_after_steps: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            lease_ttl_ms: 3_000,
            reattach_ms: 10_000,
            most_images: 100_000,
            most_images_per_job: 10_000,
            most_failures: 5,
            most_losses: 20,
            backoff_ms: 100,
            replan_gain: 0.1,
            replan_after_steps: 2,
        }
    }
}

/// What was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages of an epoch that is over.
    pub old_epoch: u64,
    /// Messages of a session that is over.
    pub old_session: u64,
    /// Workers refused.
    pub refused: u64,
}

/// The state of a farm.
pub struct Control {
    pub(crate) config: Config,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    pub(crate) attempts: BTreeMap<Epoch, Attempt>,
    pub(crate) next_epoch: Epoch,
    next_number: u64,
    by_request: BTreeMap<String, JobId>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

impl Control {
    /// A farm as its records say; none for a new one.
    pub fn new(config: Config, records: Vec<Record>, now: Millis) -> Self {
        let mut control = Self {
            config,
            jobs: BTreeMap::new(),
            members: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next_epoch: Epoch(1),
            next_number: 0,
            by_request: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        };
        let until = now + control.config.reattach_ms;
        let (jobs, others): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| matches!(record, Record::Job { .. }));
        for record in jobs.into_iter().chain(others) {
            match record {
                Record::NextEpoch(epoch) => control.next_epoch = control.next_epoch.max(epoch),
                Record::Job { id, request_id, number, spec } => {
                    control.next_number = control.next_number.max(number + 1);
                    if !request_id.is_empty() {
                        control.by_request.insert(request_id.clone(), id.clone());
                    }
                    control.jobs.insert(id.clone(), Job::new(id, number, request_id, spec));
                }
                Record::Image { id, revision, image, attempt } => {
                    control.restore(&id, revision, *image, attempt.map(|attempt| *attempt), until);
                }
            }
        }
        control
    }

    fn restore(&mut self, id: &ImageId, revision: u64, image: Image, attempt: Option<Attempt>, until: Millis) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        job.revision = job.revision.max(revision);
        if let Some(restored) = job.images.get_mut(id.image.0 as usize) {
            // Times of another run of the clock mean nothing.
            *restored = Image { not_before: Millis(0), ..image };
        }
        if let Some(mut attempt) = attempt {
            attempt.reattaching = Some((BTreeSet::new(), until));
            self.next_epoch = self.next_epoch.max(Epoch(attempt.epoch.0 + 1));
            self.attempts.insert(attempt.epoch, attempt);
        }
    }

    /// A job.
    pub fn job(&self, job: &JobId) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// All jobs, in the order they came.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// An attempt that is on.
    pub fn attempt(&self, epoch: Epoch) -> Option<&Attempt> {
        self.attempts.get(&epoch)
    }

    /// What was dropped so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Workers that are in.
    pub fn n_members(&self) -> usize {
        self.members.len()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Millis, input: Input) {
        self.handle_timeout(now);
        match input {
            Input::Submit { job, request_id, spec, reply } => {
                let answer = self.submit(job, request_id, spec);
                self.outputs.push_back(Output::Reply { reply, answer });
            }
            Input::Cancel { job, reply } => self.cancel(job, reply),
            Input::Retry { job, reply } => self.retry(job, reply),
            Input::Join { worker, session, hello } => self.join(now, worker, session, hello),
            Input::Heartbeat { worker, session } => {
                self.renew(now, &worker, session);
            }
            Input::Left { worker, session } => {
                if self.members.get(&worker).is_some_and(|member| member.session == session) {
                    self.lose(now, &worker);
                }
            }
            Input::Drain { worker, session } => {
                if let Some(member) = self.renew(now, &worker, session) {
                    member.is_draining = true;
                }
            }
            Input::StepKept { epoch, n_steps_done } => self.step_kept(epoch, n_steps_done),
            Input::StepTaken { worker, session, epoch, rank, compute_ms } => {
                if self.is_seated(now, &worker, session, epoch) {
                    self.step_taken(epoch, rank, compute_ms);
                }
            }
            Input::Stopped { worker, session, epoch } => {
                if self.is_seated(now, &worker, session, epoch) {
                    self.stopped(&worker, epoch);
                }
            }
            Input::Decoding { worker, session, epoch } => {
                if self.is_seated(now, &worker, session, epoch) {
                    self.attempts.entry(epoch).and_modify(|attempt| attempt.is_decoding = true);
                }
            }
            Input::Finished { worker, session, epoch, artifact } => {
                if self.is_seated(now, &worker, session, epoch) {
                    self.finished(epoch, artifact);
                }
            }
            Input::Failed { worker, session, epoch, cause, message } => {
                if self.is_seated(now, &worker, session, epoch) {
                    self.failed(now, &worker, epoch, cause, message);
                }
            }
            Input::ArtifactRefused { epoch, message } => {
                if let Some(image) = self.attempts.get(&epoch).map(|attempt| attempt.image.clone()) {
                    self.change(&image, |image| image.message = message);
                }
            }
        }
        self.place(now);
    }

    /// Does what is due by the clock.
    pub fn handle_timeout(&mut self, now: Millis) {
        let expired = |member: &Member| member.lease_until <= now;
        let lost: Vec<WorkerId> =
            self.members.iter().filter(|(_, member)| expired(member)).map(|(worker, _)| worker.clone()).collect();
        for worker in lost {
            if let Some(member) = self.members.get(&worker) {
                self.outputs.push_back(Output::Expel { worker: worker.clone(), session: member.session });
            }
            self.lose(now, &worker);
        }
        let missing = |attempt: &&Attempt| attempt.reattaching.as_ref().is_some_and(|(_, until)| *until <= now);
        let overdue: Vec<Epoch> = self.attempts.values().filter(missing).map(|attempt| attempt.epoch).collect();
        for epoch in overdue {
            self.requeue(epoch, None, |image| image.message = "a worker did not come back after the restart".into());
        }
        self.place(now);
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is due, if nothing happens before.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let leases = self.members.values().map(|member| member.lease_until);
        let missing = self.attempts.values().filter_map(|attempt| Some(attempt.reattaching.as_ref()?.1));
        let waiting = self.jobs.values().flat_map(|job| &job.images);
        let waiting = waiting.filter(|image| image.phase == Phase::Queued && image.not_before > Millis(0));
        leases.chain(missing).chain(waiting.map(|image| image.not_before)).min()
    }

    fn submit(&mut self, id: JobId, request_id: String, spec: JobSpec) -> Result<JobId, ControlError> {
        if let Some(known) = self.by_request.get(&request_id) {
            let same = self.jobs.get(known).is_some_and(|job| job.spec == spec);
            let job = known.clone();
            return if same { Ok(job) } else { Err(ControlError::AlreadyExists { request_id, job }) };
        }
        let limit = self.config.most_images_per_job;
        if spec.count == 0 || spec.count > limit {
            return Err(ControlError::Count { count: spec.count, limit });
        }
        let (queued, limit) = (self.jobs.values().map(Job::n_open).sum::<usize>(), self.config.most_images);
        if queued + spec.count as usize > limit {
            return Err(ControlError::QueueFull { queued, limit });
        }
        if !request_id.is_empty() {
            self.by_request.insert(request_id.clone(), id.clone());
        }
        let number = self.next_number;
        self.next_number += 1;
        let record = Record::Job { id: id.clone(), request_id: request_id.clone(), number, spec: spec.clone() };
        self.outputs.push_back(Output::Persist(Box::new(record)));
        self.jobs.insert(id.clone(), Job::new(id.clone(), number, request_id, spec));
        Ok(id)
    }

    fn cancel(&mut self, job: JobId, reply: ReplyId) {
        let open = |job: &Job| {
            job.image_ids().filter(|(_, image)| image.is_open()).map(|(id, image)| (id, image.epoch)).collect()
        };
        let answer = match self.jobs.get(&job).map(open) {
            None => Err(ControlError::NotFound { job }),
            Some(open) if Vec::is_empty(&open) => Err(ControlError::IsOver { job }),
            Some(open) => {
                for (image, epoch) in open {
                    if let Some(epoch) = epoch {
                        self.end(epoch, None);
                    }
                    self.change(&image, |image| (image.phase, image.epoch) = (Phase::Cancelled, None));
                    self.outputs.push_back(Output::DropCheckpoint { image });
                }
                Ok(job)
            }
        };
        self.outputs.push_back(Output::Reply { reply, answer });
    }

    fn retry(&mut self, job: JobId, reply: ReplyId) {
        let over = |job: &Job| {
            let over = |image: &Image| matches!(image.phase, Phase::Failed | Phase::Cancelled);
            job.image_ids().filter(|(_, image)| over(image)).map(|(id, _)| id).collect()
        };
        let answer = match self.jobs.get(&job).map(over) {
            None => Err(ControlError::NotFound { job }),
            Some(over) if Vec::is_empty(&over) => Err(ControlError::NothingToRetry { job }),
            Some(over) => {
                over.iter().for_each(|image| self.change(image, Image::begin_anew));
                Ok(job)
            }
        };
        self.outputs.push_back(Output::Reply { reply, answer });
    }

    fn join(&mut self, now: Millis, worker: WorkerId, session: SessionId, hello: Hello) {
        if let Some(reason) = self.why_not(&worker, &hello) {
            self.counters.refused += 1;
            self.outputs.push_back(Output::Refuse { session, reason });
            return;
        }
        let (lease_ttl_ms, running) = (self.config.lease_ttl_ms, hello.running);
        let before = self.members.remove(&worker);
        let mut member = Member {
            session,
            lease_until: now + lease_ttl_ms,
            is_draining: before.as_ref().is_some_and(|before| before.is_draining),
            epoch: None,
            speed: before.as_ref().map_or(hello.flop_per_s, |before| before.speed).max(1.0),
            hello,
        };
        let welcome = Output::Welcome { worker: worker.clone(), session, lease_ttl_ms };
        self.outputs.push_back(welcome);
        // The seat it says it holds, if it is its own still.
        let seat = running.filter(|running| {
            let attempt = self.attempts.get(&running.epoch);
            attempt.and_then(|attempt| attempt.rank_of(&worker)) == Some(running.rank)
        });
        if let Some(seat) = seat {
            member.epoch = Some(seat.epoch);
            if let Some(attempt) = self.attempts.get_mut(&seat.epoch) {
                let is_whole = attempt.reattaching.as_mut().is_some_and(|(back, _)| {
                    back.insert(seat.rank);
                    back.len() == attempt.seats.len()
                });
                if is_whole {
                    attempt.reattaching = None;
                }
            }
        } else if let Some(running) = running {
            self.outputs.push_back(Output::Abort { worker: worker.clone(), session, epoch: running.epoch });
        }
        self.members.insert(worker.clone(), member);
        // A seat it holds and knows nothing of: its process is a new one.
        let held = |attempt: &&Attempt| Some(attempt.epoch) != seat.map(|seat| seat.epoch);
        let forgotten = self.attempts.values().filter(held).find(|attempt| attempt.rank_of(&worker).is_some());
        if let Some(epoch) = forgotten.map(|attempt| attempt.epoch) {
            let message = format!("worker {worker} began anew");
            self.requeue(epoch, None, |image| {
                image.n_losses += 1;
                image.message = message;
            });
        }
    }

    /// Why a worker is not wanted, and the way out.
    fn why_not(&self, worker: &WorkerId, hello: &Hello) -> Option<String> {
        if hello.version != self.config.version {
            let (found, expected) = (&hello.version, &self.config.version);
            return Some(format!("it runs version {found}, this farm {expected}: install {expected} there"));
        }
        let known = self.members.get(worker);
        if known.is_some_and(|member| member.hello.incarnation != hello.incarnation) {
            return Some(format!("a worker named `{worker}` is here already: give this one another name with --name"));
        }
        for facts in &hello.models {
            let of = |other: &Member| other.facts(&facts.id.name).map(|facts| facts.id.weights_sha256.clone());
            let others = self.members.iter().filter(|(name, _)| *name != worker);
            let mut others = others.filter_map(|(name, other)| Some((name, of(other)?)));
            if let Some((name, sha256)) = others.find(|(_, sha256)| *sha256 != facts.id.weights_sha256) {
                let (model, short) = (&facts.id.name, |sha256: &str| sha256.chars().take(12).collect::<String>());
                return Some(format!(
                    "its weights of model `{model}` have the sha256 {}, those of worker `{name}` {}: copy that \
                     model's folder, or give one of them another name",
                    short(&facts.id.weights_sha256),
                    short(&sha256)
                ));
            }
        }
        None
    }

    /// The member of a session that still is one; its lease begins anew.
    fn renew(&mut self, now: Millis, worker: &WorkerId, session: SessionId) -> Option<&mut Member> {
        let until = now + self.config.lease_ttl_ms;
        match self.members.get_mut(worker).filter(|member| member.session == session) {
            Some(member) => {
                member.lease_until = until;
                Some(member)
            }
            None => {
                self.counters.old_session += 1;
                None
            }
        }
    }

    /// Whether a message is of a living session and of the attempt its sender has a seat in.
    fn is_seated(&mut self, now: Millis, worker: &WorkerId, session: SessionId, epoch: Epoch) -> bool {
        let Some(member) = self.renew(now, worker, session) else { return false };
        let is_seated = member.epoch == Some(epoch) && self.attempts.contains_key(&epoch);
        if !is_seated {
            self.counters.old_epoch += 1;
        }
        is_seated
    }

    fn lose(&mut self, now: Millis, worker: &WorkerId) {
        let Some(member) = self.members.remove(worker) else { return };
        if let Some(epoch) = member.epoch {
            let (message, most) = (format!("worker {worker} was lost"), self.config.most_losses);
            self.requeue(epoch, Some(worker), |image| {
                image.n_losses += 1;
                image.not_before = now;
                image.message = message;
                if image.n_losses > most {
                    image.phase = Phase::Failed;
                    image.message = format!("{most} workers were lost at it without a step forward");
                }
            });
        }
    }

    fn step_kept(&mut self, epoch: Epoch, n_steps_done: usize) {
        let Some(attempt) = self.attempts.get(&epoch) else {
            self.counters.old_epoch += 1;
            return;
        };
        let first = attempt.seats.first().and_then(|worker| self.members.get(worker));
        let begun = first.and_then(|member| {
            let model = &self.jobs.get(&attempt.image.job)?.spec.model;
            Some((member.hello.numeric_class.clone(), member.facts(model)?.id.weights_sha256.clone()))
        });
        let image = attempt.image.clone();
        if self.image(&image).is_none_or(|image| n_steps_done <= image.n_steps_done) {
            return;
        }
        self.change(&image, |image| {
            image.n_steps_done = n_steps_done;
            (image.n_failures, image.n_losses) = (0, 0);
            image.message.clear();
            if let (None, Some((numeric_class, weights_sha256))) = (&image.numeric_class, begun) {
                image.numeric_class = Some(numeric_class);
                image.weights_sha256 = Some(weights_sha256);
            }
        });
    }

    fn step_taken(&mut self, epoch: Epoch, rank: Rank, compute_ms: f64) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        let is_guided = self.jobs.get(&attempt.image.job).is_some_and(|job| job.spec.request.is_guided());
        attempt.measured(rank, is_guided, compute_ms);
        // Paces tell how ranks compare; what they add up to stays what the probes said.
        let paces: Option<Vec<f64>> = attempt.paces.iter().copied().collect();
        let Some(paces) = paces.filter(|paces| paces.len() > 1) else { return };
        let speeds = attempt.seats.iter().map(|seat| self.members.get(seat).map_or(0.0, |member| member.speed));
        let scale = speeds.sum::<f64>() / paces.iter().sum::<f64>();
        for (seat, pace) in attempt.seats.iter().zip(paces) {
            if let Some(member) = self.members.get_mut(seat) {
                member.speed = (pace * scale).max(1.0);
            }
        }
    }

    fn stopped(&mut self, worker: &WorkerId, epoch: Epoch) {
        let Some(attempt) = self.attempts.get_mut(&epoch) else { return };
        let Some(rank) = attempt.rank_of(worker) else { return };
        let stopped = attempt.stopped.get_or_insert_default();
        stopped.insert(rank);
        if stopped.len() == attempt.seats.len() {
            let seats = std::mem::take(&mut attempt.seats);
            let image = attempt.image.clone();
            self.attempts.remove(&epoch);
            self.free(&seats, epoch);
            self.change(&image, |image| (image.phase, image.epoch) = (Phase::Queued, None));
        }
    }

    fn finished(&mut self, epoch: Epoch, artifact: ArtifactRef) {
        let Some(attempt) = self.attempts.remove(&epoch) else { return };
        self.free(&attempt.seats, epoch);
        self.change(&attempt.image, |image| {
            (image.phase, image.epoch, image.artifact) = (Phase::Done, None, Some(artifact));
            image.message.clear();
        });
        self.outputs.push_back(Output::DropCheckpoint { image: attempt.image });
    }

    fn failed(&mut self, now: Millis, worker: &WorkerId, epoch: Epoch, cause: Cause, message: String) {
        let most = self.config.most_failures;
        let backoff_ms = self.config.backoff_ms;
        self.requeue(epoch, None, |image| {
            image.n_failures += 1;
            image.not_before = now + (backoff_ms << (image.n_failures - 1).min(6));
            image.message = message;
            let is_final = match cause {
                Cause::Input | Cause::Bug => true,
                Cause::NotFinite => {
                    image.n_not_finite += 1;
                    image.avoid.insert(worker.clone());
                    image.n_not_finite > 1
                }
                Cause::Device | Cause::Peer => image.n_failures >= most,
            };
            if is_final {
                image.phase = Phase::Failed;
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
            self.outputs.push_back(Output::DropCheckpoint { image });
        }
    }

    /// Ends an attempt and aborts it on all its members but one that is lost.
    fn end(&mut self, epoch: Epoch, lost: Option<&WorkerId>) -> Option<ImageId> {
        let attempt = self.attempts.remove(&epoch)?;
        for worker in attempt.seats.iter().filter(|worker| Some(*worker) != lost) {
            if let Some(member) = self.members.get(worker).filter(|member| member.epoch == Some(epoch)) {
                let (worker, session) = (worker.clone(), member.session);
                self.outputs.push_back(Output::Abort { worker, session, epoch });
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

    pub(crate) fn image(&self, id: &ImageId) -> Option<&Image> {
        self.jobs.get(&id.job)?.image(id.image)
    }

    /// Changes an image, writes it down, and tells those who watch.
    pub(crate) fn change(&mut self, id: &ImageId, change: impl FnOnce(&mut Image)) {
        let image = self.jobs.get_mut(&id.job).and_then(|job| job.images.get_mut(id.image.0 as usize));
        if let Some(image) = image {
            change(image);
            self.tell(id);
        }
    }

    /// One revision further: written down first, told then.
    fn tell(&mut self, id: &ImageId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        job.revision += 1;
        let (revision, job_phase, n_steps) = (job.revision, job.phase(), job.spec.request.steps as usize);
        let Some(image) = job.image(id.image) else { return };
        let workers = image.epoch.and_then(|epoch| self.attempts.get(&epoch)).map(|attempt| attempt.seats.clone());
        let event = Event {
            image: id.clone(),
            revision,
            phase: image.phase,
            job_phase,
            n_steps_done: image.n_steps_done,
            n_steps,
            epoch: image.epoch,
            workers: workers.unwrap_or_default(),
            message: image.message.clone(),
        };
        let image = Box::new(image.clone());
        let attempt = image.epoch.and_then(|epoch| self.attempts.get(&epoch)).cloned().map(Box::new);
        self.outputs.push_back(Output::Persist(Box::new(Record::Image { id: id.clone(), revision, image, attempt })));
        self.outputs.push_back(Output::Event(Box::new(event)));
    }

    pub(crate) fn put(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}
