//! The port that probes and Prometheus look at: gRPC health and `/metrics`, on one address.
//!
//! Leaves out what is measured: coordinator and worker have a registry each.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{IntGauge, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

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
pub struct Health(HealthReporter);

impl Health {
    /// Ready to work, or not.
    pub async fn ready(&self, is_ready: bool) {
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.set_service_status("", status).await;
    }
}

/// The port, bound and not yet served.
struct Telemetry {
    address: SocketAddr,
    listener: TcpListener,
    registry: Registry,
    routes: Routes,
    health: Health,
}

/// The port cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for probes and metrics: {error}: choose another with --status")]
pub struct BindError {
    address: SocketAddr,
    error: std::io::Error,
}

impl Telemetry {
    /// Listens on `address`; alive at once, not ready until it is said.
    async fn bind(address: SocketAddr, registry: Registry) -> Result<Self, BindError> {
        let fault = |error| BindError { address, error };
        let listener = TcpListener::bind(address).await.map_err(fault)?;
        let address = listener.local_addr().map_err(fault)?;
        let (reporter, service) = tonic_health::server::health_reporter();
        reporter.set_service_status(LIVENESS, ServingStatus::Serving).await;
        let health = Health(reporter);
        health.ready(false).await;
        Ok(Self { address, listener, registry, routes: Routes::new(service), health })
    }

    /// Serves for as long as this is polled.
    async fn serve<F>(self, refresh: impl Fn() -> F + Clone + Send + Sync + 'static) -> std::io::Result<()>
    where
        F: Future<Output = ()> + Send,
    {
        let registry = self.registry;
        let metrics = move || {
            let (registry, refresh) = (registry.clone(), refresh.clone());
            async move {
                refresh().await;
                text(&registry)
            }
        };
        let router: Router = self.routes.into_axum_router().route("/metrics", get(metrics));
        axum::serve(self.listener, router).await
    }
}

/// Where a process tells how it is.
pub struct Told {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where readiness is said.
    pub health: Health,
}

/// Serves at `address`, if there is one, for as long as the process lives. `refresh` brings up to
/// date what is not counted as it happens; it runs before every answer.
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
    let telemetry = Telemetry::bind(address, registry).await?;
    let told = Told { address: telemetry.address, health: telemetry.health.clone() };
    tokio::spawn(async move {
        if let Err(error) = telemetry.serve(refresh).await {
            tracing::error!(%error, "metrics and health are not served any more");
        }
    });
    Ok(Some(told))
}

fn text(registry: &Registry) -> Response {
    match TextEncoder::new().encode_to_string(&registry.gather()) {
        Ok(text) => ([(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tonic::transport::Endpoint;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus as Answer;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;

    #[tokio::test]
    async fn probes_and_prometheus_are_answered_on_one_port() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let registry = registry("worker").expect("no name twice");
        let told = start(Some(any), registry, || async {}).await.expect("a free port").expect("it was asked for");
        let Told { address, health } = told;

        let channel = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let mut client = HealthClient::new(channel.connect().await.expect("it listens"));
        let mut ask = async |service: &str| {
            let request = HealthCheckRequest { service: service.to_owned() };
            client.check(request).await.map(|answer| answer.into_inner().status())
        };
        assert_eq!(ask(LIVENESS).await.expect("is known"), Answer::Serving);
        assert_eq!(ask("").await.expect("is known"), Answer::NotServing);
        health.ready(true).await;
        assert_eq!(ask("").await.expect("is known"), Answer::Serving);
        assert!(ask("nobody").await.is_err());

        let mut stream = TcpStream::connect(address).await.expect("it listens");
        let request = b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert!(answer.contains(r#"role="worker""#) && answer.contains("fresco_build_info"), "{answer}");
    }
}
