//! What the shell has to do, in order, and why a client is refused.

use plan::{Assignment, Epoch, ImageId, JobId, WorkerId};

use crate::attempt::Attempt;
use crate::input::{JobSpec, ReplyId, SessionId};
use crate::job::{ArtifactRef, Image, Phase};
use serde::{Deserialize, Serialize};

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are the words of the glossary
pub enum Output {
    /// Write this down; what follows waits until it is durable.
    Persist(Box<Record>),
    /// Answer a client.
    Reply { reply: ReplyId, answer: Result<JobId, ControlError> },
    /// A worker is in.
    Welcome { worker: WorkerId, session: SessionId, lease_ttl_ms: u64 },
    /// A worker is not wanted; its session ends.
    Refuse { worker: WorkerId, session: SessionId, reason: String },
    /// A session is over, if it is still open.
    Expel { worker: WorkerId, session: SessionId, why: Expelled },
    /// A worker failed again and again, and is given nothing for a while.
    Quarantine { worker: WorkerId, for_ms: u64, message: String },
    /// A part to do.
    Assign { worker: WorkerId, session: SessionId, assignment: Box<Assignment> },
    /// A part to drop at once.
    Abort { worker: WorkerId, session: SessionId, epoch: Epoch },
    /// To rank 0: stop before the next step.
    Stop { worker: WorkerId, session: SessionId, epoch: Epoch },
    /// A draining worker holds nothing any more.
    Drained { worker: WorkerId, session: SessionId },
    /// The rows of this image are not needed any more.
    DropCheckpoint { image: ImageId },
    /// Delete what was written down of a job, then the pictures that no other image has.
    Forget { job: JobId, n_images: u32, artifacts: Vec<String> },
    /// Tell those who watch.
    Event(Box<Event>),
}

/// Why a session is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expelled {
    /// Its worker was silent for too long.
    LeaseEnded,
    /// Its worker opened another.
    Replaced,
}

/// What survives a restart: each record replaces the one of the same key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A job as it was submitted; images of which nothing else is written are as they were then.
    Job {
        /// Its id.
        id: JobId,
        /// The client's own name for it; may be empty.
        request_id: String,
        /// Its place in the queue.
        number: u64,
        /// What was asked.
        spec: JobSpec,
    },
    /// One image, and the attempt it is in.
    Image {
        /// Which image.
        id: ImageId,
        /// The job's revision with this change.
        revision: u64,
        /// The image.
        image: Box<Image>,
        /// Its attempt.
        attempt: Option<Box<Attempt>>,
    },
    /// Epochs below this number may have been given out.
    NextEpoch(Epoch),
}

/// A change of one image, as those who watch see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Which image.
    pub image: ImageId,
    /// Of the job, one higher with each event.
    pub revision: u64,
    /// Where the image is.
    pub phase: Phase,
    /// Where the job is.
    pub job_phase: Phase,
    /// Steps done and kept.
    pub n_steps_done: usize,
    /// Steps it has.
    pub n_steps: usize,
    /// The attempt it is in.
    pub epoch: Option<Epoch>,
    /// Who makes it.
    pub workers: Vec<WorkerId>,
    /// Why it waits or failed.
    pub message: String,
    /// The picture, when it is done.
    pub artifact: Option<ArtifactRef>,
}

/// Why a client is refused. Each variant names the value and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No such job.
    #[error("job `{job}` is not known: `fresco list` shows those that are")]
    #[allow(missing_docs)]
    NotFound { job: JobId },
    /// The same name for another wish.
    #[error("request id `{request_id}` was used for job `{job}`, which asks for something else: choose another id")]
    #[allow(missing_docs)]
    AlreadyExists { request_id: String, job: JobId },
    /// The queue is full.
    #[error("{queued} images wait already, {limit} is the limit: try again later")]
    #[allow(missing_docs)]
    QueueFull { queued: usize, limit: usize },
    /// Too many images, or none.
    #[error("a job of {count} images is out of range: ask for 1 to {limit}")]
    #[allow(missing_docs)]
    Count { count: u32, limit: u32 },
    /// Nothing left to cancel.
    #[error("job `{job}` is over already")]
    #[allow(missing_docs)]
    IsOver { job: JobId },
    /// Something is still to come.
    #[error("job `{job}` is not over: `fresco cancel {job}` ends it")]
    #[allow(missing_docs)]
    NotOver { job: JobId },
    /// Nothing to do again.
    #[error("job `{job}` has no failed or cancelled image to render again")]
    #[allow(missing_docs)]
    NothingToRetry { job: JobId },
}
