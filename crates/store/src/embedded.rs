//! A store in one file, held by one process: for a desk, and for a farm with a single coordinator.
//!
//! The lock on the file is the leadership between processes, and goes with the process. It copies nothing to other
//! machines; where the coordinator's machine may be lost, the store must be elsewhere.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableHandle, WriteTransaction,
};

use crate::txn::Write;
use crate::{Leadership, Revision, Store, StoreError, Term, Txn, Versioned};

/// Key to version and value.
const KEYS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("keys");
/// What is led to the term that leads.
const TERMS: TableDefinition<'_, &str, u64> = TableDefinition::new("terms");
/// Numbers about the store itself: [`FORMAT_KEY`] and [`REVISION_KEY`].
const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("fresco store");
const FORMAT_KEY: &str = "format";
const REVISION_KEY: &str = "revision";
/// The number of this layout of tables.
const FORMAT: u64 = 1;
/// Read cache, in bytes: the leader knows what it wrote, so reads are few.
const CACHE_BYTES: usize = 32 << 20;

/// Outside: the database failed. Inside: it answered, and the answer may be a refusal.
type Outcome<T> = Result<Result<T, StoreError>, redb::Error>;
type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// Keys in a file. Commits are on the disc when they return.
pub struct EmbeddedStore {
    path: PathBuf,
    opener: Opener,
    /// `None` after a failure: the database takes no more calls after one, so the next call opens the file again,
    /// and work goes on once a full disc has room.
    database: Mutex<Option<Database>>,
}

impl EmbeddedStore {
    /// Opens the store at `path` and holds it until dropped; makes the file if there is none.
    ///
    /// All checksums in the file are verified, which reads all of it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if another process holds the file or it cannot be opened,
    /// [`StoreError::Corrupt`] if it is damaged or of something else.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        Self::open_with(path.into(), Box::new(open_file))
    }

    fn open_with(path: PathBuf, opener: Opener) -> Result<Self, StoreError> {
        let store = Self { path, opener, database: Mutex::new(None) };
        store.with_database(|_| Ok(Ok(())))?;
        Ok(store)
    }

    /// Runs `work` on the open database, one at a time, and opens it first if it is not.
    fn with_database<T>(&self, work: impl FnOnce(&Database) -> Outcome<T>) -> Result<T, StoreError> {
        // Half a transaction is never seen, so a panic elsewhere leaves nothing to mistrust.
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => (self.opener)(&self.path)
                .map_err(redb::Error::from)
                .and_then(|database| Ok(claim(&database, &self.path)?.map(|()| database)))
                .map_err(|error| self.explain(&error))??,
        };
        let answer = work(&database).map_err(|error| self.explain(&error))?;
        *slot = Some(database);
        answer
    }

    fn explain(&self, error: &redb::Error) -> StoreError {
        let place = self.path.display().to_string();
        let unavailable = |reason: String| StoreError::Unavailable { place: place.clone(), reason };
        match error {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => unavailable(
                "another coordinator holds it; a file serves one coordinator at a time, so end that one or name \
                 another file"
                    .to_owned(),
            ),
            redb::Error::Io(error) if !tells_of_content(error.kind()) => unavailable(error.to_string()),
            redb::Error::Io(_)
            | redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TypeDefinitionChanged { .. } => StoreError::Corrupt { place, reason: error.to_string() },
            _ => unavailable(error.to_string()),
        }
    }
}

impl Store for EmbeddedStore {
    fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        self.with_database(|database| {
            let keys = database.begin_read()?.open_table(KEYS)?;
            Ok(Ok(keys.get(key)?.map(|found| versioned(found.value()))))
        })
    }

    fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, Versioned)>, StoreError> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.with_database(|database| {
            let keys = database.begin_read()?.open_table(KEYS)?;
            let mut page = Vec::new();
            for entry in keys.range::<&str>((start, Bound::Unbounded))?.take(limit) {
                let (key, found) = entry?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                page.push((key.value().to_owned(), versioned(found.value())));
            }
            Ok(Ok(page))
        })
    }

    fn commit(&self, txn: &Txn) -> Result<Revision, StoreError> {
        txn.check_size()?;
        self.with_database(|database| {
            let writing = begin_write(database)?;
            let done = apply(&writing, txn)?;
            if done.is_ok() && txn.writes().next().is_some() {
                writing.commit()?;
            }
            Ok(done)
        })
    }

    fn lead(&self, name: &str, _ttl: Duration) -> Result<Leadership, StoreError> {
        self.with_database(|database| {
            let writing = begin_write(database)?;
            let mut terms = writing.open_table(TERMS)?;
            let term = number(&terms, name)? + 1;
            terms.insert(name, term)?;
            drop(terms);
            writing.commit()?;
            Ok(Ok(Leadership { name: name.to_owned(), term: Term(term) }))
        })
    }
}

/// Checks a batch's guards and carries out its writes, all inside `writing`.
fn apply(writing: &WriteTransaction, txn: &Txn) -> Outcome<Revision> {
    let current = Term(number(&writing.open_table(TERMS)?, txn.leadership().name())?);
    let mut about = writing.open_table(ABOUT)?;
    let mut keys = writing.open_table(KEYS)?;
    let mut versions = Vec::new();
    for key in txn.keys() {
        versions.push(keys.get(key)?.map(|found| Revision(found.value().0)));
    }
    if let Err(refusal) = txn.check_guards(current, &versions) {
        return Ok(Err(refusal));
    }
    let mut revision = number(&about, REVISION_KEY)?;
    if txn.writes().next().is_some() {
        revision += 1;
        about.insert(REVISION_KEY, revision)?;
    }
    for (key, write) in txn.writes() {
        match write {
            Write::Put(value) => keys.insert(key, (revision, value.as_slice()))?,
            Write::Delete => keys.remove(key)?,
        };
    }
    Ok(Ok(Revision(revision)))
}

fn begin_write(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut writing = database.begin_write()?;
    // Values are strangers' bytes, and the checksum that a commit in one phase relies on can be forged.
    writing.set_two_phase_commit(true);
    Ok(writing)
}

fn number(table: &impl ReadableTable<&'static str, u64>, key: &str) -> Result<u64, redb::Error> {
    Ok(table.get(key)?.map_or(0, |found| found.value()))
}

/// A file that is no database is reported as invalid data, and one cut short as an end where none should be.
fn tells_of_content(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidData | ErrorKind::UnexpectedEof)
}

fn versioned((version, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.to_vec(), version: Revision(version) }
}

fn open_file(path: &Path) -> Result<Database, DatabaseError> {
    let is_new = !path.exists();
    let database = Builder::new().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)?;
    if is_new && cfg!(unix) {
        // The name is part of what must survive; other systems have no such call.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(database)
}

/// Makes our tables in an empty database, and refuses one that is of something else.
fn claim(database: &Database, path: &Path) -> Outcome<()> {
    let writing = begin_write(database)?;
    let names: Vec<String> = writing.list_tables()?.map(|table| table.name().to_owned()).collect();
    let corrupt = |reason| Ok(Err(StoreError::Corrupt { place: path.display().to_string(), reason }));
    if !names.is_empty() && !names.iter().any(|name| name == ABOUT.name()) {
        return corrupt(format!("it has tables of another program ({})", names.join(", ")));
    }
    let mut about = writing.open_table(ABOUT)?;
    match number(&about, FORMAT_KEY)? {
        FORMAT => return Ok(Ok(())),
        0 if names.is_empty() => about.insert(FORMAT_KEY, FORMAT)?,
        other => return corrupt(format!("its format is {other}, this program reads {FORMAT}")),
    };
    drop(about);
    writing.open_table(KEYS)?;
    writing.open_table(TERMS)?;
    writing.commit()?;
    Ok(Ok(()))
}

#[cfg(test)]
mod tests;
