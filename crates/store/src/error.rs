//! Why a store refused or could not answer.

use crate::Term;

/// What went wrong in a store, in the terms of whoever has to decide what to do next.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A key is not as the batch expected it; nothing was written.
    #[error("key {key:?} has changed since it was read; read it again before writing it")]
    Conflict {
        /// The first such key in byte order.
        key: String,
    },
    /// Somebody leads with a higher term; nothing was written.
    #[error("leadership term {term} is over, term {current} leads; stop writing")]
    Deposed {
        /// The term of the batch.
        term: Term,
        /// The term that leads.
        current: Term,
    },
    /// The store does not answer. If a commit says so, it is unknown whether it was written.
    #[error("store {place} cannot be used: {reason}")]
    Unavailable {
        /// The file or address.
        place: String,
        /// What was tried, and why it failed.
        reason: String,
    },
    /// What is stored is not what was written, or was written by something else.
    #[error("store {place} is damaged or belongs to something else: {reason}; restore it, or name another place")]
    Corrupt {
        /// The file or address.
        place: String,
        /// What does not fit.
        reason: String,
    },
    /// A batch is over a limit, so that no implementation would take it.
    #[error("{what} is {size}, over the limit of {limit}; store what is large elsewhere and keep a pointer to it")]
    TooLarge {
        /// What is too large, with its unit.
        what: String,
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
}

impl StoreError {
    /// True when the same call may succeed later though the caller changed nothing.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
