//! What happens to a farm, as the state machine hears of it: one closed enum.

use plan::{ArtifactKind, Cause, Epoch, ImageId, JobId, ModelFacts, Rank, RenderRequest, WorkerId};

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
    /// Memory that one picture may take beside the weights, if the worker can tell.
    pub memory_bytes: Option<u64>,
    /// Bytes of a value in that memory.
    pub value_bytes: u64,
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
    /// Whether it makes pixels of the last step.
    pub is_decoding: bool,
}

/// What a rank's thread was doing when its worker last spoke of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// The attempt.
    pub epoch: Epoch,
    /// Grows with every small part of the work that is done.
    pub progress: u64,
    /// Whether it waits for another rank or for the coordinator.
    pub waits: bool,
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
    /// A worker is alive, and this is what its rank's thread does, if it has one.
    Heartbeat { worker: WorkerId, session: SessionId, work: Option<Work> },
    /// A session is closed: its worker may be back in a moment.
    Left { worker: WorkerId, session: SessionId },
    /// A worker leaves for good, whatever it holds.
    Leave { worker: WorkerId, session: SessionId },
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
    /// The checkpoint an image would go on from is lost; the newest whole one has `n_steps_done` steps, 0 if none is left.
    CheckpointLost { image: ImageId, n_steps_done: usize },
    /// The picture of a finished image is missing or damaged.
    PictureLost { image: ImageId, sha256: String, message: String },
    /// The picture or a checkpoint of it could not be kept yet; its worker tries again.
    ArtifactRefused { epoch: Epoch, message: String },
}
