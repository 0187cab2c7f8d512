//! What is answered at the status port: gRPC health over HTTP/2, and over plain HTTP metrics and the probes' paths.
//!
//! Everything else is "not found" in the words of whoever asked: a status of gRPC, or 404. A probe of a path that nobody
//! serves must never look well.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Request, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use prometheus::{Registry, TextEncoder};
use tonic::Status;
use tonic::service::Routes;
use tower::ServiceExt;

/// What is said of calls that belong to another port.
const NOT_HERE: &str = "this is a status port, where gRPC health is served and nothing else: name the port of --listen";

/// The paths of both kinds.
#[derive(Clone)]
pub(crate) struct Answers {
    grpc: Router,
    plain: Router,
}

impl Answers {
    /// `is_ready` is what `/readyz` says; `refresh` runs before the metrics of `registry` are written.
    pub(crate) fn new<F>(
        health: Routes,
        is_ready: Arc<AtomicBool>,
        registry: Registry,
        refresh: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let metrics = move || {
            let (registry, refresh) = (registry.clone(), refresh.clone());
            async move {
                refresh().await;
                text(&registry)
            }
        };
        let alive = || async { "ok\n" };
        let ready = move || async move {
            if is_ready.load(Ordering::SeqCst) {
                (StatusCode::OK, "ok\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
            }
        };
        let plain = Router::new()
            .route("/metrics", get(metrics))
            .route("/livez", get(alive))
            .route("/healthz", get(alive))
            .route("/readyz", get(ready))
            .fallback(|| async {
                (StatusCode::NOT_FOUND, "this is a status port: it has /metrics, /livez, /healthz and /readyz\n")
            });
        let grpc = health.into_axum_router().fallback(|| async { Status::unimplemented(NOT_HERE).into_http::<Body>() });
        Self { grpc, plain }
    }

    /// The answer to one request.
    pub(crate) fn to(&self, request: Request<Incoming>) -> impl Future<Output = Result<Response, Infallible>> + use<> {
        let router = if is_grpc(&request) { &self.grpc } else { &self.plain };
        router.clone().oneshot(request)
    }
}

/// gRPC proper, not what browsers speak in its place.
fn is_grpc(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let rest = kind.strip_prefix(b"application/grpc");
    request.version() == Version::HTTP_2 && rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
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
