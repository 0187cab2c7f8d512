//! The role itself: flags and the life of a process that is a coordinator and nothing else.
//!
//! Shared by `fresco coordinator` and by `fresco-coordinator`, the program of the coordinator's image, which has no
//! numeric libraries in it.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use crate::{Config, Coordinator, Patience};

mod end;
mod given;
pub mod log;

pub use end::EndSignals;
pub use given::{address, without_empty_variables};
pub use log::Log;

/// Where a coordinator listens unless it is told otherwise.
pub const LISTEN: &str = "127.0.0.1:7400";

/// Flags of `coordinator`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco coordinator --listen 0.0.0.0:7400 --store redb:/srv/fresco/store.redb --artifacts file:/srv/fresco/artifacts")]
pub struct CoordinatorArgs {
    /// Where clients and workers reach it
    #[arg(long, env = "FRESCO_LISTEN", value_name = "ADDRESS", default_value = LISTEN, value_parser = address)]
    pub listen: SocketAddr,

    /// Where jobs are written down: redb:PATH, a file of this process's own
    #[arg(long, env = "FRESCO_STORE", value_name = "STORE", default_value = "redb:fresco-data/store.redb")]
    #[arg(value_parser = store)]
    pub store: PathBuf,

    /// Where finished pictures go: file:DIR
    #[arg(long, env = "FRESCO_ARTIFACTS", value_name = "PLACE", default_value = "file:fresco-data/artifacts")]
    #[arg(value_parser = artifacts)]
    pub artifacts: PathBuf,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub adopt: Adopt,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub lease: Lease,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub status: StatusPort,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: Log,
}

/// What becomes of folders that another store has marked.
#[derive(Debug, Args)]
pub struct Adopt {
    /// Take over folders that belong to another store, or to one that is lost. Deletes nothing
    #[arg(long)]
    pub adopt: bool,
}

/// How patient a coordinator is.
#[derive(Debug, Args)]
pub struct Lease {
    /// Lease: a worker that is silent for longer loses its work
    #[arg(long, env = "FRESCO_LEASE_TTL_MS", value_name = "MS", default_value = "3000")]
    #[arg(value_parser = clap::value_parser!(u64).range(100..=600_000))]
    pub lease_ttl_ms: u64,

    /// A worker whose work stands still for this long, and for ten of its steps, is taken to hang and loses it
    #[arg(long, env = "FRESCO_STALL_MS", value_name = "MS", default_value = "60000")]
    #[arg(value_parser = clap::value_parser!(u64).range(1_000..=86_400_000))]
    pub stall_ms: u64,
}

impl Lease {
    /// As a coordinator is told it.
    pub fn patience(&self) -> Patience {
        Patience { lease_ttl_ms: self.lease_ttl_ms, stall_ms: self.stall_ms, most_tries: None }
    }
}

/// Where a role tells how it is.
#[derive(Debug, Args)]
pub struct StatusPort {
    /// Where Prometheus finds /metrics, and probes /livez, /readyz and gRPC health, such as 0.0.0.0:7480 [default: nowhere]
    #[arg(long, env = "FRESCO_STATUS", value_name = "ADDRESS", value_parser = address)]
    pub status: Option<SocketAddr>,
}

fn store(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("redb", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("redb:PATH is needed, such as redb:fresco-data/store.redb".into()),
    }
}

fn artifacts(text: &str) -> Result<PathBuf, String> {
    match text.split_once(':') {
        Some(("file", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("file:DIR is needed, such as file:fresco-data/artifacts".into()),
    }
}

/// An address of a role, as it is given to others: `http://HOST:PORT`.
///
/// # Errors
/// If it begins otherwise; what was meant to be encrypted must not travel in the clear.
pub fn url(text: &str) -> Result<String, String> {
    match text.split_once("://") {
        Some(("http", rest)) if !rest.is_empty() => Ok(text.into()),
        Some(("https", _)) => Err("this version speaks no TLS: use http:// in a network of your own".into()),
        _ => Err("http://HOST:PORT is needed".into()),
    }
}

/// Refuses certificates, which are not read yet.
///
/// # Errors
/// If the environment names one.
pub fn refuse_certificates() -> anyhow::Result<()> {
    let named = ["FRESCO_TLS_CERT", "FRESCO_TLS_KEY", "FRESCO_TLS_CA"];
    match named.iter().find(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        None => Ok(()),
        Some(name) => anyhow::bail!("{name} is set, and this version speaks no TLS: unset it to go on in the clear"),
    }
}

/// A coordinator alone, until SIGTERM, SIGHUP or Ctrl-C. `note` tells the user where it is.
///
/// # Errors
/// If store, folders or ports cannot be used, or the store stops taking writes.
pub async fn run(args: CoordinatorArgs, note: impl Fn(&str)) -> anyhow::Result<()> {
    refuse_certificates()?;
    let mut signals = EndSignals::listen().context("listen for signals")?;
    let registry = telemetry::registry("coordinator").context("make metrics")?;
    let config = Config {
        listen: args.listen,
        store: args.store,
        artifacts: args.artifacts,
        patience: args.lease.patience(),
        adopt: args.adopt.adopt,
    };
    let coordinator = tokio::select! {
        built = Coordinator::build(config, &registry) => built?,
        () = signals.recv() => return Ok(()),
    };
    note(&format!("coordinating on http://{}", coordinator.address()?));
    if let Some(told) = telemetry::start(args.status.status, registry, coordinator.refresh()).await? {
        note(&format!("metrics on http://{}/metrics", told.address));
        told.health.ready(true).await;
    }
    coordinator.run(async move { signals.recv().await }).await
}
