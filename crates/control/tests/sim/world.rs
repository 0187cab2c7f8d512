//! The world of a run: virtual time, messages on their way, clients, and faults from outside.
//!
//! What clients want and which faults strike is in `outside.rs`, how ranks work together in `ranks.rs`.

use std::collections::{BTreeMap, BTreeSet};

use control::{Control, Input, Output, Phase, ReplyId, SessionId};
use plan::{Assignment, Epoch, ImageId};

use crate::oracle::Oracle;
use crate::outside::Client;
use crate::ranks::Team;
use crate::rng::Rng;
use crate::scene::{FAULTS_END_MS, Fault, Mode, Scene};
use crate::shell::Shell;
use crate::worker::{Connection, Report, Worker};

/// What goes down a session.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    Welcome,
    Refused,
    Assign(Box<Assignment>),
    Abort(Epoch),
    Stop(Epoch),
    Drained,
    Closed,
}

/// Something that happens to a worker's process, or what it waits for.
#[derive(Debug, Clone)]
pub(crate) enum ToWorker {
    Order { connection: u64, order: Order },
    Lost { connection: u64 },
    Connect,
    Begin { assignment: Box<Assignment> },
    Beat { connection: u64 },
    Fetched { epoch: Epoch },
    RowsDone { epoch: Epoch, n: usize, are_kept: bool },
    PeerGone { epoch: Epoch },
    Upload { epoch: Epoch },
}

/// Something that happens.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    Fault(Fault),
    Boot,
    Revive {
        worker: usize,
    },
    Continue {
        worker: usize,
        life: u64,
    },
    /// A thread that hung goes on.
    GoesOn {
        worker: usize,
        life: u64,
    },
    Worker {
        worker: usize,
        life: u64,
        what: ToWorker,
    },
    /// A connection comes in.
    Open {
        worker: usize,
        life: u64,
        connection: u64,
        hello: Box<control::Hello>,
    },
    /// A report comes in; `connection` is none for one that was on its way for long.
    Up {
        shell_life: u64,
        connection: Option<u64>,
        input: Box<Input>,
    },
    RowsArrive {
        worker: usize,
        life: u64,
        epoch: Epoch,
        n: usize,
    },
    StepEnd {
        epoch: Epoch,
    },
    DecodeEnd {
        epoch: Epoch,
    },
    NoAnswer {
        client: usize,
        reply: ReplyId,
    },
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) scene: Scene,
    pub(crate) now: u64,
    n_happenings: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    pub(crate) shell: Shell,
    pub(crate) workers: Vec<Worker>,
    pub(crate) teams: BTreeMap<Epoch, Team>,
    pub(crate) clients: Vec<Client>,
    pub(crate) oracle: Oracle,
    /// Steps all ranks of an attempt have taken, of every image.
    pub(crate) taken: BTreeSet<(ImageId, usize)>,
    pub(crate) n_repeated: usize,
    /// When the last message of a direction of a connection arrives; they stay in order.
    last_up: BTreeMap<u64, u64>,
    last_down: BTreeMap<u64, u64>,
    /// Connections whose messages on the way up are lost.
    dead: BTreeSet<u64>,
    deferred: BTreeMap<usize, Vec<ToWorker>>,
    pub(crate) next_id: u64,
    pub(crate) traces: bool,
}

impl World {
    pub(crate) fn new(scene: Scene, rng: Rng, traces: bool) -> Self {
        let workers = scene.workers.iter().cloned().enumerate().map(|(idx, spec)| Worker::new(idx, spec)).collect();
        let clients = scene.jobs.iter().map(Client::new).collect();
        let mut world = Self {
            rng,
            now: 0,
            n_happenings: 0,
            queue: BTreeMap::new(),
            shell: Shell::default(),
            workers,
            teams: BTreeMap::new(),
            clients,
            oracle: Oracle::default(),
            taken: BTreeSet::new(),
            n_repeated: 0,
            last_up: BTreeMap::new(),
            last_down: BTreeMap::new(),
            dead: BTreeSet::new(),
            deferred: BTreeMap::new(),
            next_id: 0,
            traces,
            scene,
        };
        world.shell.boot(0);
        for (at, fault) in world.scene.faults.clone() {
            world.at(at, Happening::Fault(fault));
        }
        world
    }

    /// Runs to the end of all jobs; what was found wrong.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        const LIMIT_MS: u64 = 4 * 3_600_000;
        loop {
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let due = self.shell.due();
            let at = next.into_iter().chain(due).min().unwrap_or(u64::MAX);
            if at > LIMIT_MS {
                return Err(format!("not at its end after {LIMIT_MS} ms: {}", self.unfinished()));
            }
            self.now = self.now.max(at);
            if due.is_some_and(|due| due <= self.now) {
                self.feed(None);
            } else if let Some((_, happening)) = self.queue.pop_first() {
                self.trace(|| format!("{happening:?}"));
                self.happen(happening);
            }
            if let Some(fault) = self.oracle.faults.first() {
                return Err(format!("at {} ms: {fault}", self.now));
            }
            if self.now > FAULTS_END_MS && self.is_over() {
                return self.verdict();
            }
        }
    }

    fn is_over(&self) -> bool {
        let Some(control) = &self.shell.control else { return false };
        self.clients.iter().all(|client| {
            let job = client.job.as_ref().and_then(|job| control.job(job));
            let is_over = job.map_or(client.is_forgotten, |job| job.phase().is_over());
            !client.waits() && is_over
        })
    }

    fn unfinished(&self) -> String {
        let Some(control) = &self.shell.control else { return "the coordinator is down".into() };
        let images = control.jobs().flat_map(|job| job.images.iter().map(move |image| (&job.id, image)));
        let open = images.filter(|(_, image)| matches!(image.phase, Phase::Queued | Phase::Running));
        format!("{:?}", open.collect::<Vec<_>>())
    }

    fn verdict(&self) -> Result<(), String> {
        if matches!(self.scene.mode, Mode::Calm | Mode::Crashes) && self.n_repeated > 0 {
            return Err(format!("{} steps were repeated though no member was lost", self.n_repeated));
        }
        let n_images: usize = self.scene.jobs.iter().map(|job| job.count as usize).sum();
        let slow = self.scene.faults.iter().filter(|(_, fault)| matches!(fault, Fault::Slow { .. })).count();
        // Twelve images for some five changes each, and as many stops by speed as a run of 24 steps can have.
        let most = 2 * (self.oracle.n_joins + self.oracle.n_drains + slow) + 6 * n_images;
        if self.oracle.n_stops > most {
            return Err(format!("{} stops, {most} can be explained", self.oracle.n_stops));
        }
        let control = self.shell.control.as_ref().ok_or("the coordinator is down")?;
        for artifact in control.jobs().flat_map(|job| &job.images).filter_map(|image| image.artifact.as_ref()) {
            if !self.shell.artifacts.contains(&artifact.sha256) {
                return Err(format!("picture {} is done and not there", artifact.sha256));
            }
        }
        Ok(())
    }

    pub(crate) fn trace(&self, line: impl FnOnce() -> String) {
        if self.traces {
            eprintln!("{:>8} ms  {}", self.now, line());
        }
    }

    pub(crate) fn at(&mut self, at: u64, happening: Happening) {
        self.n_happenings += 1;
        self.queue.insert((at.max(self.now), self.n_happenings), happening);
    }

    pub(crate) fn new_connection(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let most = self.scene.delay_ms;
        self.rng.of(0..most)
    }

    pub(crate) fn reach(&mut self, delay_ms: u64, worker: usize, what: ToWorker) {
        let life = self.workers[worker].life;
        self.at(self.now + delay_ms, Happening::Worker { worker, life, what });
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Fault(fault) => self.fault(fault),
            Happening::Boot => {
                if self.shell.control.is_none() {
                    self.shell.boot(self.now);
                }
            }
            Happening::Revive { worker } => self.start(worker),
            Happening::Continue { worker, life } => {
                if self.workers[worker].life == life {
                    self.workers[worker].is_paused = false;
                    for what in self.deferred.remove(&worker).unwrap_or_default() {
                        self.reach(0, worker, what);
                    }
                    self.unblock(worker);
                }
            }
            Happening::GoesOn { worker, life } => {
                if self.workers[worker].life == life && self.workers[worker].hangs_until <= self.now {
                    self.workers[worker].lingers = None;
                    self.unblock(worker);
                }
            }
            Happening::Worker { worker, life, what } => {
                let process = &self.workers[worker];
                if process.life != life || !process.is_alive {
                    return;
                }
                if process.is_paused {
                    self.deferred.entry(worker).or_default().push(what);
                    return;
                }
                self.worker_happens(worker, what);
            }
            Happening::Open { worker, life, connection, hello } => self.opened(worker, life, connection, *hello),
            Happening::Up { shell_life, connection, input } => {
                let is_lost = connection.is_some_and(|connection| self.dead.contains(&connection));
                if shell_life == self.shell.life && !is_lost {
                    self.feed(Some(*input));
                }
            }
            Happening::RowsArrive { worker, life, epoch, n } => self.rows_arrive(worker, life, epoch, n),
            Happening::StepEnd { epoch } => self.step_ends(epoch),
            Happening::DecodeEnd { epoch } => self.decode_ends(epoch),
            Happening::NoAnswer { client, reply } => self.no_answer(client, reply),
        }
    }

    /// Hands an input to the machine, looks at what comes out, performs it.
    pub(crate) fn feed(&mut self, input: Option<Input>) {
        // Time alone first, so that what it changes is told apart from what the input changes.
        if input.is_some() && self.shell.due().is_some_and(|due| due <= self.now) {
            self.feed(None);
        }
        let clock = self.shell.clock(self.now);
        // What a coordinator says by itself at its start.
        while let Some(output) = self.shell.control.as_mut().and_then(Control::poll_output) {
            self.perform(output);
        }
        let Some(control) = self.shell.control.as_mut() else { return };
        let before = self.oracle.before(self.now, control, input.as_ref());
        match input.clone() {
            Some(input) => control.handle(clock, input),
            None => control.handle_timeout(clock),
        }
        let outputs: Vec<Output> = std::iter::from_fn(|| control.poll_output()).collect();
        self.oracle.after(control, &before, input.as_ref(), &outputs);
        self.look_at_ends(&crate::oracle::running_before(&before), input.as_ref());
        for output in outputs {
            self.trace(|| format!("    {output:?}"));
            if let Some((left, down_ms)) = self.shell.crash.as_mut() {
                if *left == 0 {
                    let down_ms = *down_ms;
                    return self.crash(down_ms);
                }
                *left -= 1;
            }
            self.perform(output);
        }
        self.shell.commit();
        self.oracle.check(self.now, &self.shell);
        // What is done again by wish is not repeated.
        for id in std::mem::take(&mut self.oracle.begun_anew) {
            self.taken.retain(|(image, _)| *image != id);
        }
    }

    fn perform(&mut self, output: Output) {
        if let Output::Persist(record) = output {
            return self.shell.write(*record);
        }
        self.shell.commit();
        self.oracle.performed(self.now, &self.shell, &output);
        match output {
            Output::Persist(_) => {}
            Output::Event(event) => self.shell.forget_older(&event.image, event.n_steps_done),
            Output::Reply { reply, answer } => self.answered(reply, answer),
            Output::Welcome { session, .. } => self.order(session, Order::Welcome),
            Output::Refuse { session, .. } => {
                self.order(session, Order::Refused);
                self.close(session);
            }
            Output::Expel { session, .. } => self.close(session),
            Output::Assign { session, assignment, .. } => self.order(session, Order::Assign(assignment)),
            Output::Abort { session, epoch, .. } => self.order(session, Order::Abort(epoch)),
            Output::Stop { session, epoch, .. } => self.order(session, Order::Stop(epoch)),
            Output::Drained { session, .. } => {
                self.order(session, Order::Drained);
                self.close(session);
            }
            Output::DropCheckpoint { image } => self.shell.drop_checkpoint(&image),
            Output::Forget { job, .. } => self.forgotten(&job),
            Output::Quarantine { .. } => {}
        }
    }

    fn order(&mut self, session: SessionId, order: Order) {
        let Some((worker, connection)) = self.shell.sessions.get(&session).copied() else { return };
        let delay = self.delay();
        let last = self.last_down.entry(connection).or_default();
        *last = (*last).max(self.now + delay);
        let wait = *last - self.now;
        self.reach(wait, worker, ToWorker::Order { connection, order });
    }

    fn close(&mut self, session: SessionId) {
        self.order(session, Order::Closed);
        self.shell.sessions.remove(&session);
    }

    fn crash(&mut self, down_ms: u64) {
        self.trace(|| "    the coordinator dies".into());
        self.shell.die();
        // Whether it was written down that they begin anew is not known here.
        let wanted_again = self.oracle.wanted_again.clone();
        self.taken.retain(|(image, _)| !wanted_again.contains(image));
        self.oracle.coordinator_died();
        for worker in 0..self.workers.len() {
            if let Some(Connection { id, .. }) = self.workers[worker].connection {
                let delay = self.delay();
                self.reach(delay, worker, ToWorker::Lost { connection: id });
            }
        }
        self.at(self.now + down_ms, Happening::Boot);
    }

    fn opened(&mut self, worker: usize, life: u64, connection: u64, hello: control::Hello) {
        if self.shell.control.is_none() {
            return self.reach(1, worker, ToWorker::Lost { connection });
        }
        self.shell.next_session += 1;
        let session = SessionId(self.shell.next_session);
        let id = self.workers[worker].id.clone();
        if self.workers[worker].life == life {
            self.shell.sessions.insert(session, (worker, connection));
        }
        self.feed(Some(Input::Join { worker: id, session, hello }));
    }

    /// A report goes up its session, behind those before it.
    pub(crate) fn up(&mut self, worker: usize, report: Report) {
        let Some(Connection { id: connection, .. }) = self.workers[worker].connection else { return };
        let session = self.shell.sessions.iter().find(|(_, to)| **to == (worker, connection));
        let Some(session) = session.map(|(session, _)| *session) else { return };
        let input = Box::new(report.input(self.workers[worker].id.clone(), session));
        let shell_life = self.shell.life;
        if self.rng.chance(self.scene.duplicates_percent) {
            let at = self.now + self.rng.of(0..10_000);
            self.at(at, Happening::Up { shell_life, connection: None, input: input.clone() });
        }
        self.up_in_order(connection, input);
    }

    fn up_in_order(&mut self, connection: u64, input: Box<Input>) {
        let delay = self.delay();
        let last = self.last_up.entry(connection).or_default();
        *last = (*last).max(self.now + delay);
        let (at, shell_life) = (*last, self.shell.life);
        self.at(at, Happening::Up { shell_life, connection: Some(connection), input });
    }

    /// A session breaks; the coordinator may hear of it, and of what was said before, or not.
    pub(crate) fn break_session(&mut self, worker: usize, half_open: bool) {
        let Some(Connection { id: connection, .. }) = self.workers[worker].connection.take() else { return };
        let session = self.shell.sessions.iter().find(|(_, to)| **to == (worker, connection));
        let session = session.map(|(session, _)| *session);
        if self.rng.chance(50) || half_open {
            self.dead.insert(connection);
        }
        if let Some(session) = session {
            if half_open {
                return;
            }
            let input = Input::Left { worker: self.workers[worker].id.clone(), session };
            let at = self.last_up.get(&connection).copied().unwrap_or(0).max(self.now + self.scene.delay_ms);
            let shell_life = self.shell.life;
            self.at(at, Happening::Up { shell_life, connection: None, input: Box::new(input) });
        }
    }
}
