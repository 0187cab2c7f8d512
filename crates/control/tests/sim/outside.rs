//! What happens from outside: clients and what they are answered, faults, messages nobody should send.

use std::collections::BTreeMap;

use control::{ControlError, Input, JobSpec, Phase, ReplyId, SessionId};
use plan::{ArtifactKind, Cause, Epoch, ImageId, JobId, WorkerId};

use crate::oracle::IMPOSTOR;
use crate::scene::Fault;
use crate::worker::Report;
use crate::world::{Happening, World};

/// Someone who wants a job.
pub(crate) struct Client {
    pub(crate) spec: JobSpec,
    pub(crate) job: Option<JobId>,
    /// Its job was forgotten once: whatever it is answered is right, as far as it can tell.
    pub(crate) is_forgotten: bool,
    pending: BTreeMap<ReplyId, Wish>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Job,
    Other,
    Cancel,
    Retry,
    Delete,
}

impl Client {
    pub(crate) fn new(spec: &JobSpec) -> Self {
        Self { spec: spec.clone(), job: None, is_forgotten: false, pending: BTreeMap::new() }
    }

    /// Whether an answer has not come yet.
    pub(crate) fn waits(&self) -> bool {
        !self.pending.is_empty()
    }
}

impl World {
    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Submit { client } => self.ask(client, Wish::Job),
            Fault::SubmitAgain { client } if self.clients[client].job.is_some() => self.ask(client, Wish::Job),
            Fault::SubmitOther { client } if self.clients[client].job.is_some() => self.ask(client, Wish::Other),
            Fault::Cancel { client } if self.clients[client].job.is_some() => self.ask(client, Wish::Cancel),
            Fault::Retry { client } if self.clients[client].job.is_some() => self.ask(client, Wish::Retry),
            Fault::Delete { client } if self.clients[client].job.is_some() => self.ask(client, Wish::Delete),
            Fault::SubmitAgain { .. }
            | Fault::SubmitOther { .. }
            | Fault::Cancel { .. }
            | Fault::Retry { .. }
            | Fault::Delete { .. } => {}
            Fault::Start { worker } => self.start(worker),
            Fault::Kill { worker, silently, back_after_ms } => self.kill(worker, silently, back_after_ms),
            Fault::Pause { worker, for_ms } => self.pause(worker, for_ms),
            Fault::Break { worker, half_open } => self.lose_session(worker, half_open),
            Fault::Cut { worker, for_ms } => {
                self.workers[worker].is_cut_until = self.now + for_ms;
                self.lose_session(worker, true);
            }
            Fault::Drain { worker, back_after_ms } => {
                if self.workers[worker].is_alive {
                    self.workers[worker].drains = true;
                    self.say(worker, Report::Drain);
                    let at = self.now + back_after_ms;
                    self.at(at, Happening::Revive { worker });
                }
            }
            Fault::Slow { worker, percent } => self.workers[worker].speed_percent = percent,
            Fault::Crash { after_outputs, down_ms } => {
                if self.shell.control.is_some() {
                    self.shell.crash.get_or_insert((after_outputs, down_ms));
                }
            }
            Fault::DiskFull { for_ms } => self.shell.disk_full_until = self.now + for_ms,
            Fault::Sicken { worker, cause, for_ms } => {
                self.workers[worker].is_sick = Some((cause, self.now + for_ms));
            }
            Fault::Hang { worker, for_ms } => self.hang(worker, for_ms),
            Fault::BreakDevice { worker } => self.workers[worker].device_breaks = true,
            Fault::Impostor { worker } => {
                let (id, mut hello) = (self.workers[worker].id.clone(), self.workers[worker].hello());
                hello.incarnation = IMPOSTOR.into();
                hello.running = None;
                let is_there = self.oracle.heard.contains_key(&id) && !self.oracle.disconnected.contains(&id);
                if is_there && self.shell.control.is_some() {
                    self.shell.next_session += 1;
                    let session = SessionId(self.shell.next_session);
                    self.feed(Some(Input::Join { worker: id, session, hello }));
                }
            }
            Fault::Nonsense => self.nonsense(),
            Fault::Rogue { worker } => self.rogue(worker),
        }
    }

    fn nonsense(&mut self) {
        let epoch = Epoch(if self.rng.chance(50) { u64::MAX } else { self.rng.of(0..20) });
        let (worker, session) = (WorkerId("nobody".into()), SessionId(u64::MAX));
        let message = "nonsense".to_owned();
        let input = match self.rng.of(0..5) {
            0 => Input::StepKept { epoch: Epoch(u64::MAX), n_steps_done: usize::MAX },
            1 => Input::Failed { worker, session, epoch, cause: Cause::Bug, message, blamed: None },
            2 => Input::Stopped { worker, session, epoch },
            3 => Input::Heartbeat { worker, session, work: None },
            _ => Input::Drain { worker, session },
        };
        self.feed(Some(input));
    }

    fn rogue(&mut self, worker: usize) {
        let worker = self.workers[worker].id.clone();
        let Some(control) = &self.shell.control else { return };
        let running = crate::oracle::running(control);
        let Some((epoch, _)) = running.iter().find(|(_, (_, seats))| !seats.contains(&worker)) else { return };
        let (epoch, message) = (*epoch, "rogue".to_owned());
        let Some((session, _)) = self.oracle.heard.get(&worker).copied() else { return };
        let artifact = control::ArtifactRef { sha256: message.clone(), size_bytes: 0, kind: ArtifactKind::Png8 };
        let input = match self.rng.of(0..5) {
            0 => Input::StepKept { epoch, n_steps_done: usize::MAX },
            1 => Input::Failed { worker, session, epoch, cause: Cause::Bug, message, blamed: None },
            2 => Input::Stopped { worker, session, epoch },
            3 => Input::Decoding { worker, session, epoch },
            _ => Input::Finished { worker, session, epoch, artifact },
        };
        self.feed(Some(input));
    }

    fn ask(&mut self, client: usize, wish: Wish) {
        self.next_id += 1;
        let reply = ReplyId(self.next_id);
        self.clients[client].pending.insert(reply, wish);
        self.at(self.now + 2_000, Happening::NoAnswer { client, reply });
        let (job, request_id) = (JobId(format!("j{}", self.next_id)), format!("client-{client}"));
        let mut spec = self.clients[client].spec.clone();
        spec.request.seed ^= u64::from(wish == Wish::Other);
        let known = self.clients[client].job.clone();
        let input = match (wish, known) {
            (Wish::Job | Wish::Other, _) => Input::Submit { job, request_id, spec, reply },
            (Wish::Cancel, Some(job)) => Input::Cancel { job, reply },
            (Wish::Delete, Some(job)) => {
                self.oracle.unwanted.insert(job.clone());
                Input::Delete { job, reply }
            }
            (Wish::Retry, Some(job)) => {
                self.want_again(&job);
                Input::Retry { job, reply }
            }
            (_, None) => return,
        };
        self.feed(Some(input));
    }

    /// A job was forgotten, which its client is told next, if it still listens.
    pub(crate) fn forgotten(&mut self, job: &JobId) {
        self.shell.forget(job);
        self.oracle.forgotten(job);
        for client in self.clients.iter_mut().filter(|client| client.job.as_ref() == Some(job)) {
            client.is_forgotten = true;
        }
    }

    fn want_again(&mut self, job: &JobId) {
        let Some(job) = self.shell.control.as_ref().and_then(|control| control.job(job)) else { return };
        for (idx, image) in job.images.iter().enumerate() {
            if matches!(image.phase, Phase::Failed | Phase::Cancelled) {
                let image = plan::ImageIdx(idx as u32);
                self.oracle.wanted_again.insert(ImageId { job: job.id.clone(), image });
            }
        }
    }

    pub(crate) fn no_answer(&mut self, client: usize, reply: ReplyId) {
        // The coordinator was away. Whoever wants a job asks again; the others give up.
        if let Some(Wish::Job) = self.clients[client].pending.remove(&reply) {
            self.ask(client, Wish::Job);
        }
    }

    pub(crate) fn answered(&mut self, reply: ReplyId, answer: Result<JobId, ControlError>) {
        let client = self.clients.iter_mut().find(|client| client.pending.contains_key(&reply));
        let Some((client, wish)) = client.and_then(|c| c.pending.remove(&reply).map(|wish| (c, wish))) else { return };
        let is_right = match (wish, &answer) {
            _ if client.is_forgotten => true,
            (Wish::Job, Ok(job)) => client.job.as_ref().is_none_or(|known| known == job),
            (Wish::Other, Err(ControlError::AlreadyExists { job, .. })) => client.job.as_ref() == Some(job),
            (Wish::Cancel, Ok(_) | Err(ControlError::IsOver { .. })) => true,
            (Wish::Retry, Ok(_) | Err(ControlError::NothingToRetry { .. })) => true,
            (Wish::Delete, Err(ControlError::NotOver { .. })) => true,
            _ => false,
        };
        if !is_right {
            self.oracle.faults.push(format!("{wish:?} was answered with {answer:?}"));
        }
        if let (Wish::Job, Ok(job)) = (wish, answer) {
            let is_durable = self.shell.durable.contains_key(&format!("jobs/{job}"));
            if !is_durable {
                self.oracle.faults.push(format!("job {job} was accepted before it was written down"));
            }
            client.job = Some(job.clone());
            self.oracle.accepted(job);
        }
    }
}
