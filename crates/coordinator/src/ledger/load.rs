//! What the store holds at the start: the lead is taken, and every record read.

use std::collections::BTreeMap;
use std::time::Duration;

use control::Record;
use plan::JobId;
use store::{Store, StoreError};

use super::{EPOCH_KEY, IMAGES, JOBS, Ledger, job_key};
use crate::identity::{self, Identity};

/// Why a store cannot be begun with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// It does not answer, or not as it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Without it numbers of attempts would be given out twice.
    #[error("the store's record `{EPOCH_KEY}` is not one of this version ({0}): start the version that wrote it")]
    Epoch(serde_json::Error),
}

/// Takes the lead and reads everything. A record of a job or an image that this version does not understand is left out,
/// and left in the store.
///
/// # Errors
/// If the store cannot be used.
pub(crate) fn load(store: &dyn Store) -> Result<(Ledger, Identity, Vec<Record>), LoadError> {
    const PAGE: usize = 500;
    let leadership = store.lead("coordinator", Duration::from_secs(10))?;
    let identity = Identity::of(store, &leadership)?;
    let (mut versions, mut records) = (BTreeMap::new(), Vec::new());
    let mut after: Option<String> = None;
    let mut n_left_out = 0;
    loop {
        let page = store.list("", after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (key, stored) in page {
            if key == identity::KEY {
                continue;
            }
            let record = serde_json::from_slice(&stored.value);
            n_left_out += usize::from(record.is_err());
            match record {
                Ok(record) => records.push(record),
                Err(error) if key == EPOCH_KEY => return Err(LoadError::Epoch(error)),
                Err(error) if key.starts_with(IMAGES) => {
                    tracing::error!(key, %error, "a record is not one of this version: its image is begun anew");
                }
                Err(error) if key.starts_with(JOBS) => {
                    tracing::error!(key, %error, "a record is not one of this version: its job is left out");
                }
                Err(error) => tracing::warn!(key, %error, "a record is not one of this version and is left out"),
            }
            versions.insert(key, stored.version);
        }
    }
    // What a crash left of jobs that were being forgotten.
    let has_job = |key: &str| {
        let job = key.strip_prefix(IMAGES).and_then(|image| image.rsplit_once('/'));
        job.is_none_or(|(job, _)| versions.contains_key(&job_key(&JobId(job.into()))))
    };
    let forgotten_images = versions.keys().filter(|key| !has_job(key)).cloned().collect();
    let ledger = Ledger { n_left_out, ..Ledger::new(leadership, versions, forgotten_images) };
    Ok((ledger, identity, records))
}
