//! The coordinator's process around the machine, as `crates/coordinator` is: what it writes down, what it keeps.
//!
//! What it promises the machine: outputs are performed in order; what is written down is durable before anything
//! behind it leaves; rows that were taken in are durable; rows and pictures of an epoch that is over are refused;
//! and rows are kept until the machine has written down a later step.

use std::collections::{BTreeMap, BTreeSet};

use control::{Config, Control, Record, SessionId};
use plan::{Epoch, ImageId, JobId, Mesh, Millis, Rank};

/// Rows of one step, by the class that made them.
type Rows = Vec<Option<&'static str>>;

/// One coordinator, over all its lives.
#[derive(Default)]
pub(crate) struct Shell {
    pub(crate) control: Option<Control>,
    /// Number of its process.
    pub(crate) life: u64,
    booted_ms: u64,
    pub(crate) durable: BTreeMap<String, Record>,
    not_yet: BTreeMap<String, Record>,
    /// Each session's worker and connection.
    pub(crate) sessions: BTreeMap<SessionId, (usize, u64)>,
    pub(crate) next_session: u64,
    /// Outputs until it dies, and for how long.
    pub(crate) crash: Option<(u64, u64)>,
    checkpoints: BTreeMap<ImageId, BTreeMap<usize, Rows>>,
    pub(crate) artifacts: BTreeSet<String>,
    pub(crate) disk_full_until: u64,
}

pub(crate) const LEASE_MS: u64 = 3_000;
pub(crate) const RECONNECT_MS: u64 = 1_000;

pub(crate) fn config() -> Config {
    Config {
        lease_ttl_ms: LEASE_MS,
        reattach_ms: 3 * LEASE_MS,
        reconnect_ms: RECONNECT_MS,
        stall_ms: 10_000,
        most_losses: 1_000,
        ..Config::default()
    }
}

impl Shell {
    pub(crate) fn boot(&mut self, now: u64) {
        self.life += 1;
        self.booted_ms = now;
        self.sessions.clear();
        let records = self.durable.values().cloned().collect();
        self.control = Some(Control::new(config(), records, Millis(0)));
    }

    pub(crate) fn die(&mut self) {
        self.control = None;
        self.not_yet.clear();
        self.crash = None;
    }

    /// The time as this life of the process counts it.
    pub(crate) fn clock(&self, now: u64) -> Millis {
        Millis(now - self.booted_ms)
    }

    /// When the machine wants to be asked, as the world counts time.
    pub(crate) fn due(&self) -> Option<u64> {
        self.control.as_ref()?.poll_timeout().map(|due| due.0.saturating_add(self.booted_ms))
    }

    /// Whether the time in which ranks may come back after a restart is over.
    pub(crate) fn has_reattached(&self, now: u64) -> bool {
        now - self.booted_ms >= config().reattach_ms
    }

    pub(crate) fn write(&mut self, record: Record) {
        let key = match &record {
            Record::Job { id, .. } => format!("jobs/{id}"),
            Record::Image { id, .. } => format!("images/{id}"),
            Record::NextEpoch(_) => "epoch".to_owned(),
        };
        self.not_yet.insert(key, record);
    }

    pub(crate) fn forget(&mut self, job: &JobId) {
        let (of_job, images) = (format!("jobs/{job}"), format!("images/{job}/"));
        self.durable.retain(|key, _| *key != of_job && !key.starts_with(&images));
    }

    pub(crate) fn commit(&mut self) {
        self.durable.append(&mut self.not_yet);
    }

    pub(crate) fn durable_image(&self, id: &ImageId) -> Option<(&control::Image, Option<Epoch>, u64)> {
        match self.durable.get(&format!("images/{id}"))? {
            Record::Image { image, attempt, revision, .. } => {
                Some((image, attempt.as_ref().map(|attempt| attempt.epoch), *revision))
            }
            _ => None,
        }
    }

    /// The image of an epoch that is on.
    pub(crate) fn attempted(&self, epoch: Epoch) -> Option<ImageId> {
        Some(self.control.as_ref()?.attempt(epoch)?.image.clone())
    }

    /// Takes in rows. Whether they are whole; nothing if their epoch is over.
    pub(crate) fn put_rows(
        &mut self,
        epoch: Epoch,
        n: usize,
        mesh: &Mesh,
        rank: Rank,
        class: &'static str,
    ) -> Option<bool> {
        let image = self.attempted(epoch)?;
        let n_rows = mesh.bands().last().map_or(0, |band| band.end);
        let steps = self.checkpoints.entry(image).or_default();
        let rows = steps.entry(n).or_insert_with(|| vec![None; n_rows]);
        let band = mesh.band(rank);
        rows[band.start..band.end].fill(Some(class));
        Some(rows.iter().all(Option::is_some))
    }

    /// Rows of earlier steps are not needed once a later step is written down, and not before.
    pub(crate) fn forget_older(&mut self, image: &ImageId, n: usize) {
        if let Some(steps) = self.checkpoints.get_mut(image) {
            steps.retain(|step, _| *step >= n);
        }
    }

    /// Who made the rows behind a step, if they are whole.
    pub(crate) fn classes(&self, image: &ImageId, n: usize) -> Option<BTreeSet<&'static str>> {
        self.checkpoints.get(image)?.get(&n)?.iter().copied().collect()
    }

    pub(crate) fn drop_checkpoint(&mut self, image: &ImageId) {
        self.checkpoints.remove(image);
    }
}
