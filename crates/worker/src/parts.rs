//! The parts of one worker: the one the coordinator counts on, and those it has dropped whose threads have not ended.
//!
//! A device takes one part at a time. A thread that does not end after its part was dropped, in a kernel that never
//! returns say, keeps the device: the worker then says so, takes no work, and goes on once the thread has ended.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use plan::{Assignment, Epoch, ImageSize, Rank};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use wire::v1;
use wire::v1::session_request::Message as Report;

use crate::desk::{Desk, Secrets};
use crate::hang::Hang;
use crate::metrics::Metrics;
use crate::part::{self, Tools};

/// How long a thread may take to end after its part was dropped before its worker takes no more work: as long as a block of
/// a large picture, not as long as people wait.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// A worker's parts.
pub(crate) struct Parts {
    tools: Tools,
    metrics: Metrics,
    reports: mpsc::Sender<Report>,
    is_connected: Arc<AtomicBool>,
    hang: Option<Hang>,
    /// Held by the thread that computes.
    device: Arc<Mutex<()>>,
    /// Told when a thread has ended.
    ended: Arc<Notify>,
    current: Option<Part>,
    /// Oldest first.
    dropped: Vec<Dropped>,
}

struct Part {
    desk: Arc<Desk>,
    size: ImageSize,
    thread: JoinHandle<()>,
}

struct Dropped {
    part: Part,
    since: Instant,
    is_stuck: bool,
}

impl Parts {
    pub(crate) fn new(
        tools: Tools,
        metrics: Metrics,
        reports: mpsc::Sender<Report>,
        is_connected: Arc<AtomicBool>,
        hang: Option<Hang>,
    ) -> Self {
        let (device, ended) = (Arc::default(), Arc::default());
        Self { tools, metrics, reports, is_connected, hang, device, ended, current: None, dropped: Vec::new() }
    }

    /// Begins a part on a thread of its own, once the one before it has ended. What cannot be begun is answered.
    pub(crate) fn begin(&mut self, assignment: Assignment, secrets: Secrets) -> Option<Report> {
        let (epoch, rank) = (assignment.epoch, assignment.rank);
        if self.current.as_ref().is_some_and(|current| current.desk.epoch >= epoch) {
            tracing::debug!(%epoch, "an assignment of an old epoch was dropped");
            return None;
        }
        self.drop_current();
        self.look();
        if let Some(stuck) = self.dropped.iter().find(|dropped| dropped.is_stuck) {
            return Some(refusal(&assignment, stuck.part.desk.epoch));
        }
        let before = self.dropped.last().map(|dropped| dropped.part.desk.epoch);
        let desk = Desk::new(
            (epoch, rank, secrets),
            assignment.n_steps_done,
            Arc::clone(&self.tools.port),
            self.reports.clone(),
            Arc::clone(&self.is_connected),
        );
        let desk = Arc::new(desk.hanging(self.hang.clone()));
        let size = assignment.request.size;
        let thread = self.spawn(assignment, Arc::clone(&desk), before);
        self.current = Some(Part { desk, size, thread });
        None
    }

    fn spawn(&self, assignment: Assignment, desk: Arc<Desk>, before: Option<Epoch>) -> JoinHandle<()> {
        let (tools, reports) = (self.tools.clone(), self.reports.clone());
        let (device, ended) = (Arc::clone(&self.device), Arc::clone(&self.ended));
        tokio::spawn(async move {
            let epoch = assignment.epoch;
            let last_word = match timeout(ENDS_WITHIN, device.lock_owned()).await {
                Err(_) => Some(refusal(&assignment, before.unwrap_or(epoch))),
                Ok(device) => {
                    let at_work = tokio::task::spawn_blocking(move || {
                        let _device = device;
                        if !desk.is_over() {
                            part::run(&tools, &assignment, &desk);
                        }
                    });
                    at_work.await.is_err().then(|| {
                        tracing::error!(%epoch, "a rank's thread died");
                        let message = "a rank's thread died: see its worker's log".into();
                        let cause = v1::Cause::Bug.into();
                        Report::Failed(v1::Failed { epoch: epoch.0, cause, message, ..v1::Failed::default() })
                    })
                }
            };
            if let Some(last_word) = last_word {
                drop(reports.send(last_word).await);
            }
            ended.notify_one();
        })
    }

    /// Drops a part at once.
    pub(crate) fn abort(&mut self, epoch: Epoch) {
        self.tools.port.abort(epoch);
        if self.current.as_ref().is_some_and(|current| current.desk.epoch == epoch) {
            self.drop_current();
        }
    }

    /// Has the ranks stop before the next step.
    pub(crate) fn stop(&self, epoch: Epoch) {
        if let Some(current) = self.current.as_ref().filter(|current| current.desk.epoch == epoch) {
            current.desk.stop();
        }
    }

    /// Drops the part that is at work, if there is one.
    pub(crate) fn drop_current(&mut self) {
        if let Some(part) = self.current.take() {
            part.desk.cancel();
            if !part.thread.is_finished() {
                self.dropped.push(Dropped { part, since: Instant::now(), is_stuck: false });
            }
        }
    }

    /// Looks whether threads have ended that should have.
    pub(crate) fn look(&mut self) {
        let mut n_stuck_now = 0;
        self.dropped.retain_mut(|Dropped { part, since, is_stuck }| {
            let (epoch, has_ended) = (part.desk.epoch, part.thread.is_finished());
            if *is_stuck && has_ended {
                tracing::info!(%epoch, "the rank's thread has ended after all: this worker takes work again");
                n_stuck_now -= 1;
            }
            if !*is_stuck && !has_ended && since.elapsed() >= ENDS_WITHIN {
                *is_stuck = true;
                n_stuck_now += 1;
                tracing::warn!(
                    %epoch,
                    n_moves = part.desk.pulse().n_moves(),
                    "a rank's thread does not end although its part was dropped: this worker takes no work until it does"
                );
            }
            !has_ended
        });
        self.metrics.stuck(n_stuck_now);
    }

    /// Told whenever a thread has ended.
    pub(crate) fn ends(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// What the oldest thread that has not ended is doing.
    pub(crate) fn work(&self) -> Option<v1::Work> {
        let dropped = self.dropped.iter().map(|dropped| &dropped.part);
        let part = dropped.chain(&self.current).find(|part| !part.thread.is_finished())?;
        let pulse = part.desk.pulse();
        Some(v1::Work { epoch: part.desk.epoch.0, progress: pulse.n_moves(), waits: pulse.waits() })
    }

    /// The part that is at work.
    pub(crate) fn at_work(&self) -> Option<&Arc<Desk>> {
        self.current.as_ref().filter(|part| !part.thread.is_finished()).map(|part| &part.desk)
    }

    /// The same, as a session begins with it.
    pub(crate) fn running(&self) -> Option<v1::Running> {
        self.at_work().map(|desk| v1::Running {
            epoch: desk.epoch.0,
            rank: desk.rank.0.into(),
            n_steps_done: desk.n_steps_done() as u32,
            is_decoding: desk.is_decoding(),
        })
    }

    /// Of the image the last part is of.
    pub(crate) fn size(&self) -> Option<ImageSize> {
        self.current.as_ref().map(|part| part.size)
    }

    /// What was said once and may have been lost with a session.
    pub(crate) fn said_once(&self) -> Option<Report> {
        let desk = self.at_work().filter(|desk| desk.rank == Rank(0) && desk.is_decoding())?;
        Some(Report::Decoding(v1::Decoding { epoch: desk.epoch.0 }))
    }
}

/// Why an assignment is not begun while the thread of `before` keeps the device.
fn refusal(assignment: &Assignment, before: Epoch) -> Report {
    Report::Failed(v1::Failed {
        epoch: assignment.epoch.0,
        cause: v1::Cause::Device.into(),
        message: format!("its thread of attempt {before} does not end: this worker takes no work until it does"),
        blamed: None,
        n_steps_done: assignment.n_steps_done as u32,
    })
}

#[cfg(test)]
mod tests;
