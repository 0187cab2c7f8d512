//! A coordinator that does not answer while a job is waited for: it is looked for until it is back, for a while.
//!
//! It may be restarting, moving to another machine, or stopped. Ctrl-C ends the waiting as it ends everything.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use super::call::refused;
use crate::terminal;

/// How long a farm that went away is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Since when a coordinator has been away.
pub(super) struct Away {
    url: String,
    since: Option<Instant>,
    is_said: bool,
}

impl Away {
    /// It is there.
    pub(super) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), since: None, is_said: false }
    }

    /// It has answered.
    pub(super) fn is_back(&mut self) {
        (self.since, self.is_said) = (None, false);
    }

    /// It has not, and `status` says why: waits before the next try, and says so the first time.
    ///
    /// # Errors
    /// If it has been away for too long, or something else listens in its place.
    pub(super) async fn wait(&mut self, status: &Status) -> anyhow::Result<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            return Err(refused(&self.url, status).await);
        }
        if !std::mem::replace(&mut self.is_said, true) {
            if let Some(told) = worker::stranger::explain(&self.url, status).await {
                return Err(crate::exit::Stop::Unavailable(told).into());
            }
            terminal::note(&format!(
                "the coordinator at {} does not answer: waiting for it, {} s at most",
                self.url,
                PATIENCE.as_secs()
            ));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}
