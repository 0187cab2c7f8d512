//! Records to and from the store: JSON under `jobs/`, `images/` and `epoch`, written by one leader.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::Record;
use store::{Leadership, Revision, Store, Txn};

/// Writes records, batch by batch.
pub(crate) struct Persistence {
    store: Arc<dyn Store>,
    leadership: Leadership,
    versions: BTreeMap<String, Revision>,
    waiting: BTreeMap<String, Vec<u8>>,
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
        Ok((Self { store, leadership, versions, waiting: BTreeMap::new() }, records))
    }

    /// Keeps a record for the next batch; a later one of the same key replaces it.
    pub(crate) fn add(&mut self, record: Record) {
        let key = match &record {
            Record::Job { id, .. } => format!("jobs/{id}"),
            Record::Image { id, .. } => format!("images/{id}"),
            Record::NextEpoch(_) => "epoch".to_owned(),
        };
        match serde_json::to_vec(&record) {
            Ok(value) => drop(self.waiting.insert(key, value)),
            Err(error) => tracing::error!(key, %error, "a record has no JSON"),
        }
    }

    /// Makes all that was added durable.
    pub(crate) async fn commit(&mut self) -> anyhow::Result<()> {
        while !self.waiting.is_empty() {
            let mut txn = Txn::new(&self.leadership);
            let (mut keys, mut bytes) = (Vec::new(), 0);
            while let Some((key, value)) = self.waiting.pop_first() {
                bytes += key.len() + value.len();
                if !keys.is_empty() && (bytes > store::MAX_TXN_BYTES / 2 || keys.len() >= store::MAX_TXN_KEYS / 2) {
                    self.waiting.insert(key, value);
                    break;
                }
                txn = txn.put(key.clone(), self.versions.get(&key).copied(), value);
                keys.push(key);
            }
            let store = Arc::clone(&self.store);
            let committed = tokio::task::spawn_blocking(move || store.commit(&txn)).await;
            let revision = committed.context("the store's thread died")?.context("write down what happened")?;
            self.versions.extend(keys.into_iter().map(|key| (key, revision)));
        }
        Ok(())
    }
}
