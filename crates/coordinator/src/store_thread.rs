//! The store on a thread of its own: a slow disk keeps nobody else waiting, and slow peers keep no commit waiting.

use std::sync::{Arc, mpsc};
use std::thread;

use futures_util::future::BoxFuture;
use store::{Revision, Store, StoreError, Txn};
use tokio::sync::oneshot;

/// Writes batches, one at a time.
pub(crate) trait Writer: Send {
    /// Writes a batch. With `is_unsure` it was tried before and may have been written then: that counts.
    fn write(&mut self, txn: Arc<Txn>, is_unsure: bool) -> BoxFuture<'static, Result<Revision, StoreError>>;
}

type Written = oneshot::Sender<Result<Revision, StoreError>>;

/// A thread that has the store.
pub(crate) struct StoreThread {
    asked: mpsc::Sender<(Arc<Txn>, bool, Written)>,
}

impl StoreThread {
    /// Starts the thread; it ends with this.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(store: Arc<dyn Store>) -> std::io::Result<Self> {
        let (asked, batches) = mpsc::channel::<(Arc<Txn>, bool, Written)>();
        thread::Builder::new().name("store".into()).spawn(move || {
            for (txn, is_unsure, written) in batches {
                // Whoever asked may have ended.
                drop(written.send(settle(&*store, &txn, is_unsure)));
            }
        })?;
        Ok(Self { asked })
    }
}

impl Writer for StoreThread {
    fn write(&mut self, txn: Arc<Txn>, is_unsure: bool) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let (written, answer) = oneshot::channel();
        let asked = self.asked.clone();
        Box::pin(async move {
            let died = |_| StoreError::Corrupt { place: "thread".into(), reason: "it has died".into() };
            asked.send((txn, is_unsure, written)).map_err(|_| died(()))?;
            answer.await.map_err(|_| died(()))?
        })
    }
}

/// Writes a batch, or finds that it was written before.
pub(crate) fn settle(store: &dyn Store, txn: &Txn, is_unsure: bool) -> Result<Revision, StoreError> {
    if is_unsure && let Some(revision) = txn.found_in(store)? {
        return Ok(revision);
    }
    match store.commit(txn) {
        // The earlier try came late.
        Err(refusal @ StoreError::Conflict { .. }) if is_unsure => txn.found_in(store)?.ok_or(refusal),
        done => done,
    }
}
