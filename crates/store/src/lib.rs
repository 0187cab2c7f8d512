//! Versioned keys, guarded transactions and leadership: what a coordinator must not forget.
//!
//! It stores bytes and knows no jobs. It does not watch: the leader is the only writer, so nobody has to be told.
//! Calls block; an async caller gives them a thread of their own.
//!
//! What every implementation promises is the doc of [`Store`], and [`conformance`] checks it.

#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub mod conformance;
mod embedded;
mod error;
mod memory;
mod txn;

pub use embedded::EmbeddedStore;
pub use error::StoreError;
pub use memory::MemoryStore;
pub use txn::{MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_KEYS, Txn};

/// A count of commits: the whole store's, or the one that wrote a key last. 0 = nothing was written yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// Number of one leader's time in office; whoever leads later has a higher one. 0 = nobody has led yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the revision that wrote it.
///
/// A key that was deleted and made anew has a version it never had before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The bytes as they were put.
    pub value: Vec<u8>,
    /// The revision of the commit that put them.
    pub version: Revision,
}

/// The right to write, until somebody else leads under the same name.
///
/// Holding one does not prove that it still counts; only a commit does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leadership {
    name: String,
    term: Term,
}

impl Leadership {
    /// What is led: all coordinators of one farm use the same name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The fencing number that every transaction of this leader carries.
    pub fn term(&self) -> Term {
        self.term
    }
}

/// Versioned keys behind guarded transactions.
///
/// What an implementation owes:
/// - When [`commit`](Self::commit) returns, the batch is durable: all of it, or after an error none of it.
/// - After [`StoreError::Unavailable`] from a commit it is *unknown* whether the batch was written. Read again
///   before trying again; since every write is guarded, an attempt that arrives late cannot undo a newer one.
/// - Reads see the last commit, and each read is of one moment.
/// - All calls may block on a disc or a network, and may come from any thread.
pub trait Store: Send + Sync {
    /// The value of `key` and its version, or `None` if there is no such key.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError>;

    /// Up to `limit` keys that begin with `prefix`, in byte order, from the first one behind `after`.
    ///
    /// The next page begins `after` the last key of this one. A page is of one moment, several are not.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Versioned)>, StoreError>;

    /// Writes the whole batch if its leader still leads and every key is as it was seen; else changes nothing.
    ///
    /// Returns the store's revision. If the batch put anything, that is the version of the keys it put, and it is
    /// higher than any before. A batch without writes is a way to ask whether its guards hold.
    ///
    /// # Errors
    /// [`StoreError::Deposed`] before [`StoreError::Conflict`], if both would be true; [`StoreError::TooLarge`]
    /// if the batch is over a limit of [`Txn`]; others if the store cannot be written.
    fn commit(&self, txn: &Txn) -> Result<Revision, StoreError>;

    /// Leads under `name` with a term that is higher than any before, and durable before it is returned.
    ///
    /// Where several processes may ask, this blocks until the one before resigned or was silent for `ttl`. A store
    /// that only one process can hold grants it at once, and the holder's earlier terms are over.
    ///
    /// # Errors
    /// If the term cannot be written.
    fn lead(&self, name: &str, ttl: Duration) -> Result<Leadership, StoreError>;
}

impl<S: Store + ?Sized> Store for Arc<S> {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        (**self).get(key)
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Versioned)>, StoreError> {
        (**self).list(prefix, after, limit)
    }

    fn commit(&self, txn: &Txn) -> Result<Revision, StoreError> {
        (**self).commit(txn)
    }

    fn lead(&self, name: &str, ttl: Duration) -> Result<Leadership, StoreError> {
        (**self).lead(name, ttl)
    }
}
