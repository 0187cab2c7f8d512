//! The roles of a farm: `serve`, `coordinator`, `worker`, and the farm `render --workers` keeps to itself.
//!
//! Leaves out what the roles do: `coordinator` and `worker` are crates. Here are their threads, signals and ends.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use coordinator::role::{CoordinatorArgs, EndSignals};
use coordinator::{Coordinator, Patience};
use fabric::grpc::{Port, PortConfig};
use machine::Memory;
use model::Place;
use prometheus::Registry;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use worker::hang::Hang;
use worker::metrics::Metrics;
use worker::models::Models;
use worker::{Noise, Shutdown, Worker};

use crate::args::{ServeArgs, WorkerArgs, WorkerCommand};
use crate::client;
use crate::device;
use crate::engine::n_threads;
use crate::exit::{Outcome, Stop};
use crate::models;
use crate::progress::Wait;
use crate::scratch::Scratch;
use crate::terminal;

/// Coordinator and workers in one process, until told to stop.
pub(crate) fn serve(args: ServeArgs) -> anyhow::Result<Outcome> {
    coordinator::role::refuse_certificates()?;
    let runtime = runtime()?;
    let mut shutdown = runtime.block_on(async { on_signals() })?;
    let Some(offered) = read_models(&runtime, args.models, Place::default(), args.workers, shutdown.clone())? else {
        runtime.shutdown_background();
        return Ok(Outcome::Done);
    };
    let port = Arc::new(bind(SocketAddr::new(args.listen.ip(), 0))?);
    let threads = n_threads(&args.threads);
    let registry = telemetry::registry("serve").context("make metrics")?;
    let metrics = Metrics::register(&registry).context("make metrics")?;
    let ended = runtime.block_on(async {
        let config = coordinator::Config {
            listen: args.listen,
            store: args.data.join("store.redb"),
            artifacts: args.data.join("artifacts"),
            patience: args.lease.patience(),
            adopt: args.adopt.adopt,
        };
        let coordinator = tokio::select! {
            built = Coordinator::build(config, &registry) => built?,
            _ = shutdown.changed() => return Ok(Outcome::Done),
        };
        let address = coordinator.address()?;
        terminal::note(&format!("serving on http://{address}, data in {}", args.data.display()));
        let (of_coordinator, of_workers, tensors) = (coordinator.refresh(), metrics.clone(), Arc::clone(&port));
        let refresh = move || {
            of_workers.refresh(&tensors);
            of_coordinator()
        };
        if let Some(told) = telemetry::start(args.status.status, registry, refresh).await? {
            terminal::note(&format!("metrics on http://{}/metrics", told.address));
            told.health.ready(true).await;
        }
        if args.listen.ip().is_unspecified() && args.workers > 0 {
            terminal::note(
                "workers of other machines share no picture with those in here: for that, --listen at an address of \
                 this machine that they know",
            );
        }
        let own = Own { offered, port, metrics, noise: None };
        let workers = start_workers(address, args.workers, threads, &own, &shutdown)?;
        let ends = tokio::spawn(tell_of_ends(workers, shutdown.clone()));
        let mut drained = shutdown.clone();
        let end = async move {
            drop(drained.wait_for(|shutdown| *shutdown != Shutdown::No).await);
            // The workers hand over first; they need the coordinator for that.
            drop(ends.await);
        };
        coordinator.run(end).await?;
        Ok(Outcome::Done)
    });
    runtime.shutdown_background();
    ended
}

/// A coordinator alone, until told to stop.
pub(crate) fn coordinator(args: CoordinatorArgs) -> anyhow::Result<Outcome> {
    runtime()?.block_on(coordinator::role::run(args, terminal::note))?;
    Ok(Outcome::Done)
}

/// A worker, until it has drained; or a word to one.
pub(crate) fn worker(args: WorkerArgs) -> anyhow::Result<Outcome> {
    if let Some(WorkerCommand::Drain(args)) = args.command {
        return client::drain(&args);
    }
    coordinator::role::refuse_certificates()?;
    let place = device::place(args.device)?;
    let runtime = runtime()?;
    let shutdown = runtime.block_on(async { on_signals() })?;
    let Some(offered) = read_models(&runtime, args.models, place, 1, shutdown.clone())? else {
        runtime.shutdown_background();
        return Ok(Outcome::Done);
    };
    let port = Arc::new(bind(args.listen)?);
    let name = args.name.unwrap_or_else(|| {
        format!("{}-{}", sysinfo::System::host_name().unwrap_or_else(|| "worker".into()), std::process::id())
    });
    let address = args.advertise.unwrap_or_else(|| port.address().to_owned());
    let config = worker::Config {
        name,
        coordinator: args.farm.coordinator,
        address,
        threads: n_threads(&args.threads),
        noise: None,
        hang: args.hang_at.map(Hang::new),
    };
    let registry = telemetry::registry("worker").context("make metrics")?;
    let metrics = Metrics::register(&registry).context("make metrics")?;
    let ended = runtime.block_on(async {
        let (counted, tensors) = (metrics.clone(), Arc::clone(&port));
        let refresh = move || {
            counted.refresh(&tensors);
            std::future::ready(())
        };
        if let Some(told) = telemetry::start(args.status.status, registry, refresh).await? {
            terminal::note(&format!("metrics on http://{}/metrics", told.address));
            let mut n_joined = metrics.n_joined();
            tokio::spawn(async move {
                while n_joined.changed().await.is_ok() {
                    let is_in = *n_joined.borrow_and_update() > 0;
                    told.health.ready(is_in).await;
                }
            });
        }
        Worker::new(config, offered, port, metrics)?.run(shutdown).await?;
        Ok(Outcome::Done)
    });
    // A worker that is to end at once does not wait for the step it is in.
    runtime.shutdown_background();
    ended
}

/// A farm for one command: it ends with it, and nothing is left behind.
pub(crate) struct PrivateFarm {
    runtime: Runtime,
    address: SocketAddr,
    stop: watch::Sender<Shutdown>,
    _data: Scratch,
}

impl PrivateFarm {
    /// Starts a coordinator and `n_workers` workers that share `threads` cores, over loopback. All they draw begins
    /// with `noise`, if it is given.
    pub(crate) fn start(
        model: &Path,
        base: Option<&Path>,
        (n_workers, threads): (u16, usize),
        noise: Option<Noise>,
    ) -> anyhow::Result<Self> {
        let offered = {
            let _wait = Wait::start("reading the weights");
            let folders = [(model.to_owned(), base.map(Path::to_owned))];
            worker::open_models(&folders, &Place::default(), &Memory::measure(), n_workers)?
        };
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let port = Arc::new(bind(any)?);
        // Nobody asks for what a private farm counts.
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).context("make metrics")?;
        let own = Own { offered, port, metrics, noise };
        let data = Scratch::folder().context("make a temporary folder")?;
        let runtime = runtime()?;
        let (stop, stopped) = watch::channel(Shutdown::No);
        let address = runtime.block_on(async {
            let config = coordinator::Config {
                listen: any,
                store: data.path().join("store.redb"),
                artifacts: data.path().join("artifacts"),
                // Whoever waits at a terminal is to hear of a device that cannot do it.
                patience: Patience { lease_ttl_ms: 30_000, stall_ms: 60_000, most_tries: Some(5) },
                adopt: false,
            };
            let coordinator = Coordinator::build(config, &registry).await?;
            let address = coordinator.address()?;
            let workers = start_workers(address, n_workers, threads, &own, &stopped)?;
            let mut ended = stopped.clone();
            tokio::spawn(coordinator.run(async move { drop(ended.wait_for(|end| *end != Shutdown::No).await) }));
            tokio::spawn(tell_of_ends(workers, stopped));
            anyhow::Ok(address)
        })?;
        Ok(Self { runtime, address, stop, _data: data })
    }

    /// Where its coordinator is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }
}

impl Drop for PrivateFarm {
    fn drop(&mut self) {
        self.stop.send_replace(Shutdown::Now);
    }
}

/// Workers of this process at work, by name.
type Workers = JoinSet<(String, anyhow::Result<()>)>;

/// What the workers of one process share.
struct Own {
    offered: Arc<Models>,
    port: Arc<Port>,
    metrics: Metrics,
    noise: Option<Noise>,
}

fn start_workers(
    coordinator: SocketAddr,
    n_workers: u16,
    threads: usize,
    own: &Own,
    shutdown: &watch::Receiver<Shutdown>,
) -> anyhow::Result<Workers> {
    // A listener on every address is reached by this process through its own.
    let ip = if coordinator.ip().is_unspecified() { [127, 0, 0, 1].into() } else { coordinator.ip() };
    let mut workers = JoinSet::new();
    for idx in 1..=n_workers {
        let name = format!("local-{idx}");
        let config = worker::Config {
            name: name.clone(),
            coordinator: format!("http://{}", SocketAddr::new(ip, coordinator.port())),
            address: own.port.address().to_owned(),
            threads: threads.div_ceil(usize::from(n_workers)),
            noise: own.noise.clone(),
            hang: None,
        };
        let worker = Worker::new(config, Arc::clone(&own.offered), Arc::clone(&own.port), own.metrics.clone())?;
        let shutdown = shutdown.clone();
        workers.spawn(async move { (name, worker.run(shutdown).await) });
    }
    Ok(workers)
}

/// Opens models and reads their weights; nothing if the process is told to end meanwhile.
///
/// Weights are read for minutes, and a first process of a container heeds only the signals it has asked for.
fn read_models(
    runtime: &Runtime,
    asked: Vec<String>,
    place: Place,
    n_workers: u16,
    mut shutdown: watch::Receiver<Shutdown>,
) -> anyhow::Result<Option<Arc<Models>>> {
    runtime.block_on(async move {
        let reading = tokio::task::spawn_blocking(move || open_models(&asked, &place, n_workers));
        tokio::select! {
            offered = reading => offered.context("read the weights")?.map(Some),
            // Whatever is being read need not be read to its end.
            _ = shutdown.changed() => Ok(None),
        }
    })
}

/// Says of each worker of this process how it ended, when it ends: a farm whose workers are gone stands still.
async fn tell_of_ends(mut workers: Workers, shutdown: watch::Receiver<Shutdown>) {
    let (n_workers, is_asked) = (workers.len(), || *shutdown.borrow() != Shutdown::No);
    while let Some(ended) = workers.join_next().await {
        match ended {
            Ok((worker, Err(error))) => tracing::error!(worker, "{error:#}"),
            Ok((worker, Ok(()))) if !is_asked() => {
                tracing::warn!(worker, "a worker of this process was drained and left")
            }
            Ok(_) => {}
            // The process is ending.
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "a worker of this process died"),
        }
    }
    if n_workers > 0 && !is_asked() {
        tracing::error!("no worker of this process is left: jobs wait for others; start it again to have its own");
    }
}

fn open_models(asked: &[String], place: &Place, n_workers: u16) -> anyhow::Result<Arc<Models>> {
    let find = |model: &String| Ok((models::find(model)?, None));
    let folders = asked.iter().map(find).collect::<Result<Vec<(PathBuf, Option<PathBuf>)>, Stop>>()?;
    let _wait = Wait::start("reading the weights");
    worker::open_models(&folders, place, &Memory::measure(), n_workers)
}

fn bind(address: SocketAddr) -> anyhow::Result<Port> {
    let bound = Port::bind(&format!("http://{address}"), PortConfig::default());
    bound.context("open the port for other workers")
}

pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start threads")
}

/// The first SIGTERM, SIGHUP or Ctrl-C asks to hand over, the second to end at once.
fn on_signals() -> anyhow::Result<watch::Receiver<Shutdown>> {
    let mut signals = EndSignals::listen().context("listen for signals")?;
    let (told, shutdown) = watch::channel(Shutdown::No);
    tokio::spawn(async move {
        for wants in [Shutdown::Drain, Shutdown::Now] {
            signals.recv().await;
            if wants == Shutdown::Drain {
                tracing::warn!("handing over at the next step boundary; once more ends at once");
            }
            told.send_replace(wants);
        }
    });
    Ok(shutdown)
}
