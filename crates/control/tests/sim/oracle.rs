//! What must be true after every event, whatever happened before.

use std::collections::{BTreeMap, BTreeSet};

use control::{ArtifactRef, Control, Event, Input, Job, Output, Phase, SessionId};
use plan::{Assignment, Epoch, ImageId, JobId, WorkerId};

use crate::shell::{LEASE_MS, RECONNECT_MS, Shell};

/// The incarnation of a process that takes another's name.
pub(crate) const IMPOSTOR: &str = "impostor";

/// What one epoch was given out as.
struct Given {
    image: ImageId,
    first: Assignment,
    workers: BTreeSet<WorkerId>,
}

/// Remembers over all lives of the coordinator.
#[derive(Default)]
pub(crate) struct Oracle {
    pub(crate) faults: Vec<String>,
    accepted: BTreeSet<JobId>,
    /// Jobs a client wants to be forgotten.
    pub(crate) unwanted: BTreeSet<JobId>,
    given: BTreeMap<Epoch, Given>,
    artifacts: BTreeMap<ImageId, ArtifactRef>,
    n_steps: BTreeMap<ImageId, usize>,
    revisions: BTreeMap<JobId, u64>,
    /// Sessions that are in, and when they were heard of last.
    pub(crate) heard: BTreeMap<WorkerId, (SessionId, u64)>,
    draining: BTreeSet<WorkerId>,
    /// Whose session broke, and who is not back yet.
    pub(crate) disconnected: BTreeSet<WorkerId>,
    /// Failures since the last step forward.
    n_failures: BTreeMap<ImageId, u32>,
    pub(crate) n_not_finite: BTreeMap<ImageId, u32>,
    n_bugs: BTreeMap<ImageId, u32>,
    /// Images a client wants again; whether it gets them is seen when they go back.
    pub(crate) wanted_again: BTreeSet<ImageId>,
    /// Images that a client had made again, until the world has heard of it.
    pub(crate) begun_anew: Vec<ImageId>,
    stops: BTreeSet<(Epoch, SessionId)>,
    pub(crate) n_stops: usize,
    pub(crate) n_joins: usize,
    pub(crate) n_drains: usize,
}

/// What was true before an input.
pub(crate) struct Before {
    stale: Option<Vec<Job>>,
    running: BTreeMap<Epoch, (ImageId, Vec<WorkerId>)>,
    sessions: BTreeMap<WorkerId, SessionId>,
}

impl Oracle {
    fn must(&mut self, is_true: bool, what: impl FnOnce() -> String) {
        if !is_true {
            self.faults.push(what());
        }
    }

    pub(crate) fn accepted(&mut self, job: JobId) {
        self.accepted.insert(job);
    }

    pub(crate) fn forgotten(&mut self, job: &JobId) {
        self.accepted.remove(job);
    }

    pub(crate) fn before(&mut self, now: u64, control: &Control, input: Option<&Input>) -> Before {
        let sessions = self.heard.iter().map(|(worker, (session, _))| (worker.clone(), *session)).collect();
        let mut stale = None;
        if let Some(input) = input {
            let (speaker, epoch) = speaker_of(input);
            let is_in = speaker
                .is_none_or(|(worker, session)| self.heard.get(worker).is_some_and(|(current, _)| *current == session));
            if let Some((worker, _)) = speaker.filter(|_| is_in) {
                self.heard.entry(worker.clone()).and_modify(|(_, at)| *at = now);
            }
            let is_wrong = |epoch| {
                let Some(attempt) = control.attempt(epoch) else { return true };
                let n_steps = control.job(&attempt.image.job).map_or(0, |job| job.spec.request.steps as usize);
                let is_beyond = matches!(input, Input::StepKept { n_steps_done, .. } if *n_steps_done > n_steps);
                is_beyond || speaker.is_some_and(|(worker, _)| !attempt.seats.contains(worker))
            };
            if !is_in || epoch.is_some_and(is_wrong) {
                stale = Some(control.jobs().cloned().collect());
            }
            self.note(now, control, input, is_in);
        }
        Before { stale, running: running(control), sessions }
    }

    /// Counts what an input explains later.
    fn note(&mut self, now: u64, control: &Control, input: &Input, is_in: bool) {
        match input {
            Input::Join { .. } => self.n_joins += 1,
            Input::Drain { worker, .. } if is_in => {
                self.n_drains += 1;
                self.draining.insert(worker.clone());
            }
            Input::Left { worker, session } if is_in => {
                // It may be back in a moment; if it is not, it is gone.
                let until = now + RECONNECT_MS;
                if let Some((current, at)) = self.heard.get_mut(worker)
                    && current == session
                {
                    *at = (*at).min(until.saturating_sub(LEASE_MS));
                    self.disconnected.insert(worker.clone());
                }
            }
            Input::Leave { worker, session } if is_in => {
                self.heard.retain(|name, (current, _)| name != worker || current != session);
            }
            Input::Failed { epoch, cause, .. } if is_in => {
                if let Some(attempt) = control.attempt(*epoch) {
                    *self.n_failures.entry(attempt.image.clone()).or_default() += 1;
                    if *cause == plan::Cause::Bug {
                        *self.n_bugs.entry(attempt.image.clone()).or_default() += 1;
                    }
                    if *cause == plan::Cause::NotFinite {
                        *self.n_not_finite.entry(attempt.image.clone()).or_default() += 1;
                    }
                }
            }
            _ => {}
        }
    }

    /// Looks at what an input, or time, led to; before any of it is performed.
    pub(crate) fn after(&mut self, control: &Control, before: &Before, input: Option<&Input>, outputs: &[Output]) {
        if let Some(jobs) = &before.stale {
            let same = control.jobs().eq(jobs.iter());
            self.must(same && outputs.is_empty(), || {
                format!("{input:?} is of the past, or nobody's business, and led to {outputs:?}")
            });
        }
        let asks = matches!(
            input,
            Some(Input::Submit { .. } | Input::Cancel { .. } | Input::Retry { .. } | Input::Delete { .. })
        );
        let n_replies = outputs.iter().filter(|output| matches!(output, Output::Reply { .. })).count();
        self.must(n_replies == usize::from(asks), || format!("{n_replies} answers to {input:?}"));
        if let Some(Input::Join { session, hello, .. }) = input
            && hello.incarnation == IMPOSTOR
        {
            let is_refused = matches!(outputs, [Output::Refuse { session: refused, .. }] if refused == session);
            self.must(is_refused, || format!("a second worker of one name joined: {outputs:?}"));
        }
        // An attempt that ends too early is ended on all its ranks.
        let stopped = matches!(input, Some(Input::Stopped { .. }));
        for (epoch, (image, seats)) in &before.running {
            let is_done = control.job(&image.job).and_then(|job| job.image(image.image)).map(|image| image.phase);
            if control.attempt(*epoch).is_some() || is_done == Some(Phase::Done) || stopped {
                continue;
            }
            for worker in seats {
                let Some(session) = before.sessions.get(worker) else { continue };
                let is_told = outputs.iter().any(|output| match output {
                    Output::Abort { session: to, epoch: of, .. } => to == session && of == epoch,
                    Output::Expel { session: to, .. } => to == session,
                    _ => false,
                });
                let left = matches!(input, Some(Input::Left { session: of, .. }) if of == session);
                // Who comes back after a restart and knows nothing of the epoch need not be told.
                let is_back = matches!(input, Some(Input::Join { worker: of, .. }) if of == worker);
                self.must(is_told || left || is_back || !self.sat(*epoch, worker, *session), || {
                    format!("epoch {epoch} ended and {worker} was not told")
                });
            }
        }
    }

    fn sat(&self, epoch: Epoch, worker: &WorkerId, _session: SessionId) -> bool {
        self.given.get(&epoch).is_some_and(|given| given.workers.contains(worker))
    }

    /// Looks at one output at the moment it is performed.
    pub(crate) fn performed(&mut self, now: u64, shell: &Shell, output: &Output) {
        match output {
            Output::Welcome { worker, session, .. } => {
                self.draining.remove(worker);
                self.disconnected.remove(worker);
                self.heard.insert(worker.clone(), (*session, now));
            }
            Output::Expel { worker, session, .. } => {
                self.heard.retain(|name, (current, _)| name != worker || current != session);
            }
            Output::Drained { worker, session } => {
                let is_seated = running_of(shell).any(|(_, seats)| seats.contains(worker));
                self.must(!is_seated, || format!("{worker} is said to have drained and holds a seat"));
                self.heard.retain(|name, (current, _)| name != worker || current != session);
            }
            Output::Stop { session, epoch, .. } => {
                self.n_stops += 1;
                let is_new = self.stops.insert((*epoch, *session));
                self.must(is_new, || format!("epoch {epoch} is asked to stop twice"));
            }
            Output::Assign { worker, session, assignment } => self.assigned(shell, worker, *session, assignment),
            Output::Event(event) => self.told(shell, event),
            Output::Forget { job, n_images, .. } => {
                self.must(self.unwanted.contains(job), || format!("{job} is forgotten and nobody asked for it"));
                let id = |idx| ImageId { job: job.clone(), image: plan::ImageIdx(idx) };
                let is_over = |idx| shell.durable_image(&id(idx)).is_some_and(|(image, ..)| image.phase.is_over());
                self.must((0..*n_images).all(is_over), || format!("{job} is forgotten before it is over"));
            }
            _ => {}
        }
    }

    fn assigned(&mut self, shell: &Shell, worker: &WorkerId, session: SessionId, assignment: &Assignment) {
        let (epoch, image) = (assignment.epoch, &assignment.image);
        let next = match shell.durable.get("epoch") {
            Some(control::Record::NextEpoch(next)) => *next,
            _ => Epoch(0),
        };
        self.must(next > epoch, || format!("epoch {epoch} was given out before it was written down"));
        let written = shell.durable_image(image).and_then(|(_, epoch, _)| epoch);
        self.must(written == Some(epoch), || format!("{image} is assigned as epoch {epoch}, written as {written:?}"));
        let is_in = self.heard.get(worker).is_some_and(|(current, _)| *current == session);
        self.must(is_in && !self.draining.contains(worker), || format!("{worker} is not in, or drains: epoch {epoch}"));
        let seat = assignment.peers.get(usize::from(assignment.rank.0)).map(|peer| &peer.worker);
        self.must(seat == Some(worker), || format!("{worker} got the seat of {seat:?} in epoch {epoch}"));
        let distinct: BTreeSet<_> = assignment.peers.iter().map(|peer| &peer.worker).collect();
        let n = assignment.mesh.n_ranks();
        self.must(distinct.len() == n && assignment.peers.len() == n, || format!("{n} ranks, peers {distinct:?}"));
        let is_there = assignment.n_steps_done == 0 || shell.classes(image, assignment.n_steps_done).is_some();
        self.must(is_there, || format!("{image} has no checkpoint behind step {}", assignment.n_steps_done));
        let newest = self.given.iter().filter(|(_, given)| given.image == *image).map(|(epoch, _)| *epoch).max();
        self.must(newest.is_none_or(|newest| newest <= epoch), || format!("epoch {epoch} comes after {newest:?}"));
        let given = self.given.entry(epoch).or_insert_with(|| Given {
            image: image.clone(),
            first: assignment.clone(),
            workers: BTreeSet::new(),
        });
        let is_new = given.workers.insert(worker.clone());
        let same = Assignment { rank: given.first.rank, ..assignment.clone() } == given.first;
        self.must(is_new && same, || format!("epoch {epoch} was given out twice, or differently: {assignment:?}"));
    }

    fn told(&mut self, shell: &Shell, event: &Event) {
        let (job, revision) = (event.image.job.clone(), event.revision);
        let written = shell.durable_image(&event.image).map_or(0, |(_, _, written)| written);
        self.must(written >= revision, || format!("revision {revision} of {job} is told and not written down"));
        let last = self.revisions.insert(job.clone(), revision).unwrap_or(0);
        self.must(revision > last, || format!("revision {revision} of {job} is told after {last}"));
    }

    /// What is true at any time.
    pub(crate) fn check(&mut self, now: u64, shell: &Shell) {
        let Some(control) = &shell.control else { return };
        for job in self.accepted.clone() {
            self.must(control.job(&job).is_some(), || format!("job {job} was accepted and is lost"));
        }
        let mut seated = BTreeSet::new();
        for job in control.jobs() {
            for (idx, image) in job.images.iter().enumerate() {
                let id = ImageId { job: job.id.clone(), image: plan::ImageIdx(idx as u32) };
                self.check_image(&id, image);
                let attempt = image.epoch.and_then(|epoch| control.attempt(epoch));
                let is_running = image.phase == Phase::Running;
                self.must(is_running == attempt.is_some_and(|attempt| attempt.image == id), || {
                    format!("{id} is {:?} in epoch {:?}", image.phase, image.epoch)
                });
                for worker in attempt.iter().flat_map(|attempt| &attempt.seats) {
                    self.must(seated.insert(worker.clone()), || format!("{worker} holds two images"));
                    let is_in = self.heard.contains_key(worker) || !shell.has_reattached(now);
                    self.must(is_in, || format!("{worker} is not in and holds a seat in epoch {:?}", image.epoch));
                }
            }
        }
        let silent = self.heard.iter().find(|(_, (_, at))| at + LEASE_MS <= now);
        let silent = silent.map(|(worker, (session, at))| format!("{worker} {session:?} is in, silent since {at}"));
        if let Some(silent) = silent {
            self.faults.push(silent);
        }
        let due = shell.due();
        self.must(due.is_none_or(|due| due > now), || format!("the machine wants to be asked at {due:?}, it is {now}"));
        let (n_members, n_heard) = (control.n_members(), self.heard.len());
        self.must(n_members == n_heard, || format!("{n_members} members, {n_heard} were welcomed"));
    }

    fn check_image(&mut self, id: &ImageId, image: &control::Image) {
        let is_over = matches!(image.phase, Phase::Failed | Phase::Cancelled);
        let is_back = self.n_steps.get(id).is_some_and(|before| *before > image.n_steps_done);
        if (!is_over || is_back) && self.wanted_again.remove(id) {
            self.n_steps.remove(id);
            self.n_failures.remove(id);
            self.n_not_finite.remove(id);
            self.n_bugs.remove(id);
            self.begun_anew.push(id.clone());
        }
        let before = self.n_steps.insert(id.clone(), image.n_steps_done).unwrap_or(0);
        if image.n_steps_done > before {
            self.n_failures.remove(id);
        }
        self.must(image.n_steps_done >= before, || format!("{id} went back from step {before}"));
        if let Some(artifact) = &image.artifact {
            let first = self.artifacts.entry(id.clone()).or_insert_with(|| artifact.clone()).clone();
            self.must(first == *artifact && image.phase == Phase::Done, || format!("{id} has two pictures"));
        } else {
            self.must(!self.artifacts.contains_key(id), || format!("the picture of {id} is lost"));
        }
        if image.phase == Phase::Failed {
            let n_failures = self.n_failures.get(id).copied().unwrap_or(0);
            let n_not_finite = self.n_not_finite.get(id).copied().unwrap_or(0);
            let n_bugs = self.n_bugs.get(id).copied().unwrap_or(0);
            self.must(n_failures >= 5 || n_not_finite >= 2 || n_bugs >= 2, || {
                format!("{id} failed for nothing: {}", image.message)
            });
            self.must(!image.message.is_empty(), || format!("{id} failed and does not say why"));
        }
    }

    /// Forgets what the coordinator forgot by dying.
    pub(crate) fn coordinator_died(&mut self) {
        self.heard.clear();
        self.draining.clear();
        self.disconnected.clear();
    }
}

fn running_of(shell: &Shell) -> impl Iterator<Item = (ImageId, Vec<WorkerId>)> {
    shell.control.iter().flat_map(running).map(|(_, attempt)| attempt)
}

/// Attempts that are on.
pub(crate) fn running(control: &Control) -> BTreeMap<Epoch, (ImageId, Vec<WorkerId>)> {
    let images = control.jobs().flat_map(|job| &job.images);
    let attempts = images.filter_map(|image| control.attempt(image.epoch?));
    attempts.map(|attempt| (attempt.epoch, (attempt.image.clone(), attempt.seats.clone()))).collect()
}

/// Whose message it is, and of which epoch.
fn speaker_of(input: &Input) -> (Option<(&WorkerId, SessionId)>, Option<Epoch>) {
    match input {
        Input::Heartbeat { worker, session, .. }
        | Input::Left { worker, session }
        | Input::Leave { worker, session }
        | Input::Drain { worker, session } => (Some((worker, *session)), None),
        Input::StepTaken { worker, session, epoch, .. }
        | Input::Stopped { worker, session, epoch }
        | Input::Decoding { worker, session, epoch }
        | Input::Finished { worker, session, epoch, .. }
        | Input::Failed { worker, session, epoch, .. } => (Some((worker, *session)), Some(*epoch)),
        Input::StepKept { epoch, .. } | Input::ArtifactRefused { epoch, .. } => (None, Some(*epoch)),
        Input::Submit { .. }
        | Input::Cancel { .. }
        | Input::Retry { .. }
        | Input::Delete { .. }
        | Input::CheckpointLost { .. }
        | Input::PictureLost { .. }
        | Input::Join { .. } => (None, None),
    }
}

/// Attempts that were on before an input.
pub(crate) fn running_before(before: &Before) -> BTreeMap<Epoch, (ImageId, Vec<WorkerId>)> {
    before.running.clone()
}
