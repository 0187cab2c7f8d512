//! What can be set of the machine, and what it counts.

/// What can be set.
#[derive(Debug, Clone)]
pub struct Config {
    /// Version of the program; workers of another are refused.
    pub version: String,
    /// How long a lease lasts without a heartbeat.
    pub lease_ttl_ms: u64,
    /// How long running images wait for their ranks after a restart.
    pub reattach_ms: u64,
    /// Images that may wait or be made at a time.
    pub most_images: usize,
    /// Images of one job.
    pub most_images_per_job: u32,
    /// Reported failures without a step forward before an image fails.
    pub most_failures: u32,
    /// Attempts that failed without a step forward before an image fails, those included that were their workers' fault.
    pub most_tries: u32,
    /// The first quarantine of a worker that failed three times in a row; doubled with each that follows.
    pub quarantine_ms: u64,
    /// Least time without progress after which a rank is taken to hang.
    pub stall_ms: u64,
    /// How long a worker whose session broke may take to open another.
    pub reconnect_ms: u64,
    /// Members lost without a step forward before an image fails.
    pub most_losses: u32,
    /// A failed attempt is tried again after this, four times as late with each failure. At least a thirtieth of a
    /// lease: five failures then take longer than a lease, and a dead worker fails no image.
    pub backoff_ms: u64,
    /// How long two workers that could not reach each other are kept apart.
    pub rift_ms: u64,
    /// Shortening of a step, as a share, that is worth stopping for.
    pub replan_gain: f64,
    /// Steps an attempt takes before it is planned anew for its speeds, doubled each time this was done.
    pub replan_after_steps: usize,
    /// What a stop costs its image beside a step: the way to and fro, and a checkpoint fetched.
    pub replan_cost_ms: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            lease_ttl_ms: 3_000,
            reattach_ms: 10_000,
            most_images: 100_000,
            most_images_per_job: 10_000,
            most_failures: 5,
            most_tries: 20,
            quarantine_ms: 15_000,
            stall_ms: 60_000,
            reconnect_ms: 1_000,
            most_losses: 20,
            backoff_ms: 100,
            rift_ms: 300_000,
            replan_gain: 0.1,
            replan_after_steps: 2,
            replan_cost_ms: 250.0,
        }
    }
}

/// What was dropped, and what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Messages of an epoch that is over.
    pub old_epoch: u64,
    /// Messages of a session that is over.
    pub old_session: u64,
    /// Workers refused.
    pub refused: u64,
    /// Leases that ended.
    pub leases_ended: u64,
    /// Quarantines of workers that failed again and again.
    pub quarantines: u64,
    /// Attempts that were given up because a rank made no progress.
    pub stalled: u64,
    /// Attempts that ended with a value that is not finite.
    pub not_finite: u64,
    /// Attempts that ended amid a step because a worker was lost.
    pub cut_by_loss: u64,
    /// Attempts that ended amid a step because a rank failed.
    pub cut_by_failure: u64,
}
