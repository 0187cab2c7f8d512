//! The process that owns devices: joins a coordinator, keeps its lease, runs ranks, writes pictures.
//!
//! Has no opinion about jobs: it does the part it is assigned and drops it when told. An async shell
//! (`session.rs`, `parts.rs`) and one thread per rank (`part.rs`), joined by bounded channels. Heartbeats and orders have a
//! connection of their own: checkpoints and pictures go by another.
#![forbid(unsafe_code)]

mod answer;
mod checkpoint;
mod desk;
pub mod hang;
pub mod image;
pub mod metadata;
pub mod metrics;
pub mod models;
mod outgoing;
mod part;
mod parts;
mod probe;
mod room;
mod session;
pub mod stranger;
#[cfg(test)]
mod testing;
mod upload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use candle_core::Tensor;
use fabric::grpc::Port;
use machine::Memory;
use model::Place;
use plan::WorkerId;
use rayon::ThreadPool;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use hang::Hang;
use metrics::Metrics;
use models::Models;

/// What a worker is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name, unique in the farm.
    pub name: String,
    /// Where the coordinator is, such as `http://10.0.0.1:7400`.
    pub coordinator: String,
    /// Where other workers reach it; workers of one process have one address.
    pub address: String,
    /// Cores it computes on.
    pub threads: usize,
    /// Stands in for the seed's noise in every picture; for a farm that serves one request alone.
    pub noise: Option<Noise>,
    /// For tests: where its ranks hang.
    pub hang: Option<Hang>,
}

/// Noise to begin with.
#[derive(Debug, Clone)]
pub struct Noise {
    /// `[1, 4, rows, cols]` f32.
    pub tensor: Tensor,
    /// Hash of its values, for the picture's metadata.
    pub sha256: String,
}

/// How far the end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Work goes on.
    No,
    /// Hand over at the next step boundary, then leave.
    Drain,
    /// Leave at once; checkpoints are in place.
    Now,
}

/// A worker, ready to join.
pub struct Worker {
    name: WorkerId,
    models: Arc<Models>,
    port: Arc<Port>,
    metrics: Metrics,
    channel: Channel,
    /// For checkpoints and pictures.
    bulk: Channel,
    coordinator: String,
    address: String,
    pools: Arc<[ThreadPool; 2]>,
    flop_per_s: f64,
    noise: Option<Noise>,
    hang: Option<Hang>,
}

impl Worker {
    /// Checks the configuration and measures this machine. Workers of one process share `models`, `port` and
    /// `metrics`.
    ///
    /// # Errors
    /// If the coordinator's address is none, or threads cannot be started.
    pub fn new(config: Config, models: Arc<Models>, port: Arc<Port>, metrics: Metrics) -> anyhow::Result<Self> {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(config.threads).build();
        let pools = [pool().context("start threads")?, pool().context("start threads")?];
        let endpoint = Endpoint::from_shared(config.coordinator.clone())
            .with_context(|| {
                format!("coordinator `{}` is not an address such as http://host:7400", config.coordinator)
            })?
            .connect_timeout(Duration::from_secs(3))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(4))
            .keep_alive_while_idle(true);
        let flop_per_s = pools[0].install(|| probe::flop_per_s(models.place()))?;
        tracing::debug!(worker = config.name, flop_per_s, "measured this machine");
        Ok(Self {
            name: WorkerId(config.name),
            models,
            port,
            metrics,
            channel: endpoint.connect_lazy(),
            bulk: endpoint.connect_lazy(),
            coordinator: config.coordinator,
            address: config.address,
            pools: Arc::new(pools),
            flop_per_s,
            noise: config.noise,
            hang: config.hang,
        })
    }

    /// Works until it has drained, is refused, or is told to leave at once.
    ///
    /// # Errors
    /// If the coordinator refuses this worker; the message is the coordinator's.
    pub async fn run(self, shutdown: watch::Receiver<Shutdown>) -> anyhow::Result<()> {
        session::Stay::new(self, shutdown).run().await
    }
}

/// Opens the folders of models that `n_workers` workers of this process offer, whose networks will compute on `place`;
/// `memory` is the host's.
///
/// # Errors
/// If a folder is at fault, every fault a line, or if the networks need more memory than there is.
pub fn open_models(
    folders: &[(PathBuf, Option<PathBuf>)],
    place: &Place,
    memory: &Memory,
    n_workers: u16,
) -> anyhow::Result<Arc<Models>> {
    Ok(Arc::new(Models::open(folders, place, memory, n_workers)?))
}
