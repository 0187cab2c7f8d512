//! A worker's stay with its coordinator: join, keep the lease, pass on what comes and what goes.
//!
//! A session may break and be taken up again; the part at work does not notice but by its flag.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use plan::{Assignment, Epoch};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::session_request::Message as Report;
use wire::v1::session_response::Message as Order;
use wire::{convert, v1};

use crate::desk::Secrets;
use crate::part::Tools;
use crate::parts::Parts;
use crate::stranger;
use crate::{Shutdown, Worker};

/// Reports kept while the coordinator is away.
const MOST_REPORTS: usize = 4096;

/// Sessions a worker that is to leave tries for its last word; some three seconds.
const MOST_LAST_TRIES: u32 = 5;

/// How long the coordinator has to hear that a worker leaves.
const LEAVES_WITHIN: Duration = Duration::from_millis(500);

/// How long a device may take to answer that it is there.
const DEVICE_ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// A worker from its first join to its end.
pub(crate) struct Stay {
    worker: Worker,
    shutdown: watch::Receiver<Shutdown>,
    is_connected: Arc<AtomicBool>,
    reports: mpsc::Receiver<Report>,
    parts: Parts,
    /// Tells this process apart from another of the same name.
    incarnation: String,
    /// How the part ended: a session that breaks may lose what was said last, so it is said again in the next.
    last_word: Option<Report>,
    /// Finds out whether the device is lost, after a part that it failed.
    looking: Option<JoinHandle<bool>>,
    /// As the coordinator last said.
    lease_ttl: Option<Duration>,
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
            bulk: worker.bulk.clone(),
            pools: Arc::clone(&worker.pools),
            noise: worker.noise.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        let (said, reports) = mpsc::channel(MOST_REPORTS);
        let is_connected = Arc::default();
        let hang = worker.hang.clone();
        let parts = Parts::new(tools, worker.metrics.clone(), said, Arc::clone(&is_connected), hang);
        Self {
            worker,
            shutdown,
            is_connected,
            reports,
            parts,
            incarnation: uuid::Uuid::new_v4().to_string(),
            last_word: None,
            looking: None,
            lease_ttl: None,
        }
    }

    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let mut pause = Pauses::default().first;
        let mut is_told = false;
        let mut n_last_tries = 0;
        loop {
            let ended = self.session().await;
            if self.is_connected.swap(false, Ordering::SeqCst) {
                self.worker.metrics.left();
            }
            match ended {
                Ended::Leave => {
                    self.parts.drop_current();
                    return Ok(());
                }
                Ended::Refused(reason) => {
                    self.parts.drop_current();
                    bail!("the coordinator refused worker `{}`: {reason}", self.worker.name)
                }
                Ended::DeviceLost => {
                    self.parts.drop_current();
                    bail!(
                        "the device of worker `{}` is lost: its work goes on elsewhere; see nvidia-smi",
                        self.worker.name
                    )
                }
                // A private farm ends all at once, in any order.
                Ended::Broken { .. } if *self.shutdown.borrow() == Shutdown::Now => {
                    self.parts.drop_current();
                    return Ok(());
                }
                Ended::Broken { reason, was_up } => {
                    if was_up {
                        (pause, is_told) = (Pauses::within(self.lease_ttl).first, false);
                    }
                    if !std::mem::replace(&mut is_told, true) {
                        let coordinator = &self.worker.coordinator;
                        tracing::warn!(worker = %self.worker.name, coordinator, reason, "no coordinator: trying again");
                    }
                }
            }
            let drains = *self.shutdown.borrow() != Shutdown::No;
            self.parts.look();
            if drains && self.parts.at_work().is_none() {
                // How its part ended may not have been heard: a few more sessions are tried to say it.
                n_last_tries += 1;
                let has_to_say = self.last_word.is_some() || !self.reports.is_empty();
                if !has_to_say || n_last_tries > MOST_LAST_TRIES {
                    self.parts.drop_current();
                    return Ok(());
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.shutdown.changed() => {}
            }
            pause = (2 * pause).min(Pauses::within(self.lease_ttl).longest);
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
        self.lease_ttl = Some(lease_ttl);
        self.is_connected.store(true, Ordering::SeqCst);
        self.worker.metrics.joined();
        tracing::info!(worker = %self.worker.name, coordinator = self.worker.coordinator, "joined");
        for lost in self.last_word.clone().into_iter().chain(self.parts.said_once()) {
            if !say(lost).await {
                return broken("the stream closed".into(), true);
            }
        }
        let mut beat = interval(lease_ttl / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut has_drained = false;
        let ends = self.parts.ends();
        loop {
            let wants = *self.shutdown.borrow_and_update();
            if wants == Shutdown::Now {
                return leave(orders_up, orders).await;
            }
            if wants == Shutdown::Drain && !std::mem::replace(&mut has_drained, true) {
                say(Report::Drain(v1::Drain {})).await;
            }
            let is_said = tokio::select! {
                _ = beat.tick() => say(self.heartbeat()).await,
                // A seat is free as soon as its thread has ended.
                () = ends.notified() => say(self.heartbeat()).await,
                Some(report) = self.reports.recv() => {
                    self.worker.metrics.reported(&report, self.parts.size());
                    if matches!(&report, Report::Failed(failed) if failed.cause == v1::Cause::Device as i32) {
                        self.look_for_device();
                    }
                    if matches!(report, Report::Stopped(_) | Report::Finished(_) | Report::Failed(_)) {
                        self.last_word = Some(report.clone());
                    }
                    say(report).await
                }
                is_lost = answered(&mut self.looking) => {
                    self.looking = None;
                    if is_lost {
                        leave(orders_up, orders).await;
                        return Ended::DeviceLost;
                    }
                    true
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

    /// Keeps the lease, and says what the rank's thread does.
    fn heartbeat(&mut self) -> Report {
        self.parts.look();
        Report::Heartbeat(v1::Heartbeat { work: self.parts.work() })
    }

    /// Asks the device whether it is there, on a thread that may wait for it.
    fn look_for_device(&mut self) {
        let models = Arc::clone(&self.worker.models);
        self.looking = Some(tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || models.place().wait().is_err());
            // One that does not answer at all is lost, too.
            timeout(DEVICE_ANSWERS_WITHIN, looked).await.map_or(true, |is_lost| is_lost.unwrap_or(true))
        }));
    }

    fn join(&self) -> v1::Join {
        v1::Join {
            worker: self.worker.name.0.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            numeric_class: self.worker.models.place().numeric_class(),
            models: self.worker.models.facts().map(v1::ModelFacts::from).collect(),
            address: self.worker.address.clone(),
            flop_per_s: self.worker.flop_per_s,
            running: self.parts.running(),
            incarnation: self.incarnation.clone(),
            memory_bytes: self.worker.models.picture_bytes(),
            value_bytes: self.worker.models.place().value_bytes() as u32,
        }
    }

    /// Does what the coordinator orders; what cannot be done is answered.
    fn obey(&mut self, order: Order) -> Option<Report> {
        match order {
            Order::Assign(assign) => match understood(&assign) {
                Ok((assignment, secrets)) => {
                    self.last_word = None;
                    let (epoch, rank) = (assignment.epoch, assignment.rank);
                    tracing::info!(
                        worker = %self.worker.name, image = %assignment.image, %epoch, %rank,
                        n_steps_done = assignment.n_steps_done, "begins"
                    );
                    self.parts.begin(assignment, secrets)
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
                self.parts.abort(Epoch(abort.epoch));
                None
            }
            Order::Stop(stop) => {
                self.parts.stop(Epoch(stop.epoch));
                None
            }
            Order::Welcome(_) | Order::Refused(_) | Order::Drained(_) => None,
        }
    }
}

/// An assignment and its secrets, or what is wrong with it.
fn understood(assign: &v1::Assign) -> Result<(Assignment, Secrets), String> {
    let assignment = convert::assignment(assign).map_err(|error| error.to_string())?;
    Ok((assignment, Secrets::of(assign)?))
}

/// Whether the device is lost, once that is known.
async fn answered(looking: &mut Option<JoinHandle<bool>>) -> bool {
    match looking {
        Some(looking) => looking.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

/// Says that the worker does not come back, and gives the coordinator a moment to hear it.
async fn leave(orders_up: mpsc::Sender<v1::SessionRequest>, mut orders: Streaming<v1::SessionResponse>) -> Ended {
    let leave = v1::SessionRequest { message: Some(Report::Leave(v1::Leave {})) };
    if orders_up.send(leave).await.is_ok() {
        // It ends its half once it has read all of this one.
        drop(orders_up);
        let until_the_end = async { while let Ok(Some(_)) = orders.message().await {} };
        drop(timeout(LEAVES_WITHIN, until_the_end).await);
    }
    Ended::Leave
}

/// How long to wait before a session is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pauses {
    first: Duration,
    longest: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(2) }
    }
}

impl Pauses {
    /// The same for leases that last so long: a worker is back well before it is given up.
    fn within(lease_ttl: Option<Duration>) -> Self {
        let Self { first, longest } = Self::default();
        match lease_ttl {
            Some(ttl) => Self { first: first.min(ttl / 10), longest: longest.min(ttl / 3) },
            None => Self { first, longest },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_tried_again_well_before_any_lease_ends() {
        for ttl_ms in [100, 300, 1000, 3000, 30_000] {
            let ttl = Duration::from_millis(ttl_ms);
            let pauses = Pauses::within(Some(ttl));
            assert!(pauses.first <= ttl / 10 && pauses.longest <= ttl / 3, "{ttl_ms} ms: {pauses:?}");
            assert!(pauses.first <= Duration::from_secs(1) && pauses.first <= pauses.longest, "{ttl_ms} ms");
        }
    }
}
