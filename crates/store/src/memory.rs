//! A store that forgets when the process ends: for tests, and for a render nobody has to resume.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::txn::Write;
use crate::{Leadership, Revision, Store, StoreError, Term, Txn, Versioned};

/// Keys in memory, under one lock.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    revision: Revision,
    terms: BTreeMap<String, Term>,
    keys: BTreeMap<String, Versioned>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A panic elsewhere cannot leave the state half written: nothing under the lock can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        Ok(self.state().keys.get(key).cloned())
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Versioned)>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let state = self.state();
        let behind = state.keys.range::<str, _>((start, Bound::Unbounded));
        let matching = behind.take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(matching.map(|(key, versioned)| (key.clone(), versioned.clone())).collect())
    }

    fn commit(&self, txn: &Txn) -> Result<Revision, StoreError> {
        txn.check_size()?;
        let mut state = self.state();
        let current = state.terms.get(txn.leadership().name()).copied().unwrap_or_default();
        let versions: Vec<_> = txn.keys().map(|key| state.keys.get(key).map(|versioned| versioned.version)).collect();
        txn.check_guards(current, &versions)?;
        let version = Revision(state.revision.0 + 1);
        for (key, write) in txn.writes() {
            state.revision = version;
            match write {
                Write::Put(value) => {
                    state.keys.insert(key.to_owned(), Versioned { value: value.clone(), version });
                }
                Write::Delete => {
                    state.keys.remove(key);
                }
            }
        }
        Ok(state.revision)
    }

    fn lead(&self, name: &str, _ttl: Duration) -> Result<Leadership, StoreError> {
        let mut state = self.state();
        let term = state.terms.entry(name.to_owned()).or_default();
        term.0 += 1;
        Ok(Leadership { name: name.to_owned(), term: *term })
    }
}
