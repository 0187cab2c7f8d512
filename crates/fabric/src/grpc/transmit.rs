//! The request body of a stream: headers of our own, and between them the tensors' own memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use plan::{Epoch, Rank};
use tokio::time::Sleep;
use wire::checksum;

use super::header::{Header, Kind, LinkKey, OVERHEAD_BYTES, TRAILER_BYTES, put_trailer};
use super::outbox::{Message, Outbox};
use crate::fault::{Fate, Sabotage, flip};

/// Payloads up to this many bytes are copied behind their headers: one small piece costs less than three.
const SMALL_BYTES: usize = 8 << 10;

/// Ends a stream in the midst of a message.
#[derive(Debug, thiserror::Error)]
#[error("stream broken off by a fault under test")]
pub(crate) struct BrokenOff;

pub(crate) struct RequestBody {
    outbox: Arc<Outbox>,
    stream: u64,
    piece_bytes: usize,
    current: Option<Partial>,
    /// Taken from the outbox, to leave after the current message.
    waiting: VecDeque<(Message, Fate)>,
    sabotage: Option<Sabotage>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A message of which a part has left.
struct Partial {
    memory: Bytes,
    crc: u32,
    fate: Fate,
    n_sent_bytes: u64,
}

impl RequestBody {
    /// The body of stream `stream`: a hello, then what `outbox` has.
    pub(crate) fn new(outbox: Arc<Outbox>, stream: u64, piece_bytes: usize, sabotage: Option<Sabotage>) -> Self {
        let nobody = LinkKey { epoch: Epoch(0), from: Rank(0), to: Rank(0) };
        let hello = Message { header: Header::bare(Kind::Hello, nobody, 0, 0), memory: Bytes::new() };
        let waiting = VecDeque::from([(hello, Fate::Sent)]);
        Self { outbox, stream, piece_bytes, current: None, waiting, sabotage, timer: None }
    }

    /// The next message and what is to happen to it.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Message, Fate)>> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                self.timer = None;
            }
            if let Some(waiting) = self.waiting.pop_front() {
                return Poll::Ready(Some(waiting));
            }
            let Some(message) = ready!(self.outbox.poll_take(self.stream, cx)) else { return Poll::Ready(None) };
            let Some(sabotage) = &mut self.sabotage else { return Poll::Ready(Some((message, Fate::Sent))) };
            // A secret that is lost on a stream that lives is no fault that happens.
            if message.header.kind == Kind::Hello {
                return Poll::Ready(Some((message, Fate::Sent)));
            }
            match sabotage.message(message.header.length) {
                Fate::Dropped => {}
                Fate::Delayed => {
                    self.timer = Some(Box::pin(tokio::time::sleep(sabotage.delay())));
                    self.waiting.push_back((message, Fate::Sent));
                }
                Fate::Duplicated => self.waiting.extend([(message.clone(), Fate::Sent), (message, Fate::Sent)]),
                Fate::Reordered => {
                    if let Poll::Ready(Some(next)) = self.outbox.poll_take(self.stream, cx) {
                        self.waiting.push_back((next, Fate::Sent));
                    }
                    self.waiting.push_back((message, Fate::Sent));
                }
                fate => return Poll::Ready(Some((message, fate))),
            }
        }
    }

    /// The first piece of a message: its header, and all of it if it is small; with it, whatever small ones
    /// are ready as well.
    fn begin(&mut self, message: Message, fate: Fate, cx: &mut Context<'_>) -> Bytes {
        let (mut message, mut fate) = (message, fate);
        let mut piece = BytesMut::new();
        loop {
            if message.memory.len() > SMALL_BYTES || fate != Fate::Sent {
                let crc = message.header.encode(&mut piece);
                self.current = Some(Partial { memory: message.memory, crc, fate, n_sent_bytes: 0 });
                return piece.freeze();
            }
            piece.reserve(message.memory.len() + OVERHEAD_BYTES);
            let crc = message.header.encode(&mut piece);
            piece.extend_from_slice(&message.memory);
            put_trailer(&mut piece, checksum::append(crc, &message.memory));
            if piece.len() > SMALL_BYTES {
                return piece.freeze();
            }
            let Poll::Ready(Some(next)) = self.poll_message(cx) else { return piece.freeze() };
            (message, fate) = next;
        }
    }
}

impl Partial {
    /// The next piece and whether it is the last. The checksum is taken here, where the memory is read anyway.
    fn piece(&mut self, piece_bytes: usize) -> Result<(Bytes, bool), BrokenOff> {
        if self.memory.is_empty() {
            let mut trailer = BytesMut::with_capacity(TRAILER_BYTES);
            put_trailer(&mut trailer, self.crc);
            return Ok((trailer.freeze(), true));
        }
        let mut piece = self.memory.split_to(piece_bytes.min(self.memory.len()));
        self.crc = checksum::append(self.crc, &piece);
        let sent = self.n_sent_bytes..self.n_sent_bytes + piece.len() as u64;
        match self.fate {
            Fate::Truncated(at) if sent.contains(&at) => return Err(BrokenOff),
            Fate::Flipped(bit) if sent.contains(&(bit / 8)) => piece = flip(&piece, bit - sent.start * 8),
            _ => {}
        }
        self.n_sent_bytes = sent.end;
        Ok((piece, false))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let body = &mut *self;
        if let Some(partial) = &mut body.current {
            let piece = partial.piece(body.piece_bytes).map(|(piece, is_last)| {
                if is_last {
                    body.current = None;
                }
                Frame::data(piece)
            });
            return Poll::Ready(Some(piece));
        }
        let Some((message, fate)) = ready!(body.poll_message(cx)) else { return Poll::Ready(None) };
        Poll::Ready(Some(Ok(Frame::data(body.begin(message, fate, cx)))))
    }
}
