//! The coordinator's state machine: jobs, members, leases, epochs. No I/O, no clock, no randomness.
//!
//! A shell hands in what happened ([`Input`]) with the time, and performs what comes out ([`Output`]) in order.
//! Nothing behind an [`Output::Persist`] may leave before it is durable.
#![forbid(unsafe_code)]

mod attempt;
mod control;
mod input;
mod job;
mod member;
mod output;
mod place;
mod queue;

pub use attempt::Attempt;
pub use control::{Config, Control, Counters};
pub use input::{Hello, Input, JobSpec, ReplyId, Running, SessionId};
pub use job::{ArtifactRef, Image, Job, Phase};
pub use output::{ControlError, Event, Output, Record};
