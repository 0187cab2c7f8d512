//! What an answer of the coordinator means for whoever hands something in, and how long to wait before the next try.
//!
//! A try is worth something only if it can end otherwise than the last: what cannot is a failure of the attempt, said
//! once and aloud, and not a loop.

use std::time::Duration;

use plan::Cause;
use tonic::{Code, Status};

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The same may be taken later.
    Again,
    /// The epoch is over, or the seat is another's; whoever ended it says so on the session.
    Over,
    /// The same is never taken.
    Never(Cause),
}

/// Tries of one kind of hand-in, one after the other.
#[derive(Debug)]
pub(crate) struct Tries {
    pause: Duration,
    n_suspect: u32,
}

impl Default for Tries {
    fn default() -> Self {
        Self { pause: FIRST_PAUSE, n_suspect: 0 }
    }
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Times in a row that bytes may arrive damaged, or the coordinator may break down over them.
const MOST_SUSPECT: u32 = 20;

impl Tries {
    /// What was refused with `status` has become.
    pub(crate) fn judge(&mut self, status: &Status) -> Meaning {
        match status.code() {
            Code::FailedPrecondition | Code::PermissionDenied => Meaning::Over,
            Code::DataLoss | Code::Internal => {
                self.n_suspect += 1;
                if self.n_suspect < MOST_SUSPECT { Meaning::Again } else { Meaning::Never(Cause::Device) }
            }
            // Away, busy, full, or behind a proxy that is one of these.
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Cancelled
            | Code::Unknown
            | Code::Ok => Meaning::Again,
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Meaning::Never(Cause::Bug),
        }
    }

    /// How long to wait before the next try: longer each time, up to a cap.
    pub(crate) fn pause(&mut self) -> Duration {
        let next = (2 * self.pause).min(LONGEST_PAUSE);
        std::mem::replace(&mut self.pause, next)
    }

    /// Something was taken.
    pub(crate) fn taken(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_be_taken_is_not_tried_again() {
        let judge = |code| Tries::default().judge(&Status::new(code, "no"));
        for code in [Code::InvalidArgument, Code::OutOfRange, Code::Unimplemented] {
            assert_eq!(judge(code), Meaning::Never(Cause::Bug), "{code:?}");
        }
        for code in [Code::FailedPrecondition, Code::PermissionDenied] {
            assert_eq!(judge(code), Meaning::Over, "{code:?}");
        }
        for code in [Code::Unavailable, Code::ResourceExhausted, Code::Unknown, Code::Internal, Code::DataLoss] {
            assert_eq!(judge(code), Meaning::Again, "{code:?}");
        }
    }

    #[test]
    fn damage_that_does_not_end_is_this_machine_s() {
        let mut tries = Tries::default();
        let damaged = Status::data_loss("damaged");
        let n_again = (0..100).take_while(|_| tries.judge(&damaged) == Meaning::Again).count();
        assert_eq!(n_again, MOST_SUSPECT as usize - 1);
        assert_eq!(tries.judge(&damaged), Meaning::Never(Cause::Device));
        tries.taken();
        assert_eq!(tries.judge(&damaged), Meaning::Again, "what was taken begins anew");
    }

    #[test]
    fn pauses_grow_to_a_cap_and_begin_anew_when_something_was_taken() {
        let mut tries = Tries::default();
        let pauses: Vec<u128> = (0..8).map(|_| tries.pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        tries.taken();
        assert_eq!(tries.pause(), FIRST_PAUSE);
    }
}
