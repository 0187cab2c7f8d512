//! Between the state machine and the store: what was decided, in order, until it is durable and may be acted on.
//!
//! One batch is on its way to the store, the next one gathers behind it, and whatever rests on either is held until that
//! one is written. No clock, no thread, no async: who drives it hands a batch to the store and says how that went.
//!
//! Records are JSON under `jobs/`, `images/` and `epoch`, written by one leader.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use control::{Output, Record};
use plan::{ImageId, ImageIdx, JobId};
use store::{Leadership, Revision, Txn};

mod load;

pub(crate) use load::load;

const EPOCH_KEY: &str = "epoch";
const IMAGES: &str = "images/";
const JOBS: &str = "jobs/";

fn job_key(job: &JobId) -> String {
    format!("{JOBS}{job}")
}

fn image_key(image: &ImageId) -> String {
    format!("{IMAGES}{image}")
}

/// Keys of a batch. A batch of any size is written in parts of so many.
const MOST_KEYS: usize = store::MAX_TXN_KEYS;

/// A record that cannot be written down. Nothing that rests on it may leave, so the process ends.
#[derive(Debug, thiserror::Error)]
#[error("the record `{key}` has no JSON: {error}")]
#[allow(missing_docs)]
pub(crate) struct RecordError {
    key: String,
    error: serde_json::Error,
}

/// What is not durable yet.
pub(crate) struct Ledger {
    leadership: Leadership,
    /// Every key of the store and the revision that wrote it.
    versions: BTreeMap<String, Revision>,
    /// The batch in the making.
    gathering: Batch,
    /// Its number. All before it but the one in `writing` are durable.
    number: u64,
    /// What is left of the batch before it.
    writing: Batch,
    /// A part of that batch, at the store.
    on_its_way: Option<Part>,
    /// What may leave once the batch of that number is durable.
    held: VecDeque<(u64, Output)>,
    /// What rests on nothing that is written.
    free: VecDeque<Output>,
    /// Images of deleted jobs. They mean nothing any more, and go when there is nothing else to write; the rest at the
    /// next start.
    forgotten_images: Vec<String>,
    /// Records that this version does not understand. What they name is not known.
    n_left_out: usize,
}

/// Writes, the last one of each key.
#[derive(Default)]
struct Batch {
    puts: BTreeMap<String, Vec<u8>>,
    deletes: BTreeSet<String>,
}

/// What the store is at.
struct Part {
    txn: Arc<Txn>,
    puts: Vec<String>,
    deletes: Vec<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletes.is_empty()
    }
}

impl Ledger {
    /// Over a store that holds `versions`, of which `forgotten_images` are of no job.
    fn new(leadership: Leadership, versions: BTreeMap<String, Revision>, forgotten_images: Vec<String>) -> Self {
        Self {
            leadership,
            versions,
            gathering: Batch::default(),
            number: 1,
            writing: Batch::default(),
            on_its_way: None,
            held: VecDeque::new(),
            free: VecDeque::new(),
            forgotten_images,
            n_left_out: 0,
        }
    }

    /// Takes in what the state machine decided next.
    ///
    /// # Errors
    /// If a record cannot be written down.
    pub(crate) fn take(&mut self, output: Output) -> Result<(), RecordError> {
        match output {
            Output::Persist(record) => self.add(&record),
            // Who is in is not written down; a worker that is not welcomed in time sends no heartbeats.
            Output::Welcome { .. } | Output::Refuse { .. } | Output::Expel { .. } | Output::Quarantine { .. } => {
                self.free.push_back(output);
                Ok(())
            }
            output => {
                if let Output::Forget { job, n_images, .. } = &output {
                    self.forget(job, *n_images);
                }
                let rests_on = if self.gathering.is_empty() { self.number - 1 } else { self.number };
                self.held.push_back((rests_on, output));
                Ok(())
            }
        }
    }

    fn add(&mut self, record: &Record) -> Result<(), RecordError> {
        let key = match record {
            Record::Job { id, .. } => job_key(id),
            Record::Image { id, .. } => image_key(id),
            Record::NextEpoch(_) => EPOCH_KEY.to_owned(),
        };
        match serde_json::to_vec(record) {
            Ok(value) => {
                self.gathering.puts.insert(key, value);
                Ok(())
            }
            Err(error) => Err(RecordError { key, error }),
        }
    }

    /// Deletes a job with the next batch, whatever was added of it before, and its images from then on.
    fn forget(&mut self, job: &JobId, n_images: u32) {
        let key = job_key(job);
        self.gathering.puts.remove(&key);
        if self.is_or_will_be_stored(&key) {
            self.gathering.deletes.insert(key);
        }
        for idx in 0..n_images {
            let key = image_key(&ImageId { job: job.clone(), image: ImageIdx(idx) });
            self.gathering.puts.remove(&key);
            if self.is_or_will_be_stored(&key) {
                self.forgotten_images.push(key);
            }
        }
    }

    fn is_or_will_be_stored(&self, key: &str) -> bool {
        let is_on_its_way = self.on_its_way.as_ref().is_some_and(|part| part.puts.iter().any(|put| put == key));
        self.versions.contains_key(key) || self.writing.puts.contains_key(key) || is_on_its_way
    }

    /// The next part for the store, unless it has one already. It is to be tried until [`Self::written`] is told, or
    /// nothing may be promised any more.
    pub(crate) fn poll_part(&mut self) -> Option<Arc<Txn>> {
        if self.on_its_way.is_some() {
            return None;
        }
        if self.writing.is_empty() && !self.gathering.is_empty() {
            self.writing = std::mem::take(&mut self.gathering);
            self.number += 1;
        }
        let part = if self.writing.is_empty() { self.part_of_forgotten()? } else { self.part_of_batch() };
        let txn = Arc::clone(&part.txn);
        self.on_its_way = Some(part);
        Some(txn)
    }

    fn part_of_batch(&mut self) -> Part {
        let (mut txn, mut n_bytes) = (Txn::new(&self.leadership), 0);
        let (mut puts, mut deletes) = (Vec::new(), Vec::new());
        while puts.len() + deletes.len() < MOST_KEYS
            && let Some(key) = self.writing.deletes.pop_first()
        {
            if let Some(seen) = self.versions.get(&key) {
                n_bytes += key.len();
                txn = txn.delete(key.clone(), *seen);
                deletes.push(key);
            }
        }
        while puts.len() + deletes.len() < MOST_KEYS
            && let Some((key, value)) = self.writing.puts.pop_first()
        {
            n_bytes += key.len() + value.len();
            if puts.len() + deletes.len() > 0 && n_bytes > store::MAX_TXN_BYTES {
                self.writing.puts.insert(key, value);
                break;
            }
            txn = txn.put(key.clone(), self.versions.get(&key).copied(), value);
            puts.push(key);
        }
        Part { txn: Arc::new(txn), puts, deletes }
    }

    fn part_of_forgotten(&mut self) -> Option<Part> {
        let few = self.forgotten_images.split_off(self.forgotten_images.len().saturating_sub(MOST_KEYS));
        let (mut txn, mut deletes) = (Txn::new(&self.leadership), Vec::new());
        for key in few {
            if let Some(seen) = self.versions.get(&key) {
                txn = txn.delete(key.clone(), *seen);
                deletes.push(key);
            }
        }
        (!deletes.is_empty()).then(|| Part { txn: Arc::new(txn), puts: Vec::new(), deletes })
    }

    /// What the store is at, to be tried again.
    pub(crate) fn on_its_way(&self) -> Option<Arc<Txn>> {
        self.on_its_way.as_ref().map(|part| Arc::clone(&part.txn))
    }

    /// The part on its way is durable; its keys have this version.
    pub(crate) fn written(&mut self, revision: Revision) {
        let Some(part) = self.on_its_way.take() else { return };
        for key in &part.deletes {
            self.versions.remove(key);
        }
        self.versions.extend(part.puts.into_iter().map(|key| (key, revision)));
    }

    /// The next thing to be done, if what it rests on is durable.
    pub(crate) fn poll_act(&mut self) -> Option<Output> {
        if let Some(output) = self.free.pop_front() {
            return Some(output);
        }
        let is_written = self.writing.is_empty() && (self.on_its_way.is_none() || self.is_at_forgotten());
        let durable = if is_written { self.number - 1 } else { self.number - 2 };
        let (rests_on, _) = self.held.front()?;
        if *rests_on > durable {
            return None;
        }
        self.held.pop_front().map(|(_, output)| output)
    }

    /// How many records this version does not understand.
    pub(crate) fn n_left_out(&self) -> usize {
        self.n_left_out
    }

    /// Whether the part on its way is of no batch: nothing rests on it.
    fn is_at_forgotten(&self) -> bool {
        self.on_its_way
            .as_ref()
            .is_some_and(|part| part.deletes.iter().all(|key| key.starts_with(IMAGES)) && part.puts.is_empty())
    }
}

#[cfg(test)]
mod tests;
