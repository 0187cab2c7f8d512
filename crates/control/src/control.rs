//! The machine itself: takes what happened, keeps what is true, says what is to be done.
//!
//! What clients ask is in `control/client.rs`, who is in `control/membership.rs`, how an attempt gets on in
//! `control/progress.rs`, what becomes of one that fails in `control/failing.rs` and of one that hangs in
//! `control/stall.rs`; who gets which image is decided in `place.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use plan::{Epoch, ImageId, JobId, Millis, WorkerId};

use crate::attempt::Attempt;
use crate::demand::Costs;
use crate::health::{Healths, Silent};
use crate::input::Input;
use crate::job::{Image, Job, Phase};
use crate::member::{Member, MemberState, MemberView};
use crate::output::{Event, Output, Record};
use crate::queue::{Need, Queue, Turn};
use crate::rift::Rifts;

mod client;
mod config;
mod failing;
mod membership;
mod progress;
mod stall;

pub use config::{Config, Counters};

#[cfg(test)]
mod tests;

/// The state of a farm.
pub struct Control {
    pub(crate) config: Config,
    /// The latest time that was handed in.
    pub(crate) now: Millis,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) members: BTreeMap<WorkerId, Member>,
    pub(crate) healths: Healths,
    /// Workers that were lost at work and did not say that they leave.
    pub(crate) silent: BTreeMap<WorkerId, Silent>,
    /// When workers that rest may be given work again.
    rest_ends: BTreeSet<Millis>,
    pub(crate) attempts: BTreeMap<Epoch, Attempt>,
    pub(crate) rifts: Rifts,
    pub(crate) queue: Queue,
    /// Queued images whose message says what they wait for.
    pub(crate) told: BTreeMap<Need, BTreeSet<Turn>>,
    /// Queued images whose message says that no worker has room for them.
    pub(crate) too_large: BTreeSet<ImageId>,
    pub(crate) next_epoch: Epoch,
    next_number: u64,
    /// Images that are neither done nor given up.
    n_open: usize,
    by_request: BTreeMap<String, JobId>,
    pub(crate) by_number: BTreeMap<u64, JobId>,
    outputs: VecDeque<Output>,
    counters: Counters,
    /// Nothing is due before.
    next_due: Option<Millis>,
    pub(crate) costs: Costs,
    /// Every picture, and how many images have it.
    pictures: BTreeMap<String, usize>,
}

impl Control {
    /// A farm as its records say; none for a new one.
    pub fn new(config: Config, records: Vec<Record>, now: Millis) -> Self {
        let mut control = Self {
            config,
            now,
            jobs: BTreeMap::new(),
            members: BTreeMap::new(),
            healths: Healths::new(),
            silent: BTreeMap::new(),
            rest_ends: BTreeSet::new(),
            attempts: BTreeMap::new(),
            rifts: Rifts::default(),
            queue: Queue::default(),
            told: BTreeMap::new(),
            too_large: BTreeSet::new(),
            next_epoch: Epoch(1),
            next_number: 0,
            n_open: 0,
            by_request: BTreeMap::new(),
            by_number: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            next_due: None,
            costs: Costs::default(),
            pictures: BTreeMap::new(),
        };
        let (jobs, others): (Vec<_>, Vec<_>) =
            records.into_iter().partition(|record| matches!(record, Record::Job { .. }));
        for record in jobs.into_iter().chain(others) {
            match record {
                Record::NextEpoch(epoch) => control.next_epoch = control.next_epoch.max(epoch),
                Record::Job { id, request_id, number, spec } => {
                    control.next_number = control.next_number.max(number.saturating_add(1));
                    control.take_in(Job::new(id, number, request_id, spec));
                }
                Record::Image { id, revision, image, attempt } => {
                    control.restore(&id, revision, *image, attempt.map(|attempt| *attempt));
                }
            }
        }
        control.place();
        control.next_due = control.first_due();
        control
    }

    /// A job that is new here, with its images in the queue.
    fn take_in(&mut self, job: Job) {
        if !job.request_id.is_empty() {
            self.by_request.insert(job.request_id.clone(), job.id.clone());
        }
        self.by_number.insert(job.number, job.id.clone());
        let images: Vec<ImageId> = job.image_ids().map(|(id, _)| id).collect();
        self.jobs.insert(job.id.clone(), job);
        for image in &images {
            self.enter(image);
        }
    }

    fn restore(&mut self, id: &ImageId, revision: u64, image: Image, attempt: Option<Attempt>) {
        if self.image(id).is_none() {
            return;
        }
        self.leave(id);
        let attempt = attempt.filter(|attempt| image.phase == Phase::Running && image.epoch == Some(attempt.epoch));
        if let Some(job) = self.jobs.get_mut(&id.job) {
            job.revision = job.revision.max(revision);
            job.change(id.image, |restored| {
                // Times of another run of the clock mean nothing.
                *restored = Image { not_before: Millis(0), ..image };
                if attempt.is_none() && restored.phase == Phase::Running {
                    (restored.phase, restored.epoch) = (Phase::Queued, None);
                }
            });
        }
        if let Some(mut attempt) = attempt {
            attempt.reattaching = Some((BTreeSet::new(), self.now + self.config.reattach_ms));
            attempt.progress_at = self.now;
            self.attempts.insert(attempt.epoch, attempt);
        }
        self.enter(id);
    }

    /// A job.
    pub fn job(&self, job: &JobId) -> Option<&Job> {
        self.jobs.get(job)
    }

    /// All jobs, in the order of their ids.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Jobs with numbers below `number`, the newest first.
    pub fn jobs_before(&self, number: u64) -> impl Iterator<Item = &Job> {
        self.by_number.range(..number).rev().filter_map(|(_, job)| self.jobs.get(job))
    }

    /// Whether a picture is one of an image that is done.
    pub fn has_picture(&self, sha256: &str) -> bool {
        self.pictures.contains_key(sha256)
    }

    /// An attempt that is on.
    pub fn attempt(&self, epoch: Epoch) -> Option<&Attempt> {
        self.attempts.get(&epoch)
    }

    /// What was dropped and what went wrong so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Workers that are in, each as it is now.
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.members.iter().map(|(worker, member)| {
            let left_ms = member.lease_until.0.saturating_sub(self.now.0);
            let silent_ms = self.config.lease_ttl_ms.saturating_sub(left_ms);
            let rests = self.healths.get(worker).is_some_and(|health| health.is_quarantined(self.now));
            let state = match member.state() {
                MemberState::Idle if rests => MemberState::Quarantined,
                state => state,
            };
            MemberView { worker: worker.clone(), state, session: member.session, silent_ms }
        })
    }

    /// How many workers are in.
    pub fn n_members(&self) -> usize {
        self.members.len()
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Millis, input: Input) {
        self.handle_timeout(now);
        // These put off what is due and bring nothing forward; a farm hears many of them.
        let only_puts_off = matches!(
            input,
            Input::Heartbeat { .. } | Input::StepTaken { .. } | Input::StepKept { .. } | Input::Decoding { .. }
        );
        let may_change_places = match input {
            Input::Submit { job, request_id, spec, reply } => {
                let answer = self.submit(job, request_id, spec);
                self.put(Output::Reply { reply, answer });
                true
            }
            Input::Cancel { job, reply } => {
                let answer = self.cancel(job);
                self.put(Output::Reply { reply, answer });
                true
            }
            Input::Retry { job, reply } => {
                let answer = self.retry(job);
                self.put(Output::Reply { reply, answer });
                true
            }
            Input::Delete { job, reply } => {
                let answer = self.delete(job);
                self.put(Output::Reply { reply, answer });
                false
            }
            Input::Join { worker, session, hello } => self.join(worker, session, hello),
            Input::Heartbeat { worker, session, work } => self.heartbeat(&worker, session, work),
            Input::Left { worker, session } => {
                self.disconnected(&worker, session);
                false
            }
            Input::Leave { worker, session } => {
                let is_in = self.members.get(&worker).is_some_and(|member| member.session == session);
                if is_in {
                    self.lose(&worker);
                }
                is_in
            }
            Input::Drain { worker, session } => match self.renew(&worker, session) {
                Some(member) => {
                    member.is_draining = true;
                    true
                }
                None => false,
            },
            Input::StepKept { epoch, n_steps_done } => {
                if self.step_kept(epoch, n_steps_done) {
                    self.judge(epoch);
                }
                false
            }
            Input::StepTaken { worker, session, epoch, rank: _, compute_ms } => {
                if self.is_seated(&worker, session, epoch) {
                    self.step_taken(&worker, epoch, compute_ms);
                    // The slow one's time may come behind the step: a step more split as it is would be a long one.
                    self.split_better(|attempt| attempt.epoch == epoch);
                }
                false
            }
            Input::Decoding { worker, session, epoch } => {
                if self.is_seated(&worker, session, epoch) {
                    self.decoding(&worker, epoch);
                }
                false
            }
            Input::Stopped { worker, session, epoch } => {
                let is_seated = self.is_seated(&worker, session, epoch);
                if is_seated {
                    self.stopped(&worker, epoch);
                }
                is_seated
            }
            Input::Finished { worker, session, epoch, artifact } => {
                let is_seated = self.is_seated(&worker, session, epoch);
                if is_seated {
                    self.finished(epoch, artifact);
                }
                is_seated
            }
            Input::Failed { worker, session, epoch, cause, message, blamed } => {
                let is_seated = self.is_seated(&worker, session, epoch);
                if is_seated {
                    self.failed(&worker, epoch, cause, (message, blamed));
                }
                is_seated
            }
            Input::ArtifactRefused { epoch, message } => {
                self.artifact_refused(epoch, message);
                false
            }
            Input::CheckpointLost { image, n_steps_done } => self.checkpoint_lost(&image, n_steps_done),
            Input::PictureLost { image, sha256, message } => {
                self.picture_lost(&image, &sha256, message);
                false
            }
        };
        if may_change_places {
            self.place();
        }
        if may_change_places || !only_puts_off {
            self.next_due = self.first_due();
        }
    }

    /// Does what is due by the clock.
    pub fn handle_timeout(&mut self, now: Millis) {
        // A clock that steps back ends no lease twice.
        self.now = self.now.max(now);
        let is_due = |due: Option<Millis>| due.is_some_and(|due| due <= self.now);
        if !is_due(self.next_due) {
            return;
        }
        self.next_due = self.first_due();
        if !is_due(self.next_due) {
            return;
        }
        self.queue.wake(self.now);
        self.rest_ends = self.rest_ends.split_off(&(self.now + 1));
        self.expire();
        self.give_up_overdue();
        self.give_up_stalled();
        self.place();
        self.next_due = self.first_due();
    }

    /// The next thing to be done.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] is due, if nothing happens before. It may find that what was due has been put off.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.next_due
    }

    fn first_due(&self) -> Option<Millis> {
        let leases = self.members.values().map(|member| member.lease_until);
        let attempts = self.attempts.values().flat_map(|attempt| [attempt.due(), self.stall_due(attempt)]).flatten();
        leases.chain(attempts).chain(self.rest_ends.first().copied()).chain(self.queue.next_due()).min()
    }

    /// One image.
    pub fn image(&self, id: &ImageId) -> Option<&Image> {
        self.jobs.get(&id.job)?.image(id.image)
    }

    /// What an image needs of a worker.
    pub(crate) fn need(&self, id: &ImageId) -> Option<Need> {
        let job = self.jobs.get(&id.job)?;
        Some(Need::of(&job.spec.model, job.image(id.image)?))
    }

    /// Changes an image, writes it down, and tells those who watch.
    pub(crate) fn change(&mut self, id: &ImageId, change: impl FnOnce(&mut Image)) {
        if self.image(id).is_none() {
            return;
        }
        self.leave(id);
        self.jobs.get_mut(&id.job).and_then(|job| job.change(id.image, change));
        self.enter(id);
        self.tell(id);
    }

    /// Takes an image out of the index and the count; [`Self::enter`] puts it in again.
    fn leave(&mut self, id: &ImageId) {
        let Some(job) = self.jobs.get(&id.job) else { return };
        let Some(image) = job.image(id.image) else { return };
        if image.is_open() {
            self.n_open -= 1;
        }
        if let Some(artifact) = &image.artifact {
            release(&mut self.pictures, &artifact.sha256);
        }
        if image.phase == Phase::Queued {
            let (need, turn) = (Need::of(&job.spec.model, image), (job.number, id.clone()));
            self.queue.remove(&need, &turn, image.not_before);
            if let Some(told) = self.told.get_mut(&need) {
                told.remove(&turn);
                if told.is_empty() {
                    self.told.remove(&need);
                }
            }
        }
    }

    fn enter(&mut self, id: &ImageId) {
        let Some(job) = self.jobs.get(&id.job) else { return };
        let Some(image) = job.image(id.image) else { return };
        if image.is_open() {
            self.n_open += 1;
        }
        if let Some(artifact) = &image.artifact {
            *self.pictures.entry(artifact.sha256.clone()).or_default() += 1;
        }
        if image.phase == Phase::Queued {
            let need = Need::of(&job.spec.model, image);
            self.queue.insert(need, (job.number, id.clone()), image.not_before, self.now);
        }
    }

    /// One revision further: written down first, told then.
    fn tell(&mut self, id: &ImageId) {
        let Some(job) = self.jobs.get_mut(&id.job) else { return };
        job.revision += 1;
        let (revision, job_phase, n_steps) = (job.revision, job.phase(), job.spec.request.steps as usize);
        let Some(image) = job.image(id.image) else { return };
        let attempt = image.epoch.and_then(|epoch| self.attempts.get(&epoch));
        let event = Event {
            image: id.clone(),
            revision,
            phase: image.phase,
            job_phase,
            n_steps_done: image.n_steps_done,
            n_steps,
            epoch: image.epoch,
            workers: attempt.map(|attempt| attempt.seats.clone()).unwrap_or_default(),
            message: image.message.clone(),
            artifact: image.artifact.clone(),
        };
        let (image, attempt) = (Box::new(image.clone()), attempt.cloned().map(Box::new));
        self.put(Output::Persist(Box::new(Record::Image { id: id.clone(), revision, image, attempt })));
        self.put(Output::Event(Box::new(event)));
    }

    pub(crate) fn put(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}

/// One image less has this picture. Whether none has it any more.
pub(crate) fn release(pictures: &mut BTreeMap<String, usize>, sha256: &str) -> bool {
    let Some(n_images) = pictures.get_mut(sha256) else { return true };
    *n_images -= 1;
    let is_last = *n_images == 0;
    if is_last {
        pictures.remove(sha256);
    }
    is_last
}
