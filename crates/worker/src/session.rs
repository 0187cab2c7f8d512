//! A worker's stay with its coordinator: join, keep the lease, pass on what comes and what goes.
//!
//! A session may break and be taken up again; the part at work does not notice but by its flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use plan::{Epoch, ImageSize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::session_request::Message as Report;
use wire::v1::session_response::Message as Order;
use wire::{convert, v1};

use crate::desk::Desk;
use crate::part::{self, Tools};
use crate::stranger;
use crate::{Shutdown, Worker};

/// Reports kept while the coordinator is away.
const MOST_REPORTS: usize = 4096;

/// Sessions a worker that is to leave tries for its last word; some three seconds.
const MOST_LAST_TRIES: u32 = 5;

/// A worker from its first join to its end.
pub(crate) struct Stay {
    worker: Worker,
    shutdown: watch::Receiver<Shutdown>,
    tools: Tools,
    is_connected: Arc<AtomicBool>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    part: Option<(Arc<Desk>, JoinHandle<()>)>,
    /// Of the image the part is at.
    size: Option<ImageSize>,
    /// Tells this process apart from another of the same name.
    incarnation: String,
    /// How the part ended: a session that breaks may lose what was said last, so it is said again in the next.
    last_word: Option<Report>,
}

/// How one session ended.
enum Ended {
    /// The worker may go.
    Leave,
    /// The coordinator does not want it.
    Refused(String),
    /// Its device does not answer any more.
    DeviceLost,
    /// The connection is gone; whether it was up at all.
    Broken { reason: String, was_up: bool },
}

impl Stay {
    pub(crate) fn new(worker: Worker, shutdown: watch::Receiver<Shutdown>) -> Self {
        let tools = Tools {
            models: Arc::clone(&worker.models),
            port: Arc::clone(&worker.port),
            channel: worker.channel.clone(),
            pools: Arc::clone(&worker.pools),
            noise: worker.noise.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let reports = mpsc::channel(MOST_REPORTS);
        Self {
            worker,
            shutdown,
            tools,
            is_connected: Arc::default(),
            reports,
            part: None,
            size: None,
            incarnation: uuid::Uuid::new_v4().to_string(),
            last_word: None,
        }
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        const FIRST_PAUSE: Duration = Duration::from_millis(100);
        const LONGEST_PAUSE: Duration = Duration::from_secs(2);
        let mut pause = FIRST_PAUSE;
        let mut is_told = false;
        let mut n_last_tries = 0;
        loop {
            let ended = self.session().await;
            if self.is_connected.swap(false, Ordering::SeqCst) {
                self.worker.metrics.left();
            }
            match ended {
                Ended::Leave => {
                    self.drop_part();
                    return Ok(());
                }
                Ended::Refused(reason) => {
                    self.drop_part();
                    bail!("the coordinator refused worker `{}`: {reason}", self.worker.name)
                }
                Ended::DeviceLost => {
                    self.drop_part();
                    bail!(
                        "the device of worker `{}` is lost: its work goes on elsewhere; see nvidia-smi",
                        self.worker.name
                    )
                }
                // A private farm ends all at once, in any order.
                Ended::Broken { .. } if *self.shutdown.borrow() == Shutdown::Now => {
                    self.drop_part();
                    return Ok(());
                }
                Ended::Broken { reason, was_up } => {
                    if was_up {
                        (pause, is_told) = (FIRST_PAUSE, false);
                    }
                    if !std::mem::replace(&mut is_told, true) {
                        let coordinator = &self.worker.coordinator;
                        tracing::warn!(worker = %self.worker.name, coordinator, reason, "no coordinator: trying again");
                    }
                }
            }
            let drains = *self.shutdown.borrow() != Shutdown::No;
            let is_at_work = self.part.as_ref().is_some_and(|(_, thread)| !thread.is_finished());
            if drains && !is_at_work {
                // How its part ended may not have been heard: a few more sessions are tried to say it.
                n_last_tries += 1;
                let has_to_say = self.last_word.is_some() || !self.reports.1.is_empty();
                if !has_to_say || n_last_tries > MOST_LAST_TRIES {
                    self.drop_part();
                    return Ok(());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.shutdown.changed() => {}
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    async fn session(&mut self) -> Ended {
        let (orders_up, requests) = mpsc::channel::<v1::SessionRequest>(64);
        let broken = |reason: String, was_up| Ended::Broken { reason, was_up };
        let say = async |message: Report| orders_up.send(v1::SessionRequest { message: Some(message) }).await.is_ok();
        if !say(Report::Join(self.join())).await {
            return broken("the stream closed".into(), false);
        }
        let mut client = ClusterServiceClient::new(self.worker.channel.clone());
        let mut orders = match client.session(ReceiverStream::new(requests)).await {
            Ok(response) => response.into_inner(),
            // Said as it is now, it would be refused again and again.
            Err(status) if status.code() == Code::InvalidArgument => {
                return Ended::Refused(status.message().to_owned());
            }
            Err(status) => {
                let told = stranger::explain(&self.worker.coordinator, &status).await;
                return broken(told.unwrap_or_else(|| status.message().to_owned()), false);
            }
        };
        let lease_ttl = match orders.message().await {
            Ok(Some(v1::SessionResponse { message: Some(Order::Welcome(welcome)) })) => {
                Duration::from_millis(welcome.lease_ttl_ms.max(30))
            }
            Ok(Some(v1::SessionResponse { message: Some(Order::Refused(refused)) })) => {
                return Ended::Refused(refused.reason);
            }
            Ok(_) => return broken("it did not welcome this worker".into(), false),
            Err(status) => return broken(status.message().to_owned(), false),
        };
        self.is_connected.store(true, Ordering::SeqCst);
        self.worker.metrics.joined();
        tracing::info!(worker = %self.worker.name, coordinator = self.worker.coordinator, "joined");
        if let Some(last_word) = self.last_word.clone()
            && !say(last_word).await
        {
            return broken("the stream closed".into(), true);
        }
        let mut beat = interval(lease_ttl / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_drained = false;
        loop {
            let wants = *self.shutdown.borrow_and_update();
            if wants == Shutdown::Now {
                return Ended::Leave;
            }
            if wants == Shutdown::Drain && !std::mem::replace(&mut has_drained, true) {
                say(Report::Drain(v1::Drain {})).await;
            }
            let is_said = tokio::select! {
                _ = beat.tick() => say(Report::Heartbeat(v1::Heartbeat { work: None })).await,
                Some(report) = self.reports.1.recv() => {
                    self.worker.metrics.reported(&report, self.size);
                    let is_lost = matches!(&report, Report::Failed(failed) if failed.cause == v1::Cause::Device as i32)
                        && self.worker.models.place().wait().is_err();
                    if matches!(report, Report::Stopped(_) | Report::Finished(_) | Report::Failed(_)) {
                        self.last_word = Some(report.clone());
                    }
                    let is_said = say(report).await;
                    if is_lost {
                        return Ended::DeviceLost;
                    }
                    is_said
                }
                order = orders.message() => match order {
                    Ok(Some(v1::SessionResponse { message: Some(Order::Drained(_)) })) => return Ended::Leave,
                    Ok(Some(v1::SessionResponse { message })) => match message {
                        Some(order) => match self.obey(order) {
                            Some(report) => say(report).await,
                            None => true,
                        },
                        None => true,
                    },
                    Ok(None) => return broken("it ended the session".into(), true),
                    Err(status) => return broken(status.message().to_owned(), true),
                },
                changed = self.shutdown.changed() => {
                    if changed.is_err() {
                        return Ended::Leave;
                    }
                    true
                }
            };
            if !is_said {
                return broken("the stream closed".into(), true);
            }
        }
    }

    fn join(&self) -> v1::Join {
        let running = self.part.as_ref().filter(|(_, thread)| !thread.is_finished()).map(|(desk, _)| v1::Running {
            epoch: desk.epoch.0,
            rank: desk.rank.0.into(),
            n_steps_done: desk.n_steps_done() as u32,
            is_decoding: false,
        });
        v1::Join {
            worker: self.worker.name.0.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            numeric_class: self.worker.models.place().numeric_class(),
            models: self.worker.models.facts().map(v1::ModelFacts::from).collect(),
            address: self.worker.address.clone(),
            flop_per_s: self.worker.flop_per_s,
            running,
            incarnation: self.incarnation.clone(),
            memory_bytes: 0,
            value_bytes: 4,
        }
    }

    /// Does what the coordinator orders; what cannot be done is answered.
    fn obey(&mut self, order: Order) -> Option<Report> {
        match order {
            Order::Assign(assign) => match convert::assignment(&assign) {
                Ok(assignment) => {
                    self.begin(assignment);
                    None
                }
                Err(error) => Some(Report::Failed(v1::Failed {
                    epoch: assign.epoch,
                    cause: v1::Cause::Bug.into(),
                    message: format!("the assignment makes no sense: {error}"),
                    blamed: None,
                    n_steps_done: assign.n_steps_done,
                })),
            },
            Order::Abort(abort) => {
                self.tools.port.abort(Epoch(abort.epoch));
                if let Some((desk, _)) = self.part.as_ref().filter(|(desk, _)| desk.epoch.0 == abort.epoch) {
                    desk.cancel();
                }
                None
            }
            Order::Stop(stop) => {
                if let Some((desk, _)) = self.part.as_ref().filter(|(desk, _)| desk.epoch.0 == stop.epoch) {
                    desk.stop();
                }
                None
            }
            Order::Welcome(_) | Order::Refused(_) | Order::Drained(_) => None,
        }
    }

    /// Begins a part on a thread of its own, once the one before it has ended.
    fn begin(&mut self, assignment: plan::Assignment) {
        self.last_word = None;
        let before = self.part.take();
        if let Some((desk, _)) = &before {
            if desk.epoch >= assignment.epoch {
                tracing::debug!(epoch = %assignment.epoch, "an assignment of an old epoch was dropped");
                self.part = before;
                return;
            }
            desk.cancel();
        }
        self.size = Some(assignment.request.size);
        let desk = Arc::new(Desk::new(
            (assignment.epoch, assignment.rank),
            assignment.n_steps_done,
            Arc::clone(&self.tools.port),
            self.reports.0.clone(),
            Arc::clone(&self.is_connected),
        ));
        tracing::info!(
            worker = %self.worker.name, image = %assignment.image, epoch = %assignment.epoch, rank = %assignment.rank,
            n_steps_done = assignment.n_steps_done, "begins"
        );
        let (tools, desk_of_part) = (self.tools.clone(), Arc::clone(&desk));
        let (epoch, reports) = (assignment.epoch, self.reports.0.clone());
        let thread = tokio::spawn(async move {
            if let Some((_, before)) = before {
                drop(before.await);
            }
            let at_work = tokio::task::spawn_blocking(move || part::run(&tools, &assignment, &desk_of_part));
            if at_work.await.is_err() {
                tracing::error!(%epoch, "a rank's thread died");
                let message = "a rank's thread died: see its worker's log".into();
                let cause = v1::Cause::Bug.into();
                let failed = v1::Failed { epoch: epoch.0, cause, message, ..v1::Failed::default() };
                drop(reports.send(Report::Failed(failed)).await);
            }
        });
        self.part = Some((desk, thread));
    }

    fn drop_part(&mut self) {
        if let Some((desk, _)) = self.part.take() {
            desk.cancel();
        }
    }
}
