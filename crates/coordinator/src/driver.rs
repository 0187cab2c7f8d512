//! The only owner of the state machine: one inbox, one loop, outputs performed in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use control::{Control, ControlError, Event, Expelled, Input, Output, ReplyId, SessionId};
use plan::JobId;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use wire::v1;
use wire::v1::session_response::Message as Order;

use crate::artifact::Artifacts;
use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::metrics::Courses;
use crate::persist::Persistence;

/// Things waiting to be done; full means clients are asked to come back.
const INBOX: usize = 4096;
/// Orders waiting for one member; a member that does not read them is sent away.
const ORDERS: usize = 256;
/// Events a watcher may lag behind before it begins anew with a snapshot.
const EVENTS: usize = 8192;

/// A question about the state, answered between two changes.
type Question = Box<dyn FnOnce(&Control) + Send>;

enum Message {
    Do(Input),
    Open(SessionId, mpsc::Sender<v1::SessionResponse>),
    Answer(ReplyId, oneshot::Sender<Result<JobId, ControlError>>),
    Ask(Question),
}

/// Where the services reach the driver.
#[derive(Clone)]
pub(crate) struct Desk {
    /// Every message with when it was heard of: a machine that was busy in between holds it against nobody.
    inbox: mpsc::Sender<(Instant, Message)>,
    events: broadcast::Sender<Arc<Event>>,
    next_id: Arc<AtomicU64>,
}

/// The driver is gone: the process is ending.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator is ending")]
pub(crate) struct Gone;

impl Desk {
    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::SeqCst)
    }

    async fn send(&self, message: Message) -> Result<(), Gone> {
        self.inbox.send((Instant::now(), message)).await.map_err(|_| Gone)
    }

    /// Something happened.
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Gone> {
        self.send(Message::Do(input)).await
    }

    /// Something a client wants, and what becomes of it.
    pub(crate) async fn request(
        &self,
        input: impl FnOnce(ReplyId) -> Input,
    ) -> Result<Result<JobId, ControlError>, Gone> {
        let (answer, answered) = oneshot::channel();
        let reply = ReplyId(self.id());
        self.send(Message::Answer(reply, answer)).await?;
        self.tell(input(reply)).await?;
        answered.await.map_err(|_| Gone)
    }

    /// What is true now.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = oneshot::channel();
        let ask: Question = Box::new(move |control| drop(answer.send(question(control))));
        self.send(Message::Ask(ask)).await?;
        answered.await.map_err(|_| Gone)
    }

    /// A member's session, and the orders that go down it.
    pub(crate) async fn open(&self) -> Result<(SessionId, mpsc::Receiver<v1::SessionResponse>), Gone> {
        let (orders, to_send) = mpsc::channel(ORDERS);
        let session = SessionId(self.id());
        self.send(Message::Open(session, orders)).await?;
        Ok((session, to_send))
    }

    /// Everything that happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Arc<Event>> {
        self.events.subscribe()
    }
}

/// Owns the machine.
pub(crate) struct Driver {
    control: Control,
    persistence: Persistence,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    courses: Courses,
    clock: Clock,
    inbox: mpsc::Receiver<(Instant, Message)>,
    desk: Desk,
    sessions: BTreeMap<SessionId, mpsc::Sender<v1::SessionResponse>>,
    answers: BTreeMap<ReplyId, oneshot::Sender<Result<JobId, ControlError>>>,
    /// Sessions that ended in the grace behind a stop, as the machine would be told.
    hung_up: Vec<Input>,
}

impl Driver {
    pub(crate) fn new(
        control: Control,
        persistence: Persistence,
        (checkpoints, artifacts): (Arc<Checkpoints>, Arc<Artifacts>),
        courses: Courses,
        clock: Clock,
    ) -> Self {
        let (inbox, messages) = mpsc::channel(INBOX);
        let desk = Desk { inbox, events: broadcast::Sender::new(EVENTS), next_id: Arc::new(AtomicU64::new(1)) };
        let (sessions, answers) = (BTreeMap::new(), BTreeMap::new());
        let hung_up = Vec::new();
        Self {
            control,
            persistence,
            checkpoints,
            artifacts,
            courses,
            clock,
            inbox: messages,
            desk,
            sessions,
            answers,
            hung_up,
        }
    }

    pub(crate) fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// Runs until the store fails.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        loop {
            let due = self.control.poll_timeout().map(|due| self.clock.moment(due));
            let asleep = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600)));
            // What was said in time counts before the clock does.
            let heard = tokio::select! {
                biased;
                message = self.inbox.recv() => match message {
                    Some(heard) => Some(heard),
                    None => return Ok(()),
                },
                () = asleep => None,
            };
            self.turn(Instant::now(), heard);
            self.perform().await?;
        }
    }

    /// Does one thing: what was heard, or else what is due.
    fn turn(&mut self, now: Instant, heard: Option<(Instant, Message)>) {
        let moment = heard.as_ref().map_or(now, |(moment, _)| *moment);
        self.clock.heed_stop(self.control.poll_timeout(), moment);
        match heard {
            Some((_, message)) => self.hear(moment, message),
            None => self.control.handle_timeout(self.clock.at(now)),
        }
    }

    fn hear(&mut self, moment: Instant, message: Message) {
        let now = self.clock.at(moment);
        // Whatever comes drives the clock: however many ask, what is due is done.
        self.control.handle_timeout(now);
        if !self.clock.is_grace(moment) {
            self.hung_up.clear();
        }
        match message {
            Message::Do(input) => {
                match &input {
                    Input::Left { session, .. } => {
                        self.sessions.remove(session);
                        // Workers hang up on a coordinator that was stopped and come again. Who does not loses its lease.
                        if self.clock.is_grace(moment) {
                            self.hung_up.push(input);
                            return;
                        }
                    }
                    // Perhaps another process of that name: then the one before has left.
                    Input::Join { worker, hello, .. } if hello.running.is_none() => {
                        let is_of = |left: &&Input| matches!(left, Input::Left { worker: of, .. } if of == worker);
                        for left in self.hung_up.iter().filter(is_of) {
                            self.control.handle(now, left.clone());
                        }
                    }
                    _ => {}
                }
                let input = self.without_picture(input);
                self.control.handle(now, input);
            }
            Message::Ask(question) => question(&self.control),
            Message::Open(session, orders) => drop(self.sessions.insert(session, orders)),
            Message::Answer(reply, answer) => drop(self.answers.insert(reply, answer)),
        }
    }

    /// Performs what is to be done: first all that is to be durable is so, then the rest leaves, in order.
    async fn perform(&mut self) -> anyhow::Result<()> {
        let mut rest = Vec::new();
        while let Some(output) = self.control.poll_output() {
            self.courses.heard(Instant::now(), &output);
            if let Output::Forget { job, n_images, .. } = &output {
                self.persistence.forget(job, *n_images);
            }
            match output {
                Output::Persist(record) => self.persistence.add(*record),
                other => rest.push(other),
            }
        }
        self.persistence.commit().await?;
        let mut closed: BTreeSet<SessionId> = BTreeSet::new();
        for output in rest {
            self.act(output, &mut closed);
        }
        for session in closed {
            self.sessions.remove(&session);
        }
        Ok(())
    }

    fn act(&mut self, output: Output, closed: &mut BTreeSet<SessionId>) {
        match output {
            // Was written before anything is done.
            Output::Persist(_) => {}
            Output::Reply { reply, answer } => {
                // A client that has gone away does not want to know.
                drop(self.answers.remove(&reply).map(|client| client.send(answer)));
            }
            Output::Welcome { session, lease_ttl_ms, .. } => {
                self.order(session, Order::Welcome(v1::Welcome { lease_ttl_ms }));
            }
            Output::Refuse { worker, session, reason } => {
                tracing::warn!(%worker, reason, "a worker was refused");
                self.order(session, Order::Refused(v1::Refused { reason }));
                closed.insert(session);
            }
            Output::Expel { worker, session, why } => {
                match why {
                    Expelled::LeaseEnded => tracing::warn!(%worker, "its lease ended"),
                    Expelled::Replaced => tracing::info!(%worker, "opened another session"),
                }
                closed.insert(session);
            }
            Output::Quarantine { worker, for_ms, message } => {
                tracing::warn!(%worker, for_ms, message, "is given no work for a while: it failed again and again");
            }
            Output::Assign { worker, session, assignment } => {
                tracing::info!(
                    %worker, image = %assignment.image, epoch = %assignment.epoch, rank = %assignment.rank,
                    n_ranks = assignment.mesh.n_ranks(), n_rows = assignment.mesh.band(assignment.rank).n_rows(),
                    n_steps_done = assignment.n_steps_done, "assigned"
                );
                self.order(session, Order::Assign((&*assignment).into()));
            }
            Output::Abort { session, epoch, .. } => self.order(session, Order::Abort(v1::Abort { epoch: epoch.0 })),
            Output::Stop { session, epoch, .. } => self.order(session, Order::Stop(v1::Stop { epoch: epoch.0 })),
            Output::Drained { worker, session } => {
                tracing::info!(%worker, "has drained");
                self.order(session, Order::Drained(v1::Drained {}));
                closed.insert(session);
            }
            Output::DropCheckpoint { image } => {
                if self.checkpoints.remove(&image) {
                    let checkpoints = Arc::clone(&self.checkpoints);
                    // What is left of them at the process's end goes at its next start.
                    drop(tokio::task::spawn_blocking(move || checkpoints.sweep()));
                }
            }
            Output::Forget { job, artifacts: names, .. } => {
                tracing::info!(%job, n_pictures = names.len(), "forgotten");
                names.iter().for_each(|name| self.artifacts.remove(name));
            }
            Output::Event(event) => {
                tracing::debug!(
                    image = %event.image, phase = ?event.phase, step = event.n_steps_done, message = event.message, "changed"
                );
                // Nobody may be watching.
                drop(self.desk.events.send(Arc::from(event)));
            }
        }
    }

    /// What a worker finished counts if its picture is there; one that is not was the same as a deleted job's, or was lost.
    /// It is made again from its last step.
    fn without_picture(&self, input: Input) -> Input {
        match input {
            Input::Finished { worker, session, epoch, artifact } if self.artifacts.file(&artifact.sha256).is_none() => {
                let message = "its picture is not there any more: it is made again from its last step".to_owned();
                Input::Failed { worker, session, epoch, cause: plan::Cause::Peer, message, blamed: None }
            }
            other => other,
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

#[cfg(test)]
mod tests;
