//! What workers do: sessions, and the ranks of one attempt, which take every step together.

use std::collections::BTreeSet;

use control::{ArtifactRef, Input};
use plan::{ArtifactKind, Assignment, Cause, Epoch, Rank};

use crate::worker::{At, Connection, Part, Report, Worker};
use crate::world::{Happening, Order, ToWorker, World};

/// The ranks of one attempt.
pub(crate) struct Team {
    pub(crate) assignment: Assignment,
    pub(crate) n_steps_done: usize,
    ready: BTreeSet<Rank>,
    is_broken: bool,
    /// A step ended but for a rank that is paused.
    is_blocked: bool,
    decodes: bool,
    /// A rank had no session, or its rows took longer than a step: more than one step may be lost with a member.
    pub(crate) is_loose: bool,
}

impl World {
    pub(crate) fn start(&mut self, worker: usize) {
        let process = &mut self.workers[worker];
        if process.is_alive {
            return;
        }
        process.life += 1;
        (process.is_alive, process.is_paused, process.drains) = (true, false, false);
        (process.part, process.connection) = (None, None);
        (process.hangs_until, process.lingers) = (0, None);
        process.reports.clear();
        self.reach(0, worker, ToWorker::Connect);
    }

    pub(crate) fn kill(&mut self, worker: usize, silently: bool, back_after_ms: u64) {
        if !self.workers[worker].is_alive {
            return;
        }
        self.break_session(worker, silently);
        self.workers[worker].is_alive = false;
        self.drop_part(worker);
        let at = self.now + back_after_ms;
        self.at(at, Happening::Revive { worker });
    }

    pub(crate) fn pause(&mut self, worker: usize, for_ms: u64) {
        if !self.workers[worker].is_alive || self.workers[worker].is_paused {
            return;
        }
        self.workers[worker].is_paused = true;
        let life = self.workers[worker].life;
        self.at(self.now + for_ms, Happening::Continue { worker, life });
        // Its peers may grow tired of waiting.
        if let Some(epoch) = self.workers[worker].part.as_ref().map(|part| part.assignment.epoch) {
            for peer in self.peers(epoch).into_iter().filter(|peer| *peer != worker) {
                let patience_ms = self.rng.of(500..8_000);
                if patience_ms < for_ms {
                    self.reach(patience_ms, peer, ToWorker::PeerGone { epoch });
                }
            }
        }
    }

    pub(crate) fn lose_session(&mut self, worker: usize, half_open: bool) {
        if self.workers[worker].connection.is_none() {
            return;
        }
        self.break_session(worker, half_open);
        self.disconnected(worker);
    }

    fn disconnected(&mut self, worker: usize) {
        if self.workers[worker].drains && self.workers[worker].part.is_none() {
            self.exit(worker, 500);
            return;
        }
        // Nobody waits for a coordinator that is away.
        if self.workers[worker].part.as_ref().is_some_and(|part| part.at == At::Gated) {
            self.work(worker);
        }
        let pause_ms = self.rng.of(50..2_000);
        self.reach(pause_ms, worker, ToWorker::Connect);
    }

    /// The process ends by itself.
    fn exit(&mut self, worker: usize, back_after_ms: u64) {
        self.break_session(worker, false);
        self.workers[worker].is_alive = false;
        self.drop_part(worker);
        let at = self.now + back_after_ms;
        self.at(at, Happening::Revive { worker });
    }

    pub(crate) fn say(&mut self, worker: usize, report: Report) {
        if self.workers[worker].is_connected() {
            self.up(worker, report);
        } else if !matches!(report, Report::Heartbeat { .. } | Report::Drain) {
            self.workers[worker].reports.push_back(report);
        }
    }

    pub(crate) fn worker_happens(&mut self, worker: usize, what: ToWorker) {
        let current = self.workers[worker].connection.map(|connection| connection.id);
        let hangs_ms = self.workers[worker].hangs_until.saturating_sub(self.now);
        let is_of_thread = matches!(
            what,
            ToWorker::Begin { .. } | ToWorker::Fetched { .. } | ToWorker::PeerGone { .. } | ToWorker::Upload { .. }
        );
        if hangs_ms > 0 && is_of_thread {
            return self.reach(hangs_ms, worker, what);
        }
        match what {
            ToWorker::Begin { assignment } => self.begin(worker, *assignment),
            ToWorker::Connect if current.is_none() => {
                if self.workers[worker].is_cut_until > self.now {
                    return self.reach(500, worker, ToWorker::Connect);
                }
                let connection = self.new_connection();
                self.workers[worker].connection = Some(Connection { id: connection, is_welcome: false });
                let (life, hello) = (self.workers[worker].life, Box::new(self.workers[worker].hello()));
                let at = self.now + self.delay();
                self.at(at, Happening::Open { worker, life, connection, hello });
            }
            ToWorker::Connect => {}
            ToWorker::Lost { connection } if current == Some(connection) => {
                self.workers[worker].connection = None;
                self.disconnected(worker);
            }
            ToWorker::Beat { connection } if current == Some(connection) => {
                let epoch = self.workers[worker].part.as_ref().map(|part| part.assignment.epoch);
                let waits = epoch.and_then(|epoch| self.teams.get(&epoch)).is_some_and(|team| team.is_blocked);
                let work = self.workers[worker].work(self.now, waits);
                self.say(worker, Report::Heartbeat { work });
                self.reach(crate::shell::LEASE_MS / 3, worker, ToWorker::Beat { connection });
            }
            ToWorker::Order { connection, order } if current == Some(connection) => self.obey(worker, order),
            ToWorker::Lost { .. } | ToWorker::Beat { .. } | ToWorker::Order { .. } => {}
            ToWorker::Fetched { epoch } if self.is_at(worker, epoch, &[At::Fetching]) => self.fetched(worker, epoch),
            ToWorker::RowsDone { epoch, n, are_kept } if self.part_is(worker, epoch) => {
                self.rows_done(worker, n, are_kept);
            }
            ToWorker::PeerGone { epoch } if self.is_at(worker, epoch, &[At::Working, At::Gated]) => {
                self.fail(worker, Cause::Peer, format!("another rank of epoch {epoch} is gone"));
            }
            ToWorker::Upload { epoch } if self.is_at(worker, epoch, &[At::Uploading]) => self.upload(worker, epoch),
            ToWorker::Fetched { .. } | ToWorker::RowsDone { .. } | ToWorker::PeerGone { .. } => {}
            ToWorker::Upload { .. } => {}
        }
    }

    fn obey(&mut self, worker: usize, order: Order) {
        match order {
            Order::Welcome => {
                let Some(connection) = self.workers[worker].connection.as_mut() else { return };
                connection.is_welcome = true;
                let connection = connection.id;
                self.reach(0, worker, ToWorker::Beat { connection });
                if self.workers[worker].drains {
                    self.say(worker, Report::Drain);
                }
                while let Some(report) = self.workers[worker].reports.pop_front() {
                    self.up(worker, report);
                }
            }
            Order::Refused => self.exit(worker, 700),
            Order::Drained => self.exit(worker, 500),
            Order::Closed => {
                self.workers[worker].connection = None;
                self.disconnected(worker);
            }
            Order::Assign(assignment) => self.begin(worker, *assignment),
            Order::Abort(epoch) => {
                if self.part_is(worker, epoch) {
                    self.drop_part(worker);
                }
            }
            Order::Stop(epoch) => {
                if let Some(part) = self.workers[worker].part.as_mut().filter(|part| part.assignment.epoch == epoch) {
                    part.stops = true;
                }
            }
        }
    }

    fn begin(&mut self, worker: usize, assignment: Assignment) {
        if self.workers[worker].hangs_until > self.now {
            return self.reach(0, worker, ToWorker::Begin { assignment: Box::new(assignment) });
        }
        let epoch = assignment.epoch;
        if self.workers[worker].part.as_ref().is_some_and(|part| part.assignment.epoch >= epoch) {
            return;
        }
        self.drop_part(worker);
        let n_steps_done = assignment.n_steps_done;
        self.teams.entry(epoch).or_insert_with(|| Team {
            assignment: assignment.clone(),
            n_steps_done,
            ready: BTreeSet::new(),
            is_broken: false,
            is_blocked: false,
            decodes: false,
            is_loose: false,
        });
        let at = if n_steps_done == 0 { At::Working } else { At::Fetching };
        self.workers[worker].part = Some(Part { assignment, at, stops: false, sending: None, next_rows: None });
        if at == At::Fetching {
            let delay = self.delay();
            self.reach(2 * delay, worker, ToWorker::Fetched { epoch });
        } else {
            self.work(worker);
        }
    }

    fn fetched(&mut self, worker: usize, epoch: Epoch) {
        let Some(part) = self.workers[worker].part.as_ref() else { return };
        let (image, n) = (part.assignment.image.clone(), part.assignment.n_steps_done);
        let is_reached = self.shell.attempted(epoch).is_some() && self.workers[worker].is_cut_until <= self.now;
        match self.shell.classes(&image, n).filter(|_| is_reached) {
            None => self.fail(worker, Cause::Peer, "the checkpoint did not come".into()),
            Some(classes) => {
                let own = self.workers[worker].spec.numeric_class;
                if classes != BTreeSet::from([own]) {
                    self.oracle.faults.push(format!("{image} goes on in {own} from rows of {classes:?}"));
                }
                self.work(worker);
            }
        }
    }

    /// A rank could begin its next step.
    fn work(&mut self, worker: usize) {
        let Some(part) = self.workers[worker].part.as_mut() else { return };
        part.at = At::Working;
        let (epoch, rank) = (part.assignment.epoch, part.assignment.rank);
        let Some(team) = self.teams.get_mut(&epoch) else { return };
        team.ready.insert(rank);
        if team.is_broken {
            let delay = self.rng.of(1..200);
            return self.reach(delay, worker, ToWorker::PeerGone { epoch });
        }
        if team.ready.len() < team.assignment.mesh.n_ranks() {
            return;
        }
        team.ready.clear();
        let (n_done, n_steps) = (team.n_steps_done, team.assignment.request.steps as usize);
        let peers = self.peers(epoch);
        let stops = peers.iter().any(|peer| {
            self.workers[*peer].part.as_ref().is_some_and(|part| part.stops && part.assignment.rank == Rank(0))
        });
        if n_done >= n_steps {
            if let Some(team) = self.teams.get_mut(&epoch) {
                team.decodes = true;
            }
            if let Some(first) = peers.iter().find(|peer| self.rank(**peer) == Some(Rank(0))) {
                self.say(*first, Report::Decoding { epoch });
            }
            let took_ms = self.rng.of(50..1_500);
            self.at(self.now + took_ms, Happening::DecodeEnd { epoch });
        } else if stops {
            for peer in peers {
                if let Some(part) = self.workers[peer].part.as_mut() {
                    part.at = At::Stopping;
                }
                self.say_stopped(peer);
            }
        } else {
            let longest = peers.iter().map(|peer| self.workers[*peer].step_ms()).fold(1.0, f64::max);
            self.at(self.now + longest as u64, Happening::StepEnd { epoch });
        }
    }

    /// Workers whose part is of this epoch.
    fn peers(&self, epoch: Epoch) -> Vec<usize> {
        (0..self.workers.len()).filter(|worker| self.part_is(*worker, epoch)).collect()
    }

    pub(crate) fn rank(&self, worker: usize) -> Option<Rank> {
        self.workers[worker].part.as_ref().map(|part| part.assignment.rank)
    }

    fn part_is(&self, worker: usize, epoch: Epoch) -> bool {
        self.workers[worker].part.as_ref().is_some_and(|part| part.assignment.epoch == epoch)
    }

    fn is_at(&self, worker: usize, epoch: Epoch, places: &[At]) -> bool {
        let part = self.workers[worker].part.as_ref();
        part.is_some_and(|part| part.assignment.epoch == epoch && places.contains(&part.at))
    }

    /// Whether all ranks can end what they do together; if one is paused, they wait for it.
    fn are_together(&mut self, epoch: Epoch) -> bool {
        let stands = |worker: &Worker| worker.is_paused || worker.hangs_until > self.now;
        let is_paused = self.peers(epoch).iter().any(|peer| stands(&self.workers[*peer]));
        let Some(team) = self.teams.get_mut(&epoch) else { return false };
        team.is_blocked = is_paused && !team.is_broken;
        !team.is_broken && !is_paused
    }

    pub(crate) fn unblock(&mut self, worker: usize) {
        let Some(epoch) = self.workers[worker].part.as_ref().map(|part| part.assignment.epoch) else { return };
        let Some(team) = self.teams.get(&epoch).filter(|team| team.is_blocked) else { return };
        let happening = if team.decodes { Happening::DecodeEnd { epoch } } else { Happening::StepEnd { epoch } };
        self.at(self.now + 1, happening);
    }

    pub(crate) fn step_ends(&mut self, epoch: Epoch) {
        if !self.are_together(epoch) {
            return;
        }
        let peers = self.peers(epoch);
        if let Some((worker, cause, message)) = self.what_breaks(epoch, &peers) {
            return self.fail(worker, cause, message);
        }
        let is_late = |peer: &usize| self.workers[*peer].part.as_ref().is_some_and(|part| part.sending.is_some());
        let is_loose = peers.iter().any(|peer| !self.workers[*peer].is_connected() || is_late(peer));
        let Some(team) = self.teams.get_mut(&epoch) else { return };
        team.n_steps_done += 1;
        team.is_loose |= is_loose;
        let (n, image) = (team.n_steps_done, team.assignment.image.clone());
        // Steps an epoch takes when it is over already are nobody's loss.
        if self.shell.control.is_none() || self.shell.attempted(epoch).is_some() {
            self.n_repeated += usize::from(!self.taken.insert((image, n)));
        }
        for peer in peers {
            let compute_ms = self.workers[peer].step_ms();
            let Some(part) = self.workers[peer].part.as_mut() else { continue };
            let (rank, must_wait) = (part.assignment.rank, part.sending.is_some());
            part.next_rows = Some(n);
            part.at = At::Gated;
            self.say(peer, Report::StepTaken { epoch, rank, compute_ms });
            if !must_wait {
                self.send_rows(peer);
            } else if !self.workers[peer].is_connected() {
                self.work(peer);
            }
        }
    }

    fn send_rows(&mut self, worker: usize) {
        let life = self.workers[worker].life;
        let Some(part) = self.workers[worker].part.as_mut() else { return };
        if part.sending.is_none()
            && let Some(n) = part.next_rows.take()
        {
            part.sending = Some(n);
            let (epoch, was_gated) = (part.assignment.epoch, part.at == At::Gated);
            let at = self.now + self.delay();
            self.at(at, Happening::RowsArrive { worker, life, epoch, n });
            if was_gated {
                self.work(worker);
            }
        }
    }

    pub(crate) fn rows_arrive(&mut self, worker: usize, life: u64, epoch: Epoch, n: usize) {
        let process = &self.workers[worker];
        if process.life != life {
            return;
        }
        let is_cut = process.is_cut_until > self.now || self.shell.control.is_none();
        let class = process.spec.numeric_class;
        let seat = self.teams.get(&epoch).and_then(|team| {
            let rank = team.assignment.peers.iter().position(|peer| peer.worker == process.id)?;
            Some((team.assignment.mesh.clone(), Rank(rank as u16)))
        });
        let Some((mesh, rank)) = seat else { return };
        let is_whole = if is_cut { None } else { Some(self.shell.put_rows(epoch, n, &mesh, rank, class)) };
        if is_whole == Some(Some(true)) {
            let input = Input::StepKept { epoch, n_steps_done: n };
            if self.rng.chance(self.scene.duplicates_percent) {
                let (shell_life, at) = (self.shell.life, self.now + self.rng.of(0..10_000));
                self.at(at, Happening::Up { shell_life, connection: None, input: Box::new(input.clone()) });
            }
            self.feed(Some(input));
        }
        // The coordinator may have died over it; then its answer does not come.
        let are_kept = is_whole.is_some() && self.shell.control.is_some();
        if !are_kept && let Some(team) = self.teams.get_mut(&epoch) {
            team.is_loose = true;
        }
        let delay = self.delay();
        self.reach(delay, worker, ToWorker::RowsDone { epoch, n, are_kept });
    }

    fn rows_done(&mut self, worker: usize, n: usize, are_kept: bool) {
        const AGAIN_MS: u64 = 100;
        let life = self.workers[worker].life;
        let Some(part) = self.workers[worker].part.as_mut().filter(|part| part.sending == Some(n)) else { return };
        let epoch = part.assignment.epoch;
        if are_kept || part.next_rows.is_some() {
            part.sending = None;
            self.send_rows(worker);
            self.say_stopped(worker);
        } else {
            self.at(self.now + AGAIN_MS, Happening::RowsArrive { worker, life, epoch, n });
        }
    }

    fn say_stopped(&mut self, worker: usize) {
        let Some(part) = self.workers[worker].part.as_mut() else { return };
        if part.at == At::Stopping && part.sending.is_none() && part.next_rows.is_none() {
            part.at = At::Over;
            let epoch = part.assignment.epoch;
            self.say(worker, Report::Stopped { epoch });
        }
    }

    pub(crate) fn decode_ends(&mut self, epoch: Epoch) {
        if !self.are_together(epoch) {
            return;
        }
        for peer in self.peers(epoch) {
            let is_first = self.rank(peer) == Some(Rank(0));
            if let Some(part) = self.workers[peer].part.as_mut() {
                part.at = if is_first { At::Uploading } else { At::Over };
            }
            if is_first {
                let delay = self.delay();
                self.reach(delay, peer, ToWorker::Upload { epoch });
            }
        }
    }

    fn upload(&mut self, worker: usize, epoch: Epoch) {
        const AGAIN_MS: u64 = 1_000;
        if self.workers[worker].is_cut_until > self.now || self.shell.control.is_none() {
            return self.reach(AGAIN_MS, worker, ToWorker::Upload { epoch });
        }
        let Some(image) = self.shell.attempted(epoch) else { return self.drop_part(worker) };
        if self.shell.disk_full_until > self.now {
            self.feed(Some(Input::ArtifactRefused { epoch, message: "no room".into() }));
            return self.reach(AGAIN_MS, worker, ToWorker::Upload { epoch });
        }
        let sha256 = format!("{image}-{}", self.workers[worker].spec.numeric_class);
        self.shell.artifacts.insert(sha256.clone());
        if let Some(part) = self.workers[worker].part.as_mut() {
            part.at = At::Over;
        }
        let artifact = ArtifactRef { sha256, size_bytes: 1, kind: ArtifactKind::Png8 };
        self.say(worker, Report::Finished { epoch, artifact });
    }

    fn fail(&mut self, worker: usize, cause: Cause, message: String) {
        let Some(part) = self.workers[worker].part.as_mut() else { return };
        part.at = At::Over;
        let (epoch, n_ranks) = (part.assignment.epoch, part.assignment.mesh.n_ranks() as u64);
        // Whom one waits for need not be who is at fault.
        let blamed = (cause == Cause::Peer && self.rng.chance(50)).then(|| Rank(self.rng.of(0..n_ranks) as u16));
        self.say(worker, Report::Failed { epoch, cause, message, blamed });
        self.break_team(worker, epoch);
    }

    fn drop_part(&mut self, worker: usize) {
        if let Some(part) = self.workers[worker].part.take() {
            if self.workers[worker].hangs_until > self.now {
                self.workers[worker].lingers = Some(part.assignment.epoch);
            }
            let is_at_work = matches!(part.at, At::Working | At::Gated | At::Fetching);
            if is_at_work {
                self.break_team(worker, part.assignment.epoch);
            }
        }
    }

    fn break_team(&mut self, worker: usize, epoch: Epoch) {
        if let Some(team) = self.teams.get_mut(&epoch) {
            team.is_broken = true;
        }
        for peer in self.peers(epoch).into_iter().filter(|peer| *peer != worker) {
            let delay = self.rng.of(1..200);
            self.reach(delay, peer, ToWorker::PeerGone { epoch });
        }
    }
}
