//! Answers: what came whole, what is missing. Small protobuf messages, each with its own checksum.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use plan::{Epoch, Rank};
use prost::Message as _;
use tokio::time::Sleep;
use wire::checksum;
use wire::v1::ExchangeResponse;
use wire::v1::exchange_response::Kind;

use super::header::LinkKey;
use crate::fault::Sabotage;
use crate::seat::lock;

/// As the sequence of an answer: nothing of this link is wanted any more.
pub(crate) const NOTHING_WANTED: u64 = u64::MAX;
/// Bytes that came on a stream after which an answer leaves without delay: well below any credit.
const PROMPT_BYTES: u64 = 4 << 20;

pub(crate) fn answer(kind: Kind, link: LinkKey, sequence: u64, limit_bytes: u64) -> ExchangeResponse {
    ExchangeResponse {
        kind: kind.into(),
        epoch: link.epoch.0,
        from: link.from.0.into(),
        to: link.to.0.into(),
        sequence,
        limit_bytes,
        crc32c: 0,
    }
}

fn put_answer(out: &mut BytesMut, mut answer: ExchangeResponse) {
    answer.crc32c = checksum_of(&answer);
    out.put_u8(0);
    out.put_u32(answer.encoded_len() as u32);
    out.extend_from_slice(&answer.encode_to_vec());
}

fn checksum_of(answer: &ExchangeResponse) -> u32 {
    checksum::crc32c(&ExchangeResponse { crc32c: 0, ..*answer }.encode_to_vec())
}

/// Reads an answer without gRPC's prefix; `None` if it does not match its checksum.
pub(crate) fn decode(bytes: &[u8]) -> Option<(ExchangeResponse, LinkKey)> {
    let answer = ExchangeResponse::decode(bytes).ok()?;
    let rank = |number: u32| u16::try_from(number).ok().map(Rank);
    let link = LinkKey { epoch: Epoch(answer.epoch), from: rank(answer.from)?, to: rank(answer.to)? };
    (answer.crc32c == checksum_of(&answer)).then_some((answer, link))
}

/// Answers of one incoming stream that have not left. Receipts wait a little to leave together.
#[derive(Default)]
pub(crate) struct Answers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    receipts: BTreeMap<LinkKey, u64>,
    unreported_bytes: u64,
    urgent: VecDeque<ExchangeResponse>,
    waker: Option<Waker>,
    /// How the stream ended: gRPC's status and message.
    end: Option<(u8, &'static str)>,
}

impl Answers {
    /// Every message of `link` below `sequence` has come, the last of them `n_bytes` long.
    pub(crate) fn received(&self, link: LinkKey, sequence: u64, n_bytes: u64) {
        let mut state = lock(&self.state);
        state.receipts.insert(link, sequence);
        state.unreported_bytes += n_bytes;
        // The first receipt sets the clock; the body needs no waking for those that join it.
        if state.receipts.len() == 1 || state.unreported_bytes >= PROMPT_BYTES {
            state.wake();
        }
    }

    /// An answer that does not wait.
    pub(crate) fn urgent(&self, answer: ExchangeResponse) {
        let mut state = lock(&self.state);
        state.urgent.push_back(answer);
        state.wake();
    }

    /// The stream is over, with this gRPC status.
    pub(crate) fn end(&self, status: u8, message: &'static str) {
        let mut state = lock(&self.state);
        state.end.get_or_insert((status, message));
        state.wake();
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The body of the response to a stream.
pub(crate) struct AnswerBody {
    answers: Arc<Answers>,
    delay: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    sabotage: Option<Sabotage>,
    is_ended: bool,
}

impl AnswerBody {
    pub(crate) fn new(answers: Arc<Answers>, delay: Duration, sabotage: Option<Sabotage>) -> Self {
        Self { answers, delay, timer: None, sabotage, is_ended: false }
    }

    /// A response without answers, for what cannot be served.
    pub(crate) fn ended(status: u8, message: &'static str) -> Self {
        let answers = Arc::new(Answers::default());
        answers.end(status, message);
        Self::new(answers, Duration::ZERO, None)
    }

    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<BytesMut>> {
        loop {
            let mut state = lock(&self.answers.state);
            state.waker = Some(cx.waker().clone());
            let is_prompt = state.unreported_bytes >= PROMPT_BYTES || !state.urgent.is_empty() || state.end.is_some();
            let is_waiting = !state.receipts.is_empty();
            if is_waiting && !is_prompt {
                drop(state);
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.delay)));
                ready!(timer.as_mut().poll(cx));
                state = lock(&self.answers.state);
            }
            self.timer = None;
            let mut out = BytesMut::new();
            // What is refused goes first: a receipt makes the sender forget the message.
            let (refused, urgent): (Vec<_>, Vec<_>) =
                state.urgent.drain(..).partition(|answer| answer.kind() == Kind::Refused);
            for refusal in refused {
                put_answer(&mut out, refusal);
            }
            for (link, sequence) in std::mem::take(&mut state.receipts) {
                put_answer(&mut out, answer(Kind::Received, link, sequence, 0));
            }
            state.unreported_bytes = 0;
            for urgent in urgent {
                put_answer(&mut out, urgent);
            }
            if out.is_empty() {
                return if state.end.is_some() { Poll::Ready(None) } else { Poll::Pending };
            }
            drop(state);
            if self.sabotage.as_mut().is_none_or(|sabotage| sabotage.answer(&mut out)) {
                return Poll::Ready(Some(out));
            }
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if let Some(bytes) = ready!(self.poll_bytes(cx)) {
            return Poll::Ready(Some(Ok(Frame::data(bytes.freeze()))));
        }
        self.is_ended = true;
        let (status, message) = lock(&self.answers.state).end.unwrap_or_default();
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", u16::from(status).into());
        if !message.is_empty() {
            trailers.insert("grpc-message", HeaderValue::from_static(message));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }
}
