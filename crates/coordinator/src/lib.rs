//! The process that serves clients and members: drives `control`, persists, keeps checkpoints and artifacts.
//!
//! A shell: what is to happen is decided in `control`, once, by its only owner (`driver.rs`). No candle, no CUDA.
#![forbid(unsafe_code)]

mod artifact;
mod checkpoint;
mod clock;
mod cluster;
mod driver;
mod folder;
mod gc;
mod identity;
mod incoming;
mod job_view;
mod ledger;
mod metrics;
mod render_service;
mod report;
pub mod role;
mod scaler;
mod status;
mod store_thread;

#[cfg(test)]
mod testing;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use control::Control;
use futures_util::future::BoxFuture;
use plan::Millis;
use prometheus::Registry;
use store::{EmbeddedStore, Store};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::Server;
use wire::externalscaler::external_scaler_server::ExternalScalerServer;
use wire::v1::cluster_service_server::ClusterServiceServer;
use wire::v1::render_service_server::RenderServiceServer;

use artifact::Artifacts;
use checkpoint::Checkpoints;
use clock::Clock;
use driver::{Driver, Tools};
use folder::{Folder, FolderLock};
use gc::Collector;
use identity::Identity;
use incoming::CountRequests;
use metrics::{Courses, Glance, Metrics};
use scaler::Scaler;
use store_thread::StoreThread;

/// What a coordinator is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The embedded store's file; checkpoints lie in a folder beside it.
    pub store: PathBuf,
    /// Folder of finished pictures.
    pub artifacts: PathBuf,
    /// How long workers are waited for.
    pub patience: Patience,
    /// Takes over folders that another store has marked. Deletes nothing.
    pub adopt: bool,
}

/// How long workers are waited for, and how often an image is tried.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a lease lasts without a heartbeat.
    pub lease_ttl_ms: u64,
    /// Least time without progress after which a rank is taken to hang.
    pub stall_ms: u64,
    /// Failed attempts without a step forward before an image fails; a farm's own number if it is not said.
    pub most_tries: Option<u32>,
}

/// A coordinator, ready to serve.
pub struct Coordinator {
    listener: TcpListener,
    driver: Driver,
    identity: Identity,
    _locks: Vec<FolderLock>,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    metrics: Metrics,
}

impl Coordinator {
    /// Opens store, folders and listener, and loads the jobs. What it measures goes to `registry`.
    ///
    /// # Errors
    /// If one of them cannot be used; the message names it.
    pub async fn build(config: Config, registry: &Registry) -> anyhow::Result<Self> {
        let parent = config.store.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let places = [parent.join("checkpoints"), config.artifacts.clone()];
        if !config.adopt {
            Folder::refuse_new_store(&config.store, &[&places[0], &places[1]])?;
        }
        std::fs::create_dir_all(parent).with_context(|| format!("create the folder {}", parent.display()))?;
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&config.store)?);
        let (ledger, identity, mut records) = ledger::load(&*store)?;
        let open = |place: &PathBuf| Folder::open(place.clone(), &config.store, &identity, config.adopt);
        let folders = [open(&places[0])?, open(&places[1])?];
        let locks = lock(&folders)?;
        let [checkpoints, artifacts] = folders;
        let checkpoints = Arc::new(Checkpoints::new(checkpoints));
        let artifacts = Arc::new(Artifacts::new(artifacts).keeping_all(ledger.n_left_out() > 0));
        checkpoints.check(&mut records).context("read the folder of checkpoints")?;
        let (usual, lease_ttl_ms) = (control::Config::default(), config.patience.lease_ttl_ms);
        let machine = control::Config {
            lease_ttl_ms,
            reattach_ms: 3 * lease_ttl_ms,
            reconnect_ms: usual.reconnect_ms.min(lease_ttl_ms / 3),
            stall_ms: config.patience.stall_ms,
            most_tries: config.patience.most_tries.unwrap_or(usual.most_tries),
            ..usual
        };
        let control = Control::new(machine, records, Millis(0));
        let listener = TcpListener::bind(config.listen).await;
        let listener =
            listener.with_context(|| format!("listen on {}: choose another with --listen", config.listen))?;
        let metrics = Metrics::register(registry).context("make metrics")?;
        let clock = Clock::new(Instant::now(), lease_ttl_ms);
        let courses = Courses::new(metrics.clone());
        let tools = Tools {
            ledger,
            writer: Box::new(StoreThread::start(store).context("start the store's thread")?),
            identity: identity.clone(),
            checkpoints: Arc::clone(&checkpoints),
            artifacts: Arc::clone(&artifacts),
            courses,
            clock,
        };
        let driver = Driver::new(control, tools);
        Ok(Self { listener, driver, identity, _locks: locks, checkpoints, artifacts, metrics })
    }

    /// Brings the gauges up to date, whenever it is called; they stay as they are once the process is ending.
    pub fn refresh(&self) -> impl Fn() -> BoxFuture<'static, ()> + Clone + Send + Sync + use<> {
        let (desk, metrics) = (self.driver.desk(), self.metrics.clone());
        move || {
            let (desk, metrics) = (desk.clone(), metrics.clone());
            Box::pin(async move {
                if let Ok(seen) = desk.ask(Glance::at).await {
                    metrics.refresh(&seen);
                }
            })
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is over.
    ///
    /// # Errors
    /// If the store stops taking writes: nothing could be promised any more.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> anyhow::Result<()> {
        let desk = self.driver.desk();
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<RenderServiceServer<render_service::Clients>>().await;
        health.set_serving::<ClusterServiceServer<cluster::Members>>().await;
        // Alive as long as it answers at all; readiness is the services' own.
        health.set_service_status(telemetry::LIVENESS, tonic_health::ServingStatus::Serving).await;
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(wire::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let collector = Collector::new(desk.clone(), Arc::clone(&self.artifacts), Arc::clone(&self.checkpoints));
        let clients = render_service::Clients::new(desk.clone(), Arc::clone(&self.artifacts), collector);
        let kept = (self.checkpoints, self.artifacts);
        let members = cluster::Members::new(desk.clone(), self.identity, kept, self.metrics, cluster::PART_WITHIN);
        let scaler = Scaler::new(desk);
        const LARGEST_SUBMIT_BYTES: usize = 256 << 10;
        const STREAM_WINDOW_BYTES: u32 = 1 << 20;
        const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
        // Sessions, watchers and KEDA's streams have no end of their own; what is asked meanwhile is still answered.
        const LAST_ANSWERS: Duration = Duration::from_secs(1);
        let (told, is_told) = tokio::sync::oneshot::channel();
        let shutdown = async move {
            shutdown.await;
            // Whoever waits for it may have ended.
            let _ = told.send(());
        };
        let end = async {
            if is_told.await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(LAST_ANSWERS).await;
        };
        let serving = Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .http2_keepalive_timeout(Some(Duration::from_secs(10)))
            .tcp_nodelay(true)
            .max_concurrent_streams(1024)
            // Of one connection many streams may be full of what nobody reads yet; heartbeats still come through.
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .layer(CountRequests)
            .add_service(RenderServiceServer::new(clients).max_decoding_message_size(LARGEST_SUBMIT_BYTES))
            .add_service(ClusterServiceServer::new(members))
            .add_service(ExternalScalerServer::new(scaler))
            .add_service(health_service)
            .add_service(reflection().build_v1().context("describe the services")?)
            .add_service(reflection().build_v1alpha().context("describe the services")?)
            .serve_with_incoming_shutdown(incoming::incoming(self.listener), shutdown);
        tokio::select! {
            served = serving => served.context("serve"),
            driven = self.driver.run() => Ok(driven?),
            () = end => Ok(()),
        }
    }
}

/// Keeps other coordinators out of both folders, which may be one.
fn lock(folders: &[Folder; 2]) -> Result<Vec<FolderLock>, folder::FolderError> {
    let [first, second] = folders;
    let is_one = first.path().canonicalize().ok() == second.path().canonicalize().ok();
    let wanted = if is_one { vec![first] } else { vec![first, second] };
    wanted.into_iter().map(Folder::lock).collect()
}
