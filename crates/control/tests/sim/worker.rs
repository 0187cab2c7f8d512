//! A simulated worker: what its process knows, as `crates/worker` keeps it.

use std::collections::VecDeque;

use control::{ArtifactRef, Hello, Input, Running, SessionId, Work};
use plan::{Assignment, Cause, Epoch, ModelFacts, ModelId, ModelSpec, Rank, WorkerId};

use crate::scene::WorkerSpec;

/// What a worker tells the coordinator on its session.
#[derive(Debug, Clone)]
pub(crate) enum Report {
    Heartbeat { work: Option<Work> },
    Drain,
    StepTaken { epoch: Epoch, rank: Rank, compute_ms: f64 },
    Stopped { epoch: Epoch },
    Decoding { epoch: Epoch },
    Finished { epoch: Epoch, artifact: ArtifactRef },
    Failed { epoch: Epoch, cause: Cause, message: String, blamed: Option<Rank> },
}

impl Report {
    pub(crate) fn input(self, worker: WorkerId, session: SessionId) -> Input {
        match self {
            Self::Heartbeat { work } => Input::Heartbeat { worker, session, work },
            Self::Drain => Input::Drain { worker, session },
            Self::StepTaken { epoch, rank, compute_ms } => {
                Input::StepTaken { worker, session, epoch, rank, compute_ms }
            }
            Self::Stopped { epoch } => Input::Stopped { worker, session, epoch },
            Self::Decoding { epoch } => Input::Decoding { worker, session, epoch },
            Self::Finished { epoch, artifact } => Input::Finished { worker, session, epoch, artifact },
            Self::Failed { epoch, cause, message, blamed } => {
                Input::Failed { worker, session, epoch, cause, message, blamed }
            }
        }
    }
}

/// Where a rank is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Fetches the checkpoint it begins with.
    Fetching,
    /// Has taken a step and may not begin the next before the rows of the one before are kept.
    Gated,
    /// Could begin the next step, is in it, or decodes.
    Working,
    /// Stopped; says so when its rows are kept.
    Stopping,
    /// Hands in the picture.
    Uploading,
    /// Nothing left to do.
    Over,
}

/// What a worker was given to do.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) assignment: Assignment,
    pub(crate) at: At,
    /// Told to stop before the next step.
    pub(crate) stops: bool,
    /// Steps whose rows are on their way.
    pub(crate) sending: Option<usize>,
    /// Rows that wait behind them; only the newest count.
    pub(crate) next_rows: Option<usize>,
}

/// One connection to the coordinator.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) is_welcome: bool,
}

/// A worker's process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) id: WorkerId,
    pub(crate) spec: WorkerSpec,
    /// Number of its process; 0 before the first.
    pub(crate) life: u64,
    pub(crate) is_alive: bool,
    pub(crate) is_paused: bool,
    pub(crate) is_cut_until: u64,
    pub(crate) drains: bool,
    pub(crate) speed_percent: u64,
    pub(crate) device_breaks: bool,
    /// With what its steps fail, and until when.
    pub(crate) is_sick: Option<(Cause, u64)>,
    /// Its rank's thread does nothing until then.
    pub(crate) hangs_until: u64,
    /// The attempt whose thread hangs, though it was given up.
    pub(crate) lingers: Option<Epoch>,
    pub(crate) connection: Option<Connection>,
    /// Reports that wait for a session.
    pub(crate) reports: VecDeque<Report>,
    pub(crate) part: Option<Part>,
}

impl Worker {
    pub(crate) fn new(idx: usize, spec: WorkerSpec) -> Self {
        Self {
            id: WorkerId(format!("w{idx}")),
            spec,
            life: 0,
            is_alive: false,
            is_paused: false,
            is_cut_until: 0,
            drains: false,
            speed_percent: 100,
            device_breaks: false,
            is_sick: None,
            hangs_until: 0,
            lingers: None,
            connection: None,
            reports: VecDeque::new(),
            part: None,
        }
    }

    /// What its rank's thread is at: the count of what is done stands still while it hangs.
    pub(crate) fn work(&self, now: u64, waits: bool) -> Option<Work> {
        let hangs = self.hangs_until > now;
        let part = self.part.as_ref().filter(|part| part.at != At::Over).map(|part| part.assignment.epoch);
        let epoch = self.lingers.filter(|_| hangs).or(part)?;
        Some(Work { epoch, progress: if hangs { 0 } else { now }, waits: waits && !hangs })
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some_and(|connection| connection.is_welcome)
    }

    pub(crate) fn hello(&self) -> Hello {
        let running = self.part.as_ref().filter(|part| part.at != At::Over);
        Hello {
            version: env!("CARGO_PKG_VERSION").into(),
            incarnation: format!("{}-{}", self.id, self.life),
            numeric_class: self.spec.numeric_class.into(),
            models: self.spec.models.iter().map(|name| facts(name)).collect(),
            address: format!("http://{}", self.id),
            flop_per_s: self.spec.probed,
            memory_bytes: None,
            value_bytes: 4,
            running: running.map(|part| {
                let is_decoding = part.at == At::Uploading;
                Running { epoch: part.assignment.epoch, rank: part.assignment.rank, is_decoding }
            }),
        }
    }

    /// How long this worker computes in a step of its part.
    pub(crate) fn step_ms(&self) -> f64 {
        let Some(part) = &self.part else { return 1.0 };
        let Assignment { mesh, rank, request, .. } = &part.assignment;
        let work = mesh.band(*rank).n_rows() * mesh.branches(*rank, request.is_guided()).len();
        20.0 * work as f64 / (self.spec.speed * self.speed_percent as f64 / 100.0)
    }
}

pub(crate) fn facts(name: &str) -> ModelFacts {
    let id = ModelId { name: name.into(), weights_sha256: format!("{name}{name}{name}{name}") };
    ModelFacts { id, digests: plan::ModelDigests::default(), spec: ModelSpec::pixart_sigma_xl2() }
}
