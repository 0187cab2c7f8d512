//! For tests: a rank that stops moving, as in a kernel that never ends.
//!
//! Sits where a rank shows that it moves, so that everything else is as in earnest.

use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a rank hangs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HangAt {
    /// The prompts.
    Encode,
    /// A step.
    Step,
    /// The decode.
    Decode,
    /// The finished picture, on its way to the coordinator.
    Upload,
}

impl FromStr for HangAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "encode" => Ok(Self::Encode),
            "step" => Ok(Self::Step),
            "decode" => Ok(Self::Decode),
            "upload" => Ok(Self::Upload),
            other => Err(format!("`{other}` is none of encode, step, decode, upload")),
        }
    }
}

/// Ranks hang at a place until they are let go. Clones are one.
#[derive(Debug, Clone)]
pub struct Hang {
    at: HangAt,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

#[derive(Debug, Default)]
struct Gate {
    is_open: bool,
    n_hanging: usize,
}

impl Hang {
    /// Every rank that comes to `at` hangs.
    pub fn new(at: HangAt) -> Self {
        Self { at, gate: Arc::default() }
    }

    /// Lets all ranks go, those to come as well.
    pub fn release(&self) {
        self.gate().is_open = true;
        self.gate.1.notify_all();
    }

    /// Threads that hang.
    pub fn n_hanging(&self) -> usize {
        self.gate().n_hanging
    }

    /// A rank is at `at`.
    pub(crate) fn pass(&self, at: HangAt) {
        if at != self.at {
            return;
        }
        let mut gate = self.gate();
        gate.n_hanging += 1;
        while !gate.is_open {
            gate = self.gate.1.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        gate.n_hanging -= 1;
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
