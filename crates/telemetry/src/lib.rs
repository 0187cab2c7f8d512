//! The port that probes and Prometheus look at: gRPC health, the probes' paths over HTTP, and `/metrics`, on one address.
//!
//! What is answered is in `answers.rs`, who may stay connected in `connections.rs`. Leaves out what is measured:
//! coordinator and worker have a registry each.
#![forbid(unsafe_code)]

mod answers;
mod connections;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::{IntGauge, Opts, Registry};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use answers::Answers;
use connections::Limits;

/// The health service that says only whether the process answers at all.
pub const LIVENESS: &str = "liveness";

/// A registry with what every process says of itself.
///
/// # Errors
/// If two metrics have one name, which is a defect.
pub fn registry(role: &str) -> prometheus::Result<Registry> {
    let registry = Registry::new();
    let about = Opts::new("fresco_build_info", "Version and role of this process; the value is always 1.")
        .const_label("version", env!("CARGO_PKG_VERSION"))
        .const_label("role", role);
    let build_info = IntGauge::with_opts(about)?;
    build_info.set(1);
    registry.register(Box::new(build_info))?;
    #[cfg(target_os = "linux")]
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    Ok(registry)
}

/// Whether this process is alive and ready, as probes ask.
#[derive(Clone)]
pub struct Health {
    reporter: HealthReporter,
    is_ready: Arc<AtomicBool>,
}

impl Health {
    /// Ready to work, or not.
    pub async fn ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::SeqCst);
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status("", status).await;
    }
}

/// The port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes and metrics: {error}: choose another with --status")]
pub struct BindError {
    address: SocketAddr,
    error: std::io::Error,
}

/// Where a process tells how it is.
pub struct Told {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where readiness is said.
    pub health: Health,
}

/// Serves at `address`, if there is one, for as long as the process lives: alive at once, ready when it is said. `refresh`
/// brings up to date what is not counted as it happens; it runs before every answer with metrics.
///
/// # Errors
/// If the address is taken.
pub async fn start<F>(
    address: Option<SocketAddr>,
    registry: Registry,
    refresh: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Result<Option<Told>, BindError>
where
    F: Future<Output = ()> + Send,
{
    let Some(address) = address else { return Ok(None) };
    Ok(Some(start_with(address, registry, refresh, Limits::USUAL).await?))
}

async fn start_with<F>(
    address: SocketAddr,
    registry: Registry,
    refresh: impl Fn() -> F + Clone + Send + Sync + 'static,
    limits: Limits,
) -> Result<Told, BindError>
where
    F: Future<Output = ()> + Send,
{
    let fault = |error| BindError { address, error };
    let listener = TcpListener::bind(address).await.map_err(fault)?;
    let address = listener.local_addr().map_err(fault)?;
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
    let health = Health { reporter, is_ready: Arc::default() };
    health.ready(false).await;
    let answers = Answers::new(Routes::new(service), Arc::clone(&health.is_ready), registry, refresh);
    tokio::spawn(connections::serve(listener, answers, limits));
    Ok(Told { address, health })
}

#[cfg(test)]
mod tests;
