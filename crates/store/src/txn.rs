//! A batch of guarded writes, and the rules for letting one in that all stores share.

use std::collections::BTreeMap;

use crate::{Leadership, Revision, Store, StoreError, Term};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Keys and values of one batch together, in bytes. etcd takes 1.5 MiB by default, its own wrapping included.
pub const MAX_TXN_BYTES: usize = 1 << 20;
/// Keys one batch may name. etcd takes 128 by default, and a guard on the term is one of them.
pub const MAX_TXN_KEYS: usize = 100;

/// A batch that is written as a whole, or not at all.
///
/// Every write says what the writer saw: the version of the key, or `None` for no such key. There is no unguarded
/// write, because one whose reply was lost may be carried out late, over a newer one.
///
/// A key is named once: a later call for the same key replaces the earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    leadership: Leadership,
    changes: BTreeMap<String, Change>,
}

/// What a batch expects of one key, and what it does to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    seen: Option<Revision>,
    write: Option<Write>,
}

/// What becomes of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    Put(Vec<u8>),
    Delete,
}

impl Txn {
    /// An empty batch, which is refused once somebody else leads.
    pub fn new(leadership: &Leadership) -> Self {
        Self { leadership: leadership.clone(), changes: BTreeMap::new() }
    }

    /// Lets the batch in only if `key` is as it was seen.
    pub fn expect(self, key: impl Into<String>, seen: Option<Revision>) -> Self {
        self.with(key, seen, None)
    }

    /// Puts `value` if `key` is as it was seen.
    pub fn put(self, key: impl Into<String>, seen: Option<Revision>, value: impl Into<Vec<u8>>) -> Self {
        self.with(key, seen, Some(Write::Put(value.into())))
    }

    /// Deletes `key` if it is as it was seen.
    pub fn delete(self, key: impl Into<String>, seen: Revision) -> Self {
        self.with(key, Some(seen), Some(Write::Delete))
    }

    fn with(mut self, key: impl Into<String>, seen: Option<Revision>, write: Option<Write>) -> Self {
        self.changes.insert(key.into(), Change { seen, write });
        self
    }

    /// Whose batch it is: its term guards all of it.
    pub fn leadership(&self) -> &Leadership {
        &self.leadership
    }

    /// Looks whether this very batch was written, after a commit whose outcome is unknown. The revision that wrote it; 0
    /// if it put nothing. `None` too for a batch without writes.
    ///
    /// One key tells of all, since a batch is written as a whole. The leader is the only writer, so a key that has
    /// changed to what the batch puts was changed by the batch.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn found_in(&self, store: &(impl Store + ?Sized)) -> Result<Option<Revision>, StoreError> {
        let is_put = |(_, change): &(&String, &Change)| matches!(change.write, Some(Write::Put(_)));
        let is_write = |(_, change): &(&String, &Change)| change.write.is_some();
        let told = self.changes.iter().find(is_put).or_else(|| self.changes.iter().find(is_write));
        let Some((key, change)) = told else { return Ok(None) };
        let found = store.get(key)?;
        Ok(match (&change.write, found) {
            (Some(Write::Put(value)), Some(found)) if found.value == *value && Some(found.version) != change.seen => {
                Some(found.version)
            }
            (Some(Write::Delete), None) => Some(Revision::default()),
            _ => None,
        })
    }

    /// All keys the batch names, in byte order.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        self.changes.keys().map(String::as_str)
    }

    /// The writes, in byte order of their keys.
    pub(crate) fn writes(&self) -> impl Iterator<Item = (&str, &Write)> {
        self.changes.iter().filter_map(|(key, change)| Some((key.as_str(), change.write.as_ref()?)))
    }

    /// Refuses a batch that some store could not take, so that all stores refuse the same ones.
    pub(crate) fn check_size(&self) -> Result<(), StoreError> {
        within("number of keys in a batch", self.changes.len(), MAX_TXN_KEYS)?;
        let longest = self.changes.keys().max_by_key(|key| key.len());
        within("longest key of a batch in bytes", longest.map_or(0, String::len), MAX_KEY_BYTES)?;
        let values = self.writes().map(|(_, write)| match write {
            Write::Put(value) => value.len(),
            Write::Delete => 0,
        });
        let bytes = self.changes.keys().map(String::len).chain(values).sum();
        within("batch in bytes", bytes, MAX_TXN_BYTES)
    }

    /// Refuses the batch if its term is over, or a key is not as it was seen. `versions` are in the order of
    /// [`keys`](Self::keys).
    pub(crate) fn check_guards(&self, current: Term, versions: &[Option<Revision>]) -> Result<(), StoreError> {
        let term = self.leadership.term;
        if term != current {
            return Err(StoreError::Deposed { term, current });
        }
        let changed = self.changes.iter().zip(versions).find(|((_, change), version)| change.seen != **version);
        changed.map_or(Ok(()), |((key, _), _)| Err(StoreError::Conflict { key: key.clone() }))
    }
}

fn within(what: &str, size: usize, limit: usize) -> Result<(), StoreError> {
    if size > limit {
        return Err(StoreError::TooLarge { what: what.to_owned(), size, limit });
    }
    Ok(())
}
