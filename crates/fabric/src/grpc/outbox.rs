//! What waits to be sent to one peer process, and what was sent and is not known to have come.
//!
//! Knows sequences, credit and answers; no socket. Rank threads push, the stream takes, answers release.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use plan::{Epoch, Rank};
use wire::v1::ExchangeResponse;
use wire::v1::exchange_response::Kind as Answer;

use super::answer::NOTHING_WANTED;
use super::config::{MESSAGE_BYTES, PortConfig};
use super::header::{Header, Kind, LinkKey, MAX_PAYLOAD_BYTES};
use super::secret::Secret;
use crate::seat::{lock, wait};
use crate::{FabricError, Payload, Tag};

/// How often a wait for credit looks whether the peer is gone. Answers and aborts end a wait at once.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// Answers that may come late, after a newer one, before they mean that the peer has forgotten.
const MOST_STALE_ANSWERS: u32 = 12;

/// A header and the memory it announces.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) memory: Bytes,
}

pub(crate) struct Outbox {
    state: Mutex<State>,
    /// Told when credit came back, or will not.
    credit: Condvar,
}

struct State {
    links: BTreeMap<LinkKey, Link>,
    /// Links that have something to send, each once.
    ready: VecDeque<LinkKey>,
    probes: VecDeque<Header>,
    waker: Option<Waker>,
    /// The stream that may take messages; one that was given up gets nothing.
    stream: u64,
    /// Epochs whose secret it has shown.
    shown: BTreeSet<Epoch>,
    /// Since when and why there is no stream.
    broken: Option<(Instant, String)>,
    /// Ranks that may still send.
    n_users: usize,
}

struct Link {
    image: u64,
    secret: Secret,
    /// Sent or to be sent, not known to have come. The first has the number `first`.
    queue: VecDeque<Message>,
    first: u64,
    /// Number of the message to send next.
    cursor: u64,
    unanswered_bytes: u64,
    is_ready: bool,
    /// When something was sent or answered.
    progress: Instant,
    /// Its rank will send nothing more: forgotten once all has come.
    is_closing: bool,
    /// Times the peer asked for what it had said to have, without a word to the contrary in between.
    n_forgotten: u32,
    /// The peer wants nothing of this any more.
    is_unwanted: bool,
    failed: Option<FabricError>,
}

impl Link {
    fn next(&self) -> u64 {
        self.first + self.queue.len() as u64
    }

    /// Forgets messages below `sequence`.
    fn release(&mut self, sequence: u64) {
        while self.first < sequence {
            let Some(message) = self.queue.pop_front() else { break };
            self.first += 1;
            self.unanswered_bytes -= message.header.length + MESSAGE_BYTES;
            self.progress = Instant::now();
        }
        self.cursor = self.cursor.max(self.first);
    }
}

impl Outbox {
    pub(crate) fn new() -> Self {
        let state = State {
            links: BTreeMap::new(),
            ready: VecDeque::new(),
            probes: VecDeque::new(),
            waker: None,
            stream: 0,
            shown: BTreeSet::new(),
            broken: Some((Instant::now(), "it was never reached".to_owned())),
            n_users: 0,
        };
        Self { state: Mutex::new(state), credit: Condvar::new() }
    }

    /// Opens the links of one rank, which is one user more.
    pub(crate) fn join(&self, links: impl Iterator<Item = LinkKey>, image: u64, secret: Secret) {
        let mut state = lock(&self.state);
        state.n_users += 1;
        for key in links {
            state.links.entry(key).or_insert_with(|| Link {
                image,
                secret,
                queue: VecDeque::new(),
                first: 0,
                cursor: 0,
                unanswered_bytes: 0,
                is_ready: false,
                progress: Instant::now(),
                is_closing: false,
                is_unwanted: false,
                n_forgotten: 0,
                failed: None,
            });
        }
    }

    /// One user less: what it has sent still goes out.
    pub(crate) fn leave(&self, epoch: Epoch, rank: Rank) {
        let mut state = lock(&self.state);
        state.n_users -= 1;
        state.links.retain(|key, link| {
            link.is_closing |= key.epoch == epoch && key.from == rank;
            !(link.is_closing && link.queue.is_empty())
        });
        state.forget_shown();
    }

    /// Forgets all messages of an epoch and ends its waits.
    pub(crate) fn abort(&self, epoch: Epoch) {
        let mut state = lock(&self.state);
        state.links.retain(|key, _| key.epoch != epoch);
        state.forget_shown();
        self.credit.notify_all();
    }

    /// Queues a tensor; waits while the link's credit is used up, if it `may_wait`. Whether it is queued.
    pub(crate) fn push(
        &self,
        key: LinkKey,
        (tag, payload): (Tag, &Payload),
        config: &PortConfig,
        may_wait: bool,
    ) -> Result<bool, FabricError> {
        let length = payload.n_bytes() as u64;
        let limit = config.message_limit_bytes.min(MAX_PAYLOAD_BYTES);
        if length > limit {
            return Err(FabricError::TooLarge { bytes: length, limit });
        }
        let began = Instant::now();
        let mut state = lock(&self.state);
        loop {
            let gone = state.gone(config.reconnect);
            let Some(link) = state.links.get_mut(&key) else { return Err(FabricError::Aborted { epoch: key.epoch }) };
            if let Some(failed) = &link.failed {
                return Err(failed.clone());
            }
            if link.is_unwanted {
                return Ok(true);
            }
            // As long as a message is under way the next of its size may be, too: keys, and the values behind them.
            let credit_bytes = config.credit_bytes.max(2 * (length + MESSAGE_BYTES));
            if link.queue.is_empty() || link.unanswered_bytes + length + MESSAGE_BYTES <= credit_bytes {
                break;
            }
            if !may_wait {
                return Ok(false);
            }
            if let Some(reason) = gone {
                return Err(FabricError::PeerGone { peer: key.to, reason });
            }
            let waited = began.max(link.progress).elapsed();
            if waited >= config.silence {
                return Err(FabricError::Silent { peer: key.to, waited_ms: waited.as_millis() as u64 });
            }
            state = wait(&self.credit, state, LOOK_AROUND.min(config.silence - waited));
        }

        let Some(link) = state.links.get_mut(&key) else { return Err(FabricError::Aborted { epoch: key.epoch }) };
        let (sequence, dtype) = (link.next(), payload.dtype());
        let header = Header { kind: Kind::Tensor, link: key, image: link.image, tag, sequence, dtype, length };
        if link.queue.is_empty() {
            link.progress = Instant::now();
        }
        link.queue.push_back(Message { header, memory: payload.clone().into_memory() });
        link.unanswered_bytes += length + MESSAGE_BYTES;
        state.make_ready(key);
        wake(state);
        Ok(true)
    }

    /// Gives the next message to stream `stream`, or `None` to one that was given up.
    pub(crate) fn poll_take(&self, stream: u64, cx: &Context<'_>) -> Poll<Option<Message>> {
        let mut state = lock(&self.state);
        if state.stream != stream {
            return Poll::Ready(None);
        }
        if let Some(header) = state.probes.pop_front() {
            return Poll::Ready(Some(Message { header, memory: Bytes::new() }));
        }
        while let Some(key) = state.ready.pop_front() {
            let Some((image, secret)) = state.links.get(&key).map(|link| (link.image, link.secret)) else { continue };
            // Before the first tensor of an epoch, what makes the peer believe it.
            if secret != Secret::NONE && state.shown.insert(key.epoch) {
                state.ready.push_front(key);
                let header = Header { length: Secret::N_BYTES as u64, ..Header::bare(Kind::Hello, key, image, 0) };
                return Poll::Ready(Some(Message { header, memory: Bytes::copy_from_slice(secret.bytes()) }));
            }
            let Some(link) = state.links.get_mut(&key) else { continue };
            link.is_ready = false;
            let queue_idx = (link.cursor - link.first) as usize;
            let Some(message) = link.queue.get(queue_idx).cloned() else { continue };
            link.cursor += 1;
            link.progress = Instant::now();
            state.make_ready(key);
            return Poll::Ready(Some(message));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Begins a stream: everything not known to have come goes out again. Returns its number, and how many
    /// messages go out once more.
    pub(crate) fn begin_stream(&self) -> (u64, u64) {
        let mut state = lock(&self.state);
        state.stream += 1;
        state.ready.clear();
        state.probes.clear();
        state.shown.clear();
        let mut n_resent = 0;
        let keys: Vec<LinkKey> = state.links.keys().copied().collect();
        for key in keys {
            if let Some(link) = state.links.get_mut(&key) {
                n_resent += link.cursor - link.first;
                link.cursor = link.first;
                link.is_ready = false;
            }
            state.make_ready(key);
        }
        (state.stream, n_resent)
    }

    /// The stream is up: the peer answered it.
    pub(crate) fn connected(&self) {
        lock(&self.state).broken = None;
    }

    /// The stream is down. What is said first of an outage is kept.
    pub(crate) fn disconnected(&self, reason: String) {
        let mut state = lock(&self.state);
        state.stream += 1;
        let since = state.broken.take().map_or_else(Instant::now, |(since, _)| since);
        state.broken = Some((since, reason));
        self.credit.notify_all();
        // The given-up stream learns of it.
        wake(state);
    }

    /// Why the peer is taken for gone, if it could not be reached for `reconnect`.
    pub(crate) fn gone(&self, reconnect: Duration) -> Option<String> {
        lock(&self.state).gone(reconnect)
    }

    /// Takes in an answer whose checksum was right. Returns how many messages go out once more.
    pub(crate) fn answered(&self, answer: &ExchangeResponse, key: LinkKey) -> u64 {
        let mut state = lock(&self.state);
        let Some(link) = state.links.get_mut(&key) else { return 0 };
        let mut n_resent = 0;
        match answer.kind() {
            Answer::Received if answer.sequence == NOTHING_WANTED => {
                link.is_unwanted = true;
                link.release(NOTHING_WANTED);
            }
            // More than was sent cannot have come.
            Answer::Received | Answer::Missing if answer.sequence > link.next() => {}
            Answer::Received => {
                link.n_forgotten = 0;
                link.release(answer.sequence);
            }
            Answer::Missing if answer.sequence < link.first => {
                // Asked for before it came after all; but a peer that asks again and again has forgotten it.
                link.n_forgotten += 1;
                if link.n_forgotten > MOST_STALE_ANSWERS {
                    let reason = "it lost what it had received: it was started anew".to_owned();
                    link.failed = Some(FabricError::PeerGone { peer: key.to, reason });
                    link.release(u64::MAX);
                }
            }
            Answer::Missing => {
                link.release(answer.sequence);
                n_resent = link.cursor - link.first;
                link.cursor = link.first;
                link.progress = Instant::now();
                state.make_ready(key);
            }
            Answer::Refused => {
                let refused = answer.sequence.checked_sub(link.first).and_then(|idx| link.queue.get(idx as usize));
                if let Some(message) = refused {
                    link.failed =
                        Some(FabricError::TooLarge { bytes: message.header.length, limit: answer.limit_bytes });
                }
            }
            Answer::Unspecified => {}
        }
        state.links.retain(|_, link| !(link.is_closing && link.queue.is_empty()));
        self.credit.notify_all();
        wake(state);
        n_resent
    }

    /// Asks after links that were sent everything and have had no answer for `probe`.
    pub(crate) fn ask(&self, probe: Duration) {
        let mut state = lock(&self.state);
        if state.broken.is_some() || !state.probes.is_empty() {
            return;
        }
        let waiting = |link: &Link| !link.queue.is_empty() && !link.is_ready && link.progress.elapsed() >= probe;
        let asked = state.links.iter_mut().filter(|(_, link)| waiting(link));
        let probes: Vec<Header> =
            asked.map(|(&key, link)| Header::bare(Kind::Probe, key, link.image, link.next())).collect();
        state.probes.extend(probes);
        wake(state);
    }

    /// True once nobody sends and all has come, or cannot come: the peer is gone, or silent.
    pub(crate) fn is_over(&self, config: &PortConfig) -> bool {
        let state = lock(&self.state);
        let is_lost = |link: &Link| link.progress.elapsed() >= config.stall;
        state.n_users == 0 && (state.gone(config.reconnect).is_some() || state.links.values().all(is_lost))
    }

    /// True once all that was sent is known to have come.
    pub(crate) fn is_settled(&self) -> bool {
        lock(&self.state).links.values().all(|link| link.queue.is_empty())
    }
}

impl State {
    fn gone(&self, reconnect: Duration) -> Option<String> {
        let (since, reason) = self.broken.as_ref()?;
        (since.elapsed() >= reconnect).then(|| reason.clone())
    }

    /// Epochs that nothing is sent of any more are shown anew if there is more of them after all.
    fn forget_shown(&mut self) {
        let links = &self.links;
        self.shown.retain(|epoch| links.keys().any(|key| key.epoch == *epoch));
    }

    fn make_ready(&mut self, key: LinkKey) {
        if let Some(link) = self.links.get_mut(&key)
            && !link.is_ready
            && link.cursor < link.next()
        {
            link.is_ready = true;
            self.ready.push_back(key);
        }
    }
}

/// Wakes the stream, with the lock given back first: the woken thread wants it at once.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}
