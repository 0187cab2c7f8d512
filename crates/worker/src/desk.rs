//! Where a rank at work and its session meet: flags going in, rows and reports coming out.
//!
//! Rows of one step may be under way while the next is computed; that one counts as done, and the one behind it begins,
//! only when those rows are kept: a kill then costs one step that was done. But a rank goes on while the coordinator is
//! away, and then only the newest rows matter.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fabric::grpc::{Port, Secret};
use parallel::{Pulse, StepRows, StepTime, Watch, Work};
use plan::{Epoch, Rank, StepIdx};
use tokio::sync::{Notify, mpsc, watch};
use wire::v1;

use crate::hang::{Hang, HangAt};
use crate::part::Fault;

/// What an assignment gives its worker to be known by.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    /// Shows the coordinator that this worker has the seat.
    pub(crate) seat: Bytes,
    /// Shows the other ranks that this one is of the attempt.
    pub(crate) exchange: Secret,
}

impl Secrets {
    /// As they stand in `assign`.
    ///
    /// # Errors
    /// If the one for the other ranks is of another length than secrets are, as one line.
    pub(crate) fn of(assign: &v1::Assign) -> Result<Self, String> {
        let exchange = match <[u8; Secret::N_BYTES]>::try_from(&assign.exchange_secret[..]) {
            Ok(bytes) => Secret::new(bytes),
            // A coordinator of an earlier version gives none.
            Err(_) if assign.exchange_secret.is_empty() => Secret::NONE,
            Err(_) => {
                let n_bytes = assign.exchange_secret.len();
                return Err(format!("an exchange secret of {n_bytes} bytes, where {} are meant", Secret::N_BYTES));
            }
        };
        Ok(Self { seat: assign.secret.clone(), exchange })
    }
}

/// One part's desk.
pub(crate) struct Desk {
    pub(crate) epoch: Epoch,
    pub(crate) rank: Rank,
    pub(crate) secrets: Secrets,
    port: Arc<Port>,
    reports: mpsc::Sender<v1::session_request::Message>,
    pulse: Arc<Pulse>,
    n_steps_done: AtomicUsize,
    stops: AtomicBool,
    /// Nobody wants the part any more, or it cannot go on.
    is_over: watch::Sender<bool>,
    is_cancelled: AtomicBool,
    /// Why it cannot go on, where the rank does not know.
    fault: Mutex<Option<Fault>>,
    is_decoding: AtomicBool,
    /// Whether the coordinator can be reached.
    is_connected: Arc<AtomicBool>,
    hang: Option<Hang>,
    rows: Mutex<Rows>,
    /// Rows were kept, or nobody waits for them any more.
    kept: Condvar,
    /// Rows are there to be sent, or the part was cancelled.
    changed: Notify,
}

#[derive(Default)]
struct Rows {
    next: Option<StepRows>,
    is_sending: bool,
}

impl Desk {
    pub(crate) fn new(
        (epoch, rank, secrets): (Epoch, Rank, Secrets),
        n_steps_done: usize,
        port: Arc<Port>,
        reports: mpsc::Sender<v1::session_request::Message>,
        is_connected: Arc<AtomicBool>,
    ) -> Self {
        Self {
            epoch,
            rank,
            secrets,
            port,
            reports,
            pulse: Arc::default(),
            n_steps_done: AtomicUsize::new(n_steps_done),
            stops: AtomicBool::new(false),
            is_over: watch::Sender::new(false),
            is_cancelled: AtomicBool::new(false),
            fault: Mutex::default(),
            is_decoding: AtomicBool::new(false),
            is_connected,
            hang: None,
            rows: Mutex::default(),
            kept: Condvar::new(),
            changed: Notify::new(),
        }
    }

    /// The same, of a rank that hangs where `hang` says.
    pub(crate) fn hanging(self, hang: Option<Hang>) -> Self {
        Self { hang, ..self }
    }

    /// Signs of life of the rank.
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// The rank is at `at`, where a test may have it hang.
    pub(crate) fn pass(&self, at: HangAt) {
        if let Some(hang) = &self.hang {
            hang.pass(at);
        }
    }

    /// Whether the rank makes pixels.
    pub(crate) fn is_decoding(&self) -> bool {
        self.is_decoding.load(Ordering::SeqCst)
    }

    /// Steps this rank took or began behind.
    pub(crate) fn n_steps_done(&self) -> usize {
        self.n_steps_done.load(Ordering::SeqCst)
    }

    /// The ranks are to stop before the next step; heeded on rank 0.
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::SeqCst);
    }

    /// Ends the part at once, whatever it waits for.
    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.end();
    }

    /// Ends the part for a reason that its rank does not know; the first one counts.
    pub(crate) fn give_up_with(&self, fault: Fault) {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        self.end();
    }

    /// Why it was given up, if that was not its rank's doing.
    pub(crate) fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn end(&self) {
        self.is_over.send_replace(true);
        self.port.abort(self.epoch);
        self.changed.notify_one();
        drop(self.rows());
        self.kept.notify_all();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }

    /// Whether nobody wants the part any more, or it cannot go on.
    pub(crate) fn is_over(&self) -> bool {
        *self.is_over.borrow()
    }

    /// Waits until it is.
    pub(crate) async fn until_over(&self) {
        // The sender is in here, so it is not gone.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Tells the coordinator, now or when it is back.
    pub(crate) fn report(&self, message: v1::session_request::Message) {
        let is_said = self.pulse.aside(|| self.reports.blocking_send(message).is_ok());
        if !is_said {
            tracing::debug!("the session is over");
        }
    }

    /// The next rows to send; none when the part is over.
    pub(crate) async fn next_rows(&self) -> Option<StepRows> {
        loop {
            if self.is_over() {
                return None;
            }
            {
                let mut rows = self.rows();
                rows.is_sending = rows.next.is_some();
                if let Some(next) = rows.next.take() {
                    return Some(next);
                }
            }
            self.kept.notify_all();
            self.changed.notified().await;
        }
    }

    /// Whether newer rows make those being sent useless.
    pub(crate) fn has_newer_rows(&self) -> bool {
        self.rows().next.is_some()
    }

    /// Waits until all rows are kept. False if the part is over.
    pub(crate) fn wait_until_kept(&self) -> bool {
        let _aside = self.pulse.aside_while();
        let mut rows = self.rows();
        while (rows.is_sending || rows.next.is_some()) && !self.is_over() {
            rows = self.wait(rows);
        }
        !self.is_over()
    }

    fn put(&self, new: StepRows) {
        let _aside = self.pulse.aside_while();
        let mut rows = self.rows();
        while (rows.is_sending || rows.next.is_some()) && self.is_connected.load(Ordering::SeqCst) && !self.is_over() {
            rows = self.wait(rows);
        }
        rows.next = Some(new);
        drop(rows);
        self.changed.notify_one();
    }

    /// Wakes up now and then, since a connection that breaks tells nobody here.
    fn wait<'a>(&self, rows: MutexGuard<'a, Rows>) -> MutexGuard<'a, Rows> {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        self.kept.wait_timeout(rows, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the part goes on.
    pub(crate) fn flow(&self) -> ControlFlow<()> {
        if self.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Watch for Desk {
    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn moved(&self, at: Work) -> ControlFlow<()> {
        self.pulse.beat();
        self.pass(match at {
            Work::Encode => HangAt::Encode,
            Work::Step => HangAt::Step,
            Work::Decode => HangAt::Decode,
        });
        self.flow()
    }

    fn takes(&self, _step: StepIdx) -> bool {
        !self.stops.load(Ordering::SeqCst)
    }

    fn step_done(&self, n_steps_done: usize, rows: Option<StepRows>, time: StepTime) -> ControlFlow<()> {
        if let Some(rows) = rows {
            self.put(rows);
        }
        self.pulse.beat();
        self.n_steps_done.store(n_steps_done, Ordering::SeqCst);
        self.report(v1::session_request::Message::StepTaken(v1::StepTaken {
            epoch: self.epoch.0,
            rank: self.rank.0.into(),
            n_steps_done: n_steps_done as u32,
            compute_ms: time.compute_ms,
            wait_ms: time.wait_ms,
        }));
        self.flow()
    }

    fn decode_done(&self, _done: usize, _total: usize) -> ControlFlow<()> {
        self.pulse.beat();
        let is_first = !self.is_decoding.swap(true, Ordering::SeqCst);
        if self.rank == Rank(0) && is_first {
            self.report(v1::session_request::Message::Decoding(v1::Decoding { epoch: self.epoch.0 }));
        }
        self.flow()
    }

    fn give_up(&self) {
        self.port.abort(self.epoch);
    }
}

#[cfg(test)]
mod tests;
