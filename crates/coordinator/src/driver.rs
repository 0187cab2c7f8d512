//! The only owner of the state machine: one loop that hears, decides, has it written down, and performs it in order.
//!
//! While a batch is on its way to the store the loop goes on: heartbeats count, and what is asked is answered. Answers show
//! what was decided, which may be a batch ahead of the disk; a crash then decides it again, to the same bytes. What is a
//! promise waits for the disk: a job that is accepted, an order to a worker, an event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use control::{Control, Event, Input, Output, ReplyId, SessionId};
use futures_util::future::BoxFuture;
use plan::JobId;
use store::{Revision, StoreError};
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use wire::v1;
use wire::v1::session_response::Message as Order;

use crate::artifact::Artifacts;
use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::job_view;
use crate::ledger::{Ledger, RecordError};
use crate::metrics::Courses;
use crate::store_thread::Writer;
use desk::{Answer, Heard, Inbox, Message, Wanted};

mod desk;
mod log;

pub(crate) use desk::{Changes, Desk, Refusal, Unanswered};

/// Changes of a job that a watcher may lag behind before it begins anew with a snapshot.
const CHANGES: usize = 1024;
/// Before a batch is tried again that the store did not take; doubled with each try, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Why nothing can be promised any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// The store refuses for good.
    #[error("write down what happened: {0}")]
    Store(#[from] StoreError),
    /// What happened has no form to be written in.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What the driver works with.
pub(crate) struct Tools {
    pub(crate) ledger: Ledger,
    pub(crate) writer: Box<dyn Writer>,
    pub(crate) identity: Identity,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) courses: Courses,
    pub(crate) clock: Clock,
}

/// Owns the machine.
pub(crate) struct Driver {
    control: Control,
    tools: Tools,
    inbox: Inbox,
    desk: Desk,
    /// A batch on its way to the store.
    writing: Option<BoxFuture<'static, Result<Revision, StoreError>>>,
    /// Set while the store takes no writes.
    outage: Option<Outage>,
    sessions: BTreeMap<SessionId, mpsc::Sender<v1::SessionResponse>>,
    answers: BTreeMap<ReplyId, (&'static str, Answer)>,
    watchers: BTreeMap<JobId, broadcast::Sender<Arc<v1::WatchJobResponse>>>,
}

/// The store takes no writes.
struct Outage {
    since: Instant,
    reason: String,
    pause: Duration,
}

impl Driver {
    pub(crate) fn new(control: Control, tools: Tools) -> Self {
        let (desk, inbox) = Desk::new();
        Self {
            control,
            tools,
            inbox,
            desk,
            writing: None,
            outage: None,
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
            watchers: BTreeMap::new(),
        }
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Runs until the store refuses for good.
    pub(crate) async fn run(mut self) -> Result<(), DriverError> {
        loop {
            let due = self.control.poll_timeout().map(|due| self.tools.clock.moment(due));
            let asleep = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)));
            // What was said in time counts before the clock does.
            let heard = tokio::select! {
                biased;
                written = at_work(&mut self.writing) => {
                    self.written(written)?;
                    self.perform()?;
                    continue;
                }
                heard = self.inbox.members.recv() => heard,
                heard = self.inbox.clients.recv() => heard,
                () = asleep => None,
            };
            self.turn(Instant::now(), heard);
            self.perform()?;
        }
    }

    /// Does one thing: what was heard, or else what is due.
    fn turn(&mut self, now: Instant, heard: Option<Heard>) {
        let moment = heard.as_ref().map_or(now, |(moment, _)| *moment);
        self.tools.clock.heed_stop(self.control.poll_timeout(), moment);
        match heard {
            Some((_, message)) => self.hear(moment, message),
            None => self.control.handle_timeout(self.tools.clock.at(now)),
        }
    }

    fn hear(&mut self, moment: Instant, message: Message) {
        let now = self.tools.clock.at(moment);
        // Whatever comes drives the clock: however many ask, what is due is done.
        self.control.handle_timeout(now);
        match message {
            Message::Do(input) => {
                if let Input::Left { session, .. } = &input {
                    self.sessions.remove(session);
                }
                log::input(&self.control, &input);
                let input = self.believed(input);
                self.control.handle(now, input);
            }
            Message::Join { session, orders, input } => {
                self.sessions.insert(session, orders);
                self.control.handle(now, input);
            }
            Message::Ask(question) => question(&self.control),
            Message::Want(Wanted { reply, input, answer }) => match &self.outage {
                // A client that has gone away does not want to know.
                Some(outage) => {
                    drop(answer.send(Err(Refusal::StoreAway { reason: outage.reason.clone() })));
                }
                None => {
                    self.answers.insert(reply, (log::wish(&input), answer));
                    self.control.handle(now, input);
                }
            },
            Message::Watch(job, answer) => {
                let changes = self.control.job(&job).map(control::Job::is_open).map(|is_open| match is_open {
                    true => self.watchers.entry(job).or_insert_with(|| broadcast::Sender::new(CHANGES)).subscribe(),
                    // Nothing more comes, so nothing is kept for it.
                    false => broadcast::Sender::new(1).subscribe(),
                });
                drop(answer.send(changes));
            }
        }
    }

    /// Hands what was decided to the ledger and the ledger's next batch to the store, and performs what rests on nothing
    /// that is still on its way.
    fn perform(&mut self) -> Result<(), DriverError> {
        while let Some(output) = self.control.poll_output() {
            self.tools.courses.heard(Instant::now(), &output);
            self.tools.ledger.take(output)?;
        }
        if self.writing.is_none()
            && let Some(txn) = self.tools.ledger.poll_part()
        {
            self.writing = Some(self.tools.writer.write(txn, false));
        }
        let mut closed: BTreeSet<SessionId> = BTreeSet::new();
        while let Some(output) = self.tools.ledger.poll_act() {
            self.act(output, &mut closed);
        }
        for session in closed {
            self.sessions.remove(&session);
        }
        Ok(())
    }

    /// The store has answered.
    fn written(&mut self, written: Result<Revision, StoreError>) -> Result<(), DriverError> {
        self.writing = None;
        let error = match written {
            Ok(revision) => {
                self.tools.ledger.written(revision);
                if let Some(outage) = self.outage.take() {
                    let for_ms = outage.since.elapsed().as_millis() as u64;
                    tracing::info!(for_ms, "the store takes writes again");
                }
                return Ok(());
            }
            Err(error) if error.is_retryable() => error,
            Err(error) => return Err(error.into()),
        };
        let reason = error.to_string();
        let pause = match &self.outage {
            Some(outage) => (2 * outage.pause).min(LONGEST_PAUSE),
            None => {
                tracing::warn!(%error, "the store takes no writes: trying again until it does");
                // Clients need not wait for who knows how long.
                for (_, (_, client)) in std::mem::take(&mut self.answers) {
                    drop(client.send(Err(Refusal::Unsure { reason: reason.clone() })));
                }
                FIRST_PAUSE
            }
        };
        let since = self.outage.as_ref().map_or_else(Instant::now, |outage| outage.since);
        self.outage = Some(Outage { since, reason, pause });
        if let Some(txn) = self.tools.ledger.on_its_way() {
            let again = self.tools.writer.write(txn, true);
            self.writing = Some(Box::pin(async move {
                tokio::time::sleep(pause).await;
                again.await
            }));
        }
        Ok(())
    }

    fn act(&mut self, output: Output, closed: &mut BTreeSet<SessionId>) {
        log::output(&output);
        match output {
            // The ledger has records written before anything that follows leaves; the log tells of quarantines.
            Output::Persist(_) | Output::Quarantine { .. } => {}
            Output::Reply { reply, answer } => {
                if let Some((wish, client)) = self.answers.remove(&reply) {
                    log::answer(wish, &answer);
                    // A client that has gone away does not want to know.
                    drop(client.send(answer.map_err(Refusal::from)));
                }
            }
            Output::Welcome { session, lease_ttl_ms, .. } => {
                self.order(session, Order::Welcome(v1::Welcome { lease_ttl_ms }));
            }
            Output::Refuse { session, reason, .. } => {
                self.order(session, Order::Refused(v1::Refused { reason }));
                closed.insert(session);
            }
            Output::Expel { session, .. } => {
                closed.insert(session);
            }
            Output::Assign { worker, session, assignment } => {
                let (epoch, image, rank) = (assignment.epoch, &assignment.image, assignment.rank);
                let secret = self.tools.identity.seat_secret(epoch, image, rank, &worker);
                let exchange_secret = self.tools.identity.exchange_secret(epoch, image).into();
                let assign = v1::Assign { secret: secret.into(), exchange_secret, ..(&*assignment).into() };
                self.order(session, Order::Assign(assign));
            }
            Output::Abort { session, epoch, .. } => self.order(session, Order::Abort(v1::Abort { epoch: epoch.0 })),
            Output::Stop { session, epoch, .. } => self.order(session, Order::Stop(v1::Stop { epoch: epoch.0 })),
            Output::Drained { session, .. } => {
                self.order(session, Order::Drained(v1::Drained {}));
                closed.insert(session);
            }
            Output::DropCheckpoint { image } => {
                if self.tools.checkpoints.remove(&image) {
                    let checkpoints = Arc::clone(&self.tools.checkpoints);
                    drop(tokio::task::spawn_blocking(move || checkpoints.sweep()));
                }
            }
            Output::Forget { job, artifacts: names, .. } => {
                self.watchers.remove(&job);
                // An image of the same bytes may have been finished while the deletion was written down.
                let names = names.into_iter().filter(|name| !self.control.has_picture(name));
                if self.tools.artifacts.remove(names) {
                    let artifacts = Arc::clone(&self.tools.artifacts);
                    drop(tokio::task::spawn_blocking(move || artifacts.sweep()));
                }
            }
            Output::Event(event) => self.tell(&event),
        }
    }

    /// Tells those who watch the job.
    fn tell(&mut self, event: &Event) {
        let Some(changes) = self.watchers.get(&event.image.job) else { return };
        let change = Arc::new(job_view::of_event(event));
        let is_over = job_view::is_over(change.job_state);
        if changes.send(change).is_err() || is_over {
            self.watchers.remove(&event.image.job);
        }
    }

    /// What a worker finished does not count if its picture has gone with a deleted job that had the same.
    fn believed(&self, input: Input) -> Input {
        match &input {
            Input::Finished { artifact, .. } if self.tools.artifacts.is_condemned(&artifact.sha256) => {
                made_again(input)
            }
            _ => input,
        }
    }

    fn order(&mut self, session: SessionId, order: Order) {
        let Some(orders) = self.sessions.get(&session) else { return };
        let Err(unsent) = orders.try_send(v1::SessionResponse { message: Some(order) }) else { return };
        // A worker that has left closed its end; one that is there and takes nothing is odd.
        if matches!(unsent, mpsc::error::TrySendError::Full(_)) {
            tracing::warn!(session = session.0, "a worker does not read its orders: its session ends");
        }
        self.sessions.remove(&session);
    }
}

/// A picture that a worker finished and that is not there: it is made again from its last step.
pub(crate) fn made_again(input: Input) -> Input {
    match input {
        Input::Finished { worker, session, epoch, .. } => {
            let message = "its picture is not there any more: it is made again from its last step".to_owned();
            Input::Failed { worker, session, epoch, cause: plan::Cause::Peer, message, blamed: None }
        }
        other => other,
    }
}

/// What is at work; for ever if nothing is.
async fn at_work<T>(work: &mut Option<BoxFuture<'static, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
