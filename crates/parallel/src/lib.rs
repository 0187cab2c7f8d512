//! Strategies behind the model's two seams, and the executor of a rank's program.
//!
//! Blocking code on device threads: no async, no sockets, no wire types. The mathematics stays in `model`, the
//! order of work in `plan::program`, the transport in `fabric`; here they meet.
#![forbid(unsafe_code)]

mod executor;
mod fault;
mod link;
mod pixels;
mod pulse;
mod sequence;
mod turn;

pub use executor::{Outcome, Seat, Start, StepRows, StepTime, Watch, Work};
pub use fault::RankError;
pub use link::Link;
pub use pixels::BandOfPixels;
pub use pulse::{Aside, AtWork, Pulse};
pub use sequence::BandOfTokens;
pub use turn::Turn;
