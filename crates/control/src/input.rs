//! What happens to a farm, as the state machine hears of it: one closed enum.

use plan::{ArtifactKind, Cause, Epoch, JobId, ModelFacts, Rank, RenderRequest, WorkerId};

use crate::job::ArtifactRef;
use serde::{Deserialize, Serialize};

/// Which question an answer belongs to; given by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyId(pub u64);

/// One connection of a worker; given by the shell, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What a job asks for; image i has the seed of `request` plus i.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name of the model.
    pub model: String,
    /// What to draw.
    pub request: RenderRequest,
    /// Images, at least one.
    pub count: u32,
    /// What the pictures are written as.
    pub artifact: ArtifactKind,
}

/// A worker introduces itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Of its program.
    pub version: String,
    /// A number of this process's own: the same worker after a broken connection, or another of its name.
    pub incarnation: String,
    /// Machines whose bytes are equal.
    pub numeric_class: String,
    /// Weights it holds.
    pub models: Vec<ModelFacts>,
    /// Where other ranks reach it.
    pub address: String,
    /// Arithmetic it does in a second.
    pub flop_per_s: f64,
    /// The part it is at, if it was given one before.
    pub running: Option<Running>,
}

/// A part a worker is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The attempt.
    pub epoch: Epoch,
    /// Its seat there.
    pub rank: Rank,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub enum Input {
    /// A client asks for a job; `job` is the id it gets if it is new.
    Submit { job: JobId, request_id: String, spec: JobSpec, reply: ReplyId },
    /// A client ends a job.
    Cancel { job: JobId, reply: ReplyId },
    /// A client wants failed and cancelled images again.
    Retry { job: JobId, reply: ReplyId },
    /// A client wants a job that is over to be forgotten, its pictures included.
    Delete { job: JobId, reply: ReplyId },
    /// A worker opens a session.
    Join { worker: WorkerId, session: SessionId, hello: Hello },
    /// A worker is alive.
    Heartbeat { worker: WorkerId, session: SessionId },
    /// A session is closed.
    Left { worker: WorkerId, session: SessionId },
    /// A worker wants to leave at the next step boundary.
    Drain { worker: WorkerId, session: SessionId },
    /// All rows behind a step are kept.
    StepKept { epoch: Epoch, n_steps_done: usize },
    /// How long a rank took over a step.
    StepTaken { worker: WorkerId, session: SessionId, epoch: Epoch, rank: Rank, compute_ms: f64 },
    /// A rank stopped at a step boundary, its rows kept.
    Stopped { worker: WorkerId, session: SessionId, epoch: Epoch },
    /// The ranks began to decode.
    Decoding { worker: WorkerId, session: SessionId, epoch: Epoch },
    /// The picture is there and durable.
    Finished { worker: WorkerId, session: SessionId, epoch: Epoch, artifact: ArtifactRef },
    /// A rank gave up; with `blamed`, it waited for that rank in vain.
    Failed { worker: WorkerId, session: SessionId, epoch: Epoch, cause: Cause, message: String, blamed: Option<Rank> },
    /// The picture or a checkpoint of it could not be kept yet; its worker tries again.
    ArtifactRefused { epoch: Epoch, message: String },
}
