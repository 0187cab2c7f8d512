//! The coordinator's state machine: jobs, members, leases, epochs. No I/O, no clock, no randomness.
//!
//! A shell hands in what happened ([`Input`]) with the time, and performs what comes out ([`Output`]) in order.
//!
//! What the shell owes the machine:
//! - Nothing behind an [`Output::Persist`] leaves before it is durable.
//! - Rows it has taken in are durable before their sender is told so, and it refuses those of an epoch that is over.
//! - A checkpoint stays until the [`Output::Event`] of a later step has come out, or [`Output::DropCheckpoint`].
//! - Session numbers rise, and of one session a join comes first and [`Input::Left`] last.
#![forbid(unsafe_code)]

mod attempt;
mod control;
mod demand;
mod health;
mod input;
mod job;
mod member;
mod output;
mod pace;
mod place;
mod queue;
mod rift;

pub use attempt::Attempt;
pub use control::{Config, Control, Counters};
pub use demand::Demand;
pub use input::{Hello, Input, JobSpec, ReplyId, Running, SessionId, Work};
pub use job::{ArtifactRef, Image, Job, Phase};
pub use member::{MemberState, MemberView};
pub use output::{ControlError, Event, Expelled, Output, Record};
