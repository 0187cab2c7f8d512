//! Records to and from the store: JSON under `jobs/`, `images/` and `epoch`, written by one leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::Record;
use plan::{ImageId, ImageIdx, JobId};
use store::{Leadership, Revision, Store, Txn};

fn job_key(job: &JobId) -> String {
    format!("jobs/{job}")
}

fn image_key(image: &ImageId) -> String {
    format!("images/{image}")
}

/// Keys of a batch.
const MOST_KEYS: usize = store::MAX_TXN_KEYS / 2;

/// Writes records, batch by batch.
pub(crate) struct Persistence {
    store: Arc<dyn Store>,
    leadership: Leadership,
    versions: BTreeMap<String, Revision>,
    waiting: BTreeMap<String, Vec<u8>>,
    /// Jobs to be deleted with the next batch.
    forgotten_jobs: Vec<String>,
    /// Images of deleted jobs. They mean nothing any more, and go a few with each batch; the rest at the next start.
    forgotten_images: Vec<String>,
}

impl Persistence {
    /// Takes the lead and reads everything.
    pub(crate) fn load(store: Arc<dyn Store>) -> anyhow::Result<(Self, Vec<Record>)> {
        const PAGE: usize = 500;
        let leadership = store.lead("coordinator", Duration::from_secs(10))?;
        let (mut versions, mut records) = (BTreeMap::new(), Vec::new());
        let mut after: Option<String> = None;
        loop {
            let page = store.list("", after.as_deref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            for (key, stored) in page {
                let record = serde_json::from_slice(&stored.value);
                let unread = || format!("the store's record `{key}` is not one of this version");
                records.push(record.with_context(unread)?);
                versions.insert(key, stored.version);
            }
        }
        // What a crash left of jobs that were being forgotten.
        let has_job = |key: &str| {
            let job = key.strip_prefix("images/").and_then(|image| image.rsplit_once('/'));
            job.is_none_or(|(job, _)| versions.contains_key(&job_key(&JobId(job.into()))))
        };
        let forgotten_images = versions.keys().filter(|key| !has_job(key)).cloned().collect();
        let (waiting, forgotten_jobs) = (BTreeMap::new(), Vec::new());
        Ok((Self { store, leadership, versions, waiting, forgotten_jobs, forgotten_images }, records))
    }

    /// Deletes a job with the next batch, whatever was added of it before, and its images from then on.
    pub(crate) fn forget(&mut self, job: &JobId, n_images: u32) {
        let images = (0..n_images).map(|idx| image_key(&ImageId { job: job.clone(), image: ImageIdx(idx) }));
        let images: Vec<String> = images.collect();
        for key in std::iter::once(job_key(job)).chain(images.iter().cloned()) {
            self.waiting.remove(&key);
        }
        self.forgotten_jobs.push(job_key(job));
        self.forgotten_images.extend(images.into_iter().filter(|key| self.versions.contains_key(key)));
    }

    /// Keeps a record for the next batch; a later one of the same key replaces it.
    pub(crate) fn add(&mut self, record: Record) {
        let key = match &record {
            Record::Job { id, .. } => job_key(id),
            Record::Image { id, .. } => image_key(id),
            Record::NextEpoch(_) => "epoch".to_owned(),
        };
        match serde_json::to_vec(&record) {
            Ok(value) => drop(self.waiting.insert(key, value)),
            Err(error) => tracing::error!(key, %error, "a record has no JSON"),
        }
    }

    /// Makes all that was added durable.
    pub(crate) async fn commit(&mut self) -> anyhow::Result<()> {
        while !self.waiting.is_empty() || !self.forgotten_jobs.is_empty() {
            let mut txn = Txn::new(&self.leadership);
            let (mut keys, mut bytes, mut n_keys) = (Vec::new(), 0, 0);
            while n_keys < MOST_KEYS
                && let Some(key) = self.forgotten_jobs.pop()
            {
                if let Some(seen) = self.versions.remove(&key) {
                    txn = txn.delete(key, seen);
                    n_keys += 1;
                }
            }
            while n_keys < MOST_KEYS
                && let Some((key, value)) = self.waiting.pop_first()
            {
                bytes += key.len() + value.len();
                if n_keys > 0 && bytes > store::MAX_TXN_BYTES / 2 {
                    self.waiting.insert(key, value);
                    break;
                }
                txn = txn.put(key.clone(), self.versions.get(&key).copied(), value);
                keys.push(key);
                n_keys += 1;
            }
            let revision = self.write(txn).await?;
            self.versions.extend(keys.into_iter().map(|key| (key, revision)));
        }
        if !self.forgotten_images.is_empty() {
            let few = self.forgotten_images.split_off(self.forgotten_images.len().saturating_sub(MOST_KEYS));
            let seen = few.into_iter().filter_map(|key| self.versions.remove(&key).map(|seen| (key, seen)));
            let txn = seen.fold(Txn::new(&self.leadership), |txn, (key, seen)| txn.delete(key, seen));
            self.write(txn).await?;
        }
        Ok(())
    }

    async fn write(&self, txn: Txn) -> anyhow::Result<Revision> {
        let store = Arc::clone(&self.store);
        let committed = tokio::task::spawn_blocking(move || store.commit(&txn)).await;
        committed.context("the store's thread died")?.context("write down what happened")
    }
}

#[cfg(test)]
mod tests {
    use control::Control;
    use plan::Millis;
    use store::MemoryStore;

    use super::*;
    use crate::testing::spec;

    fn records(store: &Arc<dyn Store>) -> Vec<Record> {
        Persistence::load(Arc::clone(store)).expect("is read").1
    }

    /// What a machine wrote down of one job of `count` images, all of them cancelled.
    fn of_a_job(count: u32) -> (JobId, Vec<Record>) {
        let mut control = Control::new(control::Config::default(), Vec::new(), Millis(0));
        let (job, reply) = (JobId("j".into()), control::ReplyId(1));
        let submit = control::Input::Submit { job: job.clone(), request_id: String::new(), spec: spec(count), reply };
        control.handle(Millis(0), submit);
        control.handle(Millis(0), control::Input::Cancel { job: job.clone(), reply });
        let mut records = Vec::new();
        while let Some(output) = control.poll_output() {
            if let control::Output::Persist(record) = output {
                records.push(*record);
            }
        }
        (job, records)
    }

    #[tokio::test]
    async fn a_forgotten_job_is_deleted_with_all_its_images_however_many() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let count = store::MAX_TXN_KEYS as u32 + 7;
        let (job, written) = of_a_job(count);
        let (mut persistence, _) = Persistence::load(Arc::clone(&store)).expect("is empty");
        written.into_iter().for_each(|record| persistence.add(record));
        persistence.commit().await.expect("is written");
        let images =
            |records: &[Record]| records.iter().filter(|record| matches!(record, Record::Image { .. })).count();
        assert_eq!(images(&records(&store)), count as usize);

        let (mut persistence, _) = Persistence::load(Arc::clone(&store)).expect("is read");
        persistence.forget(&job, count);
        persistence.commit().await.expect("is deleted");
        let (mut persistence, left) = Persistence::load(Arc::clone(&store)).expect("is read");
        assert!(left.iter().all(|record| matches!(record, Record::Image { .. })), "the job itself goes at once");
        assert!(!left.is_empty(), "its images a few at a time");
        for _ in 0..left.len().div_ceil(MOST_KEYS) {
            persistence.commit().await.expect("is deleted");
        }
        assert_eq!(records(&store), []);
    }

    #[tokio::test]
    async fn images_a_crash_left_of_a_job_go_with_the_next_batch() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let (_, written) = of_a_job(2);
        let (mut persistence, _) = Persistence::load(Arc::clone(&store)).expect("is empty");
        for record in written.into_iter().filter(|record| matches!(record, Record::Image { .. })) {
            persistence.add(record);
        }
        persistence.commit().await.expect("is written");
        let (mut persistence, left) = Persistence::load(Arc::clone(&store)).expect("is read");
        assert!(!left.is_empty());
        persistence.commit().await.expect("is deleted");
        assert_eq!(records(&store), []);
    }
}
