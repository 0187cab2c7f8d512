//! Where the services reach the driver: what happened, what a client wants, what is true now.
//!
//! Members and clients have inboxes of their own. A full one makes members wait, since what they say must not be lost, and
//! sends clients away, so that however many ask, nobody waits without limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use control::{Control, ControlError, Hello, Input, ReplyId, SessionId};
use plan::{JobId, WorkerId};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;
use wire::v1;

/// Things members said that wait to be heard.
const MEMBERS_INBOX: usize = 4096;
/// Things clients ask that wait to be heard.
const CLIENTS_INBOX: usize = 1024;
/// Orders waiting for one member; a member that does not read them is sent away.
const ORDERS: usize = 256;

/// A question about the state, answered between two changes.
pub(super) type Question = Box<dyn FnOnce(&Control) + Send>;
/// Where the changes of one job are told.
pub(crate) type Changes = broadcast::Receiver<Arc<v1::WatchJobResponse>>;

/// Where a client hears what became of its wish.
pub(super) type Answer = oneshot::Sender<Result<JobId, Refusal>>;

/// What a client wants changed.
pub(super) struct Wanted {
    pub(super) reply: ReplyId,
    pub(super) input: Input,
    pub(super) answer: Answer,
}

pub(super) enum Message {
    Do(Input),
    Join { session: SessionId, orders: mpsc::Sender<v1::SessionResponse>, input: Input },
    Want(Wanted),
    Ask(Question),
    Watch(JobId, oneshot::Sender<Option<Changes>>),
}

/// Every message with when it was heard: a machine that was busy in between holds it against nobody.
pub(super) type Heard = (Instant, Message);

/// Where the driver hears.
pub(super) struct Inbox {
    pub(super) members: mpsc::Receiver<Heard>,
    pub(super) clients: mpsc::Receiver<Heard>,
}

/// Where the services reach the driver.
#[derive(Clone)]
pub(crate) struct Desk {
    members: mpsc::Sender<Heard>,
    clients: mpsc::Sender<Heard>,
    next_id: Arc<AtomicU64>,
}

/// Why nothing was answered.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unanswered {
    /// The driver is gone.
    #[error("the coordinator is ending")]
    Gone,
    /// Too many ask.
    #[error("the coordinator has {CLIENTS_INBOX} questions to answer: try again")]
    Busy,
}

/// Why a client does not get what it wants.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It cannot be.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Nothing can be written down now, and nothing was changed.
    #[error("the store takes no writes now ({reason}): nothing was changed; try again")]
    #[allow(missing_docs)]
    StoreAway { reason: String },
    /// It was decided, and may be written down yet.
    #[error("the store takes no writes now ({reason}): this may still be done; try again, a job with its request id")]
    #[allow(missing_docs)]
    Unsure { reason: String },
}

impl Desk {
    pub(super) fn new() -> (Self, Inbox) {
        let (members, of_members) = mpsc::channel(MEMBERS_INBOX);
        let (clients, of_clients) = mpsc::channel(CLIENTS_INBOX);
        let desk = Self { members, clients, next_id: Arc::new(AtomicU64::new(1)) };
        (desk, Inbox { members: of_members, clients: of_clients })
    }

    fn id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::SeqCst)
    }

    async fn say(&self, message: Message) -> Result<(), Unanswered> {
        self.members.send((Instant::now(), message)).await.map_err(|_| Unanswered::Gone)
    }

    fn put(&self, message: Message) -> Result<(), Unanswered> {
        self.clients.try_send((Instant::now(), message)).map_err(|refused| match refused {
            TrySendError::Full(_) => Unanswered::Busy,
            TrySendError::Closed(_) => Unanswered::Gone,
        })
    }

    /// Something happened.
    pub(crate) async fn tell(&self, input: Input) -> Result<(), Unanswered> {
        self.say(Message::Do(input)).await
    }

    /// Something a client wants, and what becomes of it.
    pub(crate) async fn request(
        &self,
        input: impl FnOnce(ReplyId) -> Input,
    ) -> Result<Result<JobId, Refusal>, Unanswered> {
        let (answer, answered) = oneshot::channel();
        let reply = ReplyId(self.id());
        self.put(Message::Want(Wanted { reply, input: input(reply), answer }))?;
        answered.await.map_err(|_| Unanswered::Gone)
    }

    /// What is true now, for a client.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.put(Message::Ask(Box::new(move |control| drop(answer.send(question(control))))))?;
        answered.await.map_err(|_| Unanswered::Gone)
    }

    /// What is true now, for a member; in order with what members say.
    pub(crate) async fn ask_for_member<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Control) -> T + Send + 'static,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.say(Message::Ask(Box::new(move |control| drop(answer.send(question(control)))))).await?;
        answered.await.map_err(|_| Unanswered::Gone)
    }

    /// A worker opens a session. Its number, and the orders that go down it.
    pub(crate) async fn join(
        &self,
        worker: WorkerId,
        hello: Hello,
    ) -> Result<(SessionId, mpsc::Receiver<v1::SessionResponse>), Unanswered> {
        let (orders, to_send) = mpsc::channel(ORDERS);
        let session = SessionId(self.id());
        let input = Input::Join { worker, session, hello };
        self.say(Message::Join { session, orders, input }).await?;
        Ok((session, to_send))
    }

    /// All changes of a job from now on; nothing if it is not known.
    pub(crate) async fn watch(&self, job: JobId) -> Result<Option<Changes>, Unanswered> {
        let (answer, answered) = oneshot::channel();
        self.put(Message::Watch(job, answer))?;
        answered.await.map_err(|_| Unanswered::Gone)
    }
}
