//! Five sick workers of a hundred and ten thousand images: what the machine makes of workers that fail at once, again
//! and again. A farm of its own, without a network: ranks take steps, fail or hang, and that is all.

use std::collections::{BTreeMap, BTreeSet};

use control::{Config, Control, Hello, Input, JobSpec, MemberState, Output, Phase, ReplyId, SessionId, Work};
use plan::{ArtifactKind, Cause, Epoch, JobId, Millis, WorkerId};

use crate::scene::request;
use crate::worker::facts;

const N_WORKERS: usize = 100;
const N_SICK: usize = 5;
const N_IMAGES: u32 = 10_000;
const STEPS: usize = 4;
const STEP_MS: u64 = 500;
/// A sick worker fails so soon after it was given something.
const FAILS_AFTER_MS: u64 = 20;
const BEAT_MS: u64 = 1_000;
/// Short, so that hung ranks are seen within the run.
const STALL_MS: u64 = 5_000;

/// What is wrong with a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sickness {
    /// Its attempts fail.
    Fails(Cause),
    /// Its rank's thread never ends.
    Hangs,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Step { worker: usize, epoch: Epoch },
    Fail { worker: usize, epoch: Epoch },
    Beat { worker: usize },
}

/// A run's figures.
#[derive(Debug)]
struct Figures {
    n_failed: usize,
    /// Most failures of one worker before its first quarantine.
    most_failures: usize,
    n_quarantined: usize,
    took_ms: u64,
    /// What the well workers alone need at the least.
    least_ms: u64,
}

struct Farm {
    control: Control,
    now: u64,
    queue: BTreeSet<(u64, Next)>,
    /// What is wrong with a worker, and from when on.
    sick: BTreeMap<usize, (u64, Sickness)>,
    /// Each worker's attempt, and steps taken of it.
    at_work: BTreeMap<usize, (Epoch, usize)>,
    n_failures: BTreeMap<usize, usize>,
    quarantined: BTreeSet<WorkerId>,
    most_failures: usize,
}

fn id(worker: usize) -> WorkerId {
    WorkerId(format!("w{worker:03}"))
}

impl Farm {
    fn new(sick: BTreeMap<usize, (u64, Sickness)>) -> Self {
        let config = Config { stall_ms: STALL_MS, ..Config::default() };
        let mut farm = Self {
            control: Control::new(config, Vec::new(), Millis(0)),
            now: 0,
            queue: BTreeSet::new(),
            sick,
            at_work: BTreeMap::new(),
            n_failures: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            most_failures: 0,
        };
        for worker in 0..N_WORKERS {
            let hello = Hello {
                version: Config::default().version,
                incarnation: format!("{worker}"),
                numeric_class: "avx512".into(),
                models: vec![facts("demo")],
                address: String::new(),
                flop_per_s: 1e15,
                memory_bytes: None,
                value_bytes: 4,
                running: None,
            };
            farm.hear(Input::Join { worker: id(worker), session: SessionId(worker as u64 + 1), hello });
            farm.queue.insert((BEAT_MS, Next::Beat { worker }));
        }
        farm
    }

    fn hear(&mut self, input: Input) {
        self.control.handle(Millis(self.now), input);
        self.perform();
    }

    fn perform(&mut self) {
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Assign { worker, assignment, .. } => {
                    let (worker, epoch) = (Self::number(&worker), assignment.epoch);
                    self.at_work.insert(worker, (epoch, assignment.n_steps_done));
                    match self.sickness(worker) {
                        Some(Sickness::Fails(_)) => {
                            self.queue.insert((self.now + FAILS_AFTER_MS, Next::Fail { worker, epoch }));
                        }
                        Some(Sickness::Hangs) => {}
                        None => drop(self.queue.insert((self.now + STEP_MS, Next::Step { worker, epoch }))),
                    }
                }
                Output::Abort { worker, .. } => {
                    let worker = Self::number(&worker);
                    // A thread that hangs goes on hanging.
                    if self.sickness(worker) != Some(Sickness::Hangs) {
                        self.at_work.remove(&worker);
                    }
                }
                Output::Quarantine { worker, .. } => {
                    let number = Self::number(&worker);
                    if self.quarantined.insert(worker) {
                        let n_failures = self.n_failures.get(&number).copied().unwrap_or(0);
                        self.most_failures = self.most_failures.max(n_failures);
                    }
                }
                _ => {}
            }
        }
    }

    fn number(worker: &WorkerId) -> usize {
        worker.0[1..].parse().expect("a worker of this farm")
    }

    fn sickness(&self, worker: usize) -> Option<Sickness> {
        self.sick.get(&worker).filter(|(from, _)| *from <= self.now).map(|(_, sickness)| *sickness)
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Beat { worker } => {
                let work = self.at_work.get(&worker).map(|(epoch, n_steps)| Work {
                    epoch: *epoch,
                    progress: if self.sickness(worker).is_some() { 0 } else { self.now + *n_steps as u64 },
                    waits: false,
                });
                self.hear(Input::Heartbeat { worker: id(worker), session: SessionId(worker as u64 + 1), work });
                self.queue.insert((self.now + BEAT_MS, Next::Beat { worker }));
            }
            Next::Fail { worker, epoch } => {
                let Some(Sickness::Fails(cause)) = self.sickness(worker) else { return };
                if self.at_work.get(&worker).is_some_and(|(current, _)| *current == epoch) {
                    *self.n_failures.entry(worker).or_default() += 1;
                    let (session, message) = (SessionId(worker as u64 + 1), "it broke".to_owned());
                    self.at_work.remove(&worker);
                    self.hear(Input::Failed { worker: id(worker), session, epoch, cause, message, blamed: None });
                }
            }
            Next::Step { worker, epoch } => {
                if self.control.attempt(epoch).is_none() {
                    return;
                }
                match self.sickness(worker) {
                    Some(Sickness::Fails(_)) => return self.happen(Next::Fail { worker, epoch }),
                    Some(Sickness::Hangs) => return,
                    None => {}
                }
                let Some((_, n_steps)) = self.at_work.get_mut(&worker).filter(|(current, _)| *current == epoch) else {
                    return;
                };
                *n_steps += 1;
                let n_steps_done = *n_steps;
                if n_steps_done <= STEPS {
                    self.hear(Input::StepKept { epoch, n_steps_done });
                    self.queue.insert((self.now + STEP_MS, Next::Step { worker, epoch }));
                } else {
                    self.at_work.remove(&worker);
                    let artifact =
                        control::ArtifactRef { sha256: format!("{epoch}"), size_bytes: 1, kind: ArtifactKind::Png8 };
                    let session = SessionId(worker as u64 + 1);
                    self.hear(Input::Finished { worker: id(worker), session, epoch, artifact });
                }
            }
        }
    }

    /// Runs one job to its end.
    fn run(mut self, job: &JobId) -> Figures {
        let is_open = |farm: &Self| farm.control.job(job).is_some_and(control::Job::is_open);
        while is_open(&self) {
            let due = self.control.poll_timeout().map_or(u64::MAX, |due| due.0);
            let next = self.queue.first().map_or(u64::MAX, |(at, _)| *at);
            assert!(self.now < 3_600_000, "the job does not end");
            if due <= next {
                self.now = self.now.max(due);
                self.control.handle_timeout(Millis(self.now));
                self.perform();
            } else if let Some((at, next)) = self.queue.pop_first() {
                self.now = self.now.max(at);
                self.happen(next);
            }
        }
        let n_failed = self.control.job(job).map_or(0, |job| job.n_in(Phase::Failed));
        let states = self.control.members().filter(|member| member.state == MemberState::Quarantined).count();
        let n_well = (N_WORKERS - N_SICK) as u64;
        let image_ms = STEP_MS * (STEPS as u64 + 1);
        Figures {
            n_failed,
            most_failures: self.most_failures,
            n_quarantined: states.max(self.quarantined.len()),
            took_ms: self.now,
            least_ms: u64::from(N_IMAGES).div_ceil(n_well) * image_ms,
        }
    }
}

fn figures(kind: impl Fn(usize) -> Sickness, from_ms: impl Fn(usize) -> u64) -> Figures {
    // Among the first in the order of names, so that they are asked first where speeds are equal.
    let sick = (0..N_SICK).map(|worker| (worker, (from_ms(worker), kind(worker)))).collect();
    let mut farm = Farm::new(sick);
    let job = JobId("job".into());
    let spec = JobSpec {
        model: "demo".into(),
        request: request(STEPS as u32, 128, 1.0),
        count: N_IMAGES,
        artifact: ArtifactKind::Png8,
    };
    farm.hear(Input::Submit { job: job.clone(), request_id: String::new(), spec, reply: ReplyId(1) });
    farm.run(&job)
}

#[track_caller]
fn check(figures: &Figures) {
    assert_eq!(figures.n_failed, 0, "{figures:?}");
    assert!(figures.most_failures <= 3, "{figures:?}");
    assert_eq!(figures.n_quarantined, N_SICK, "{figures:?}");
    // The last images are made by few: what a failure costs shows there.
    assert!(figures.took_ms as f64 <= 1.01 * figures.least_ms as f64, "{figures:?}");
}

const KINDS: [Sickness; N_SICK] = [
    Sickness::Fails(Cause::Bug),
    Sickness::Fails(Cause::Device),
    Sickness::Fails(Cause::NotFinite),
    Sickness::Fails(Cause::Device),
    Sickness::Fails(Cause::Bug),
];

#[test]
fn sick_workers_from_the_start_fail_no_image_and_cost_no_time() {
    for kind in [Cause::Bug, Cause::Device, Cause::NotFinite] {
        check(&figures(|_| Sickness::Fails(kind), |_| 0));
    }
    check(&figures(|worker| KINDS[worker], |_| 0));
}

#[test]
fn workers_that_fall_sick_one_after_the_other_fail_no_image_and_cost_no_time() {
    check(&figures(|worker| KINDS[worker], |worker| 40_000 * worker as u64 + 777));
}

#[test]
fn workers_that_hang_one_after_the_other_fail_no_image() {
    let figures = figures(|_| Sickness::Hangs, |worker| 10_000 * worker as u64 + 777);
    assert_eq!(figures.n_failed, 0, "{figures:?}");
    assert!(figures.took_ms as f64 <= 1.03 * figures.least_ms as f64, "{figures:?}");
}
