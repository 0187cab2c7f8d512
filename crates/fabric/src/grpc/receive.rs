//! Serves streams: reads headers, and copies what follows them straight into the tensor's own memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use machine::Refusals;
use plan::Epoch;
use tokio::sync::Semaphore;
use wire::checksum;

use super::Shared;
use super::answer::{AnswerBody, Answers};
use super::arrivals::Verdict;
use super::dial::{PATH, PING_ANSWERED, PING_EVERY};
use super::header::{
    HEADER_BYTES, Header, HeaderError, Kind, MAX_VARINT_BYTES, PAYLOAD_KEY, PREFIX_BYTES, TRAILER_BYTES,
    decode_trailer, varint_bytes,
};
use super::secret::Secret;
use super::socket::{Listener, Socket};
use crate::fault::Sabotage;
use crate::payload::Destination;
use crate::seat::Seat;

/// Connections served at a time; a peer process needs one.
const N_CONNECTIONS: usize = 512;
/// Copied and checked in runs of this many bytes, so that the second reading finds them in the first cache.
const RUN_BYTES: usize = 16 << 10;
/// Secrets a stream may have shown at a time; a peer process is at a few epochs.
const MOST_SHOWN: usize = 1024;
/// gRPC's status codes.
const OK: u8 = 0;
const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const UNIMPLEMENTED: u8 = 12;
const UNAVAILABLE: u8 = 14;

/// Takes connections for as long as this is polled.
pub(crate) async fn serve(listener: Listener, shared: Arc<Shared>) -> Infallible {
    let seats = Arc::new(Semaphore::new(N_CONNECTIONS));
    let mut refusals = Refusals::default();
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => {
                refusals.accepted();
                socket
            }
            Err(error) => {
                tokio::time::sleep(refusals.refused(Instant::now(), "connections of other workers", &error)).await;
                continue;
            }
        };
        let Ok(seat) = seats.clone().try_acquire_owned() else {
            shared.tally.crowded.add(1);
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            serve_connection(socket, shared).await;
            drop(seat);
        });
    }
}

async fn serve_connection(socket: Socket, shared: Arc<Shared>) {
    let has_spoken = Arc::new(AtomicBool::new(false));
    let config = &shared.config;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_frame_size(config.piece_bytes)
        .initial_stream_window_size(config.window_bytes)
        .initial_connection_window_size(config.window_bytes)
        .max_concurrent_streams(8)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED)
        .serve_connection(
            TokioIo::new(socket),
            service_fn(|request| {
                let response = respond(request, &shared, &has_spoken);
                async { Ok::<_, Infallible>(response) }
            }),
        );
    let mut connection = std::pin::pin!(connection);
    if tokio::time::timeout(config.hello, &mut connection).await.is_err() {
        if has_spoken.load(Ordering::Relaxed) {
            // How it ends matters to its dialler only.
            let _ = connection.await;
        } else {
            shared.tally.silent.add(1);
        }
    }
}

fn respond(request: Request<Incoming>, shared: &Arc<Shared>, has_spoken: &Arc<AtomicBool>) -> Response<AnswerBody> {
    let body = if request.uri().path() == PATH {
        let answers = Arc::new(Answers::default());
        let sabotage = shared.config.faults.as_ref().map(Sabotage::new);
        let reader = Reader { body: request.into_body(), piece: Bytes::new(), patience: shared.config.stall };
        let reading = read_stream(reader, shared.clone(), answers.clone(), has_spoken.clone());
        tokio::spawn(reading);
        AnswerBody::new(answers, shared.config.answer_delay, sabotage)
    } else {
        AnswerBody::ended(UNIMPLEMENTED, "only fresco.v1.ExchangeService/Exchange is served here")
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

async fn read_stream(mut reader: Reader, shared: Arc<Shared>, answers: Arc<Answers>, has_spoken: Arc<AtomicBool>) {
    let mut shown = Shown::default();
    loop {
        let ended = match read_message(&mut reader, &shared, &answers, &mut shown).await {
            Ok(()) => {
                has_spoken.store(true, Ordering::Relaxed);
                continue;
            }
            Err(ended) => ended,
        };
        let (status, message) = match ended {
            Ended::Cleanly => (OK, ""),
            Ended::Broken => (UNAVAILABLE, "the stream broke"),
            Ended::Stalled => (DEADLINE_EXCEEDED, "a message was begun and not ended"),
            Ended::Malformed => {
                shared.tally.malformed.add(1);
                (INVALID_ARGUMENT, "this is no tensor stream in the layout of fresco.v1.ExchangeRequest")
            }
        };
        answers.end(status, message);
        return;
    }
}

/// What a stream has shown of the epochs it carries tensors of.
#[derive(Default)]
struct Shown(BTreeMap<Epoch, Secret>);

impl Shown {
    fn put(&mut self, epoch: Epoch, secret: Secret) {
        self.0.insert(epoch, secret);
        if self.0.len() > MOST_SHOWN {
            self.0.pop_first();
        }
    }

    fn of(&self, epoch: Epoch) -> Secret {
        self.0.get(&epoch).copied().unwrap_or(Secret::NONE)
    }
}

/// Why a stream is read no further.
enum Ended {
    Cleanly,
    Broken,
    Stalled,
    Malformed,
}

async fn read_message(
    reader: &mut Reader,
    shared: &Shared,
    answers: &Arc<Answers>,
    shown: &mut Shown,
) -> Result<(), Ended> {
    if !reader.is_more().await? {
        return Err(Ended::Cleanly);
    }
    let [is_compressed, length @ ..] = reader.take::<PREFIX_BYTES>().await?;
    let message_bytes = u64::from(u32::from_be_bytes(length));
    let smallest = HEADER_BYTES + 2 + TRAILER_BYTES;
    if is_compressed != 0 || message_bytes < smallest as u64 {
        return Err(Ended::Malformed);
    }

    let (header, crc) = match Header::decode(&reader.take().await?) {
        Ok(found) => found,
        Err(HeaderError::Layout) => return Err(Ended::Malformed),
        Err(HeaderError::Checksum) => {
            // Whose it is cannot be known: its link sees the gap, or asks.
            shared.tally.corrupt.add(1);
            return reader.skip(message_bytes - HEADER_BYTES as u64).await;
        }
    };
    // All that is left must be just what the checked header announced, or the next message is not found.
    let (announced, n_varint) = reader.take_length().await?;
    let overhead = HEADER_BYTES + 1 + n_varint + TRAILER_BYTES;
    if announced != header.length || header.length.checked_add(overhead as u64) != Some(message_bytes) {
        return Err(Ended::Malformed);
    }

    let secret = shown.of(header.link.epoch);
    match header.kind {
        Kind::Hello if header.length == Secret::N_BYTES as u64 => {
            let bytes: [u8; Secret::N_BYTES] = reader.take().await?;
            let found = decode_trailer(&reader.take().await?).ok_or(Ended::Malformed)?;
            if found != checksum::append(crc, &bytes) {
                // What follows would be taken for a stranger's: a new stream shows it again.
                shared.tally.corrupt.add(1);
                return Err(Ended::Broken);
            }
            shown.put(header.link.epoch, Secret::new(bytes));
            Ok(())
        }
        Kind::Hello => reader.skip(header.length + TRAILER_BYTES as u64).await,
        Kind::Probe => {
            shared.arrivals.probed(&header, secret, answers, &shared.tally);
            reader.skip(header.length + TRAILER_BYTES as u64).await
        }
        Kind::Tensor => match shared.arrivals.judge((&header, secret), answers, &shared.config, &shared.tally) {
            Verdict::Skip => reader.skip(header.length + TRAILER_BYTES as u64).await,
            Verdict::Take(seat) => read_tensor(reader, (&header, secret, crc), seat, shared, answers).await,
        },
    }
}

async fn read_tensor(
    reader: &mut Reader,
    (header, secret, crc): (&Header, Secret, u32),
    seat: Option<Arc<Seat>>,
    shared: &Shared,
    answers: &Arc<Answers>,
) -> Result<(), Ended> {
    // The header was judged: its length is within the limit.
    let mut destination = Destination::new(header.dtype, header.length as usize, &shared.spares);
    let mut crc = crc;
    let mut memory = destination.memory();
    while !memory.is_empty() {
        let piece = reader.piece(memory.len()).await?;
        let (into, rest) = std::mem::take(&mut memory).split_at_mut(piece.len());
        for (from, into) in piece.chunks(RUN_BYTES).zip(into.chunks_mut(RUN_BYTES)) {
            into.copy_from_slice(from);
            crc = checksum::append(crc, from);
        }
        memory = rest;
        if let Some(seat) = &seat {
            seat.hear(header.link.from);
        }
    }
    let found = decode_trailer(&reader.take().await?).ok_or(Ended::Malformed)?;
    if found == crc {
        shared.tally.received_bytes.add(header.length);
        let payload = destination.into_payload(&shared.spares);
        shared.arrivals.deliver((header, secret), payload, answers, &shared.tally);
    } else {
        shared.tally.corrupt.add(1);
        shared.arrivals.spoilt((header.link, secret), answers);
    }
    Ok(())
}

/// The bytes of a request body, in order, however they are cut.
struct Reader {
    body: Incoming,
    piece: Bytes,
    /// How long the rest of a begun message may take to go on.
    patience: Duration,
}

impl Reader {
    /// Waits for a byte, as long as it takes. False at the end.
    async fn is_more(&mut self) -> Result<bool, Ended> {
        while self.piece.is_empty() {
            match self.body.frame().await {
                Some(Ok(next)) => self.piece = next.into_data().unwrap_or_default(),
                Some(Err(_)) => return Err(Ended::Broken),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes what is there of the next `at_most` bytes, one or more.
    async fn piece(&mut self, at_most: usize) -> Result<Bytes, Ended> {
        if self.piece.is_empty() {
            match tokio::time::timeout(self.patience, self.is_more()).await {
                Ok(Ok(true)) => {}
                Ok(Ok(false) | Err(_)) => return Err(Ended::Broken),
                Err(_) => return Err(Ended::Stalled),
            }
        }
        Ok(self.piece.split_to(at_most.min(self.piece.len())))
    }

    async fn take<const N: usize>(&mut self) -> Result<[u8; N], Ended> {
        let mut taken = [0; N];
        let mut n = 0;
        while n < N {
            let mut piece = self.piece(N - n).await?;
            let n_bytes = piece.len();
            piece.copy_to_slice(&mut taken[n..n + n_bytes]);
            n += n_bytes;
        }
        Ok(taken)
    }

    /// Takes the payload's key and length, and says how many bytes the length took.
    async fn take_length(&mut self) -> Result<(u64, usize), Ended> {
        if self.take().await? != [PAYLOAD_KEY] {
            return Err(Ended::Malformed);
        }
        let mut length = 0;
        for n_varint in 1..=MAX_VARINT_BYTES {
            let [byte] = self.take().await?;
            length |= u64::from(byte & 0x7f) << (7 * (n_varint - 1));
            if byte < 0x80 {
                // The shortest form, as every library writes it.
                return if n_varint == varint_bytes(length) { Ok((length, n_varint)) } else { Err(Ended::Malformed) };
            }
        }
        Err(Ended::Malformed)
    }

    async fn skip(&mut self, n_bytes: u64) -> Result<(), Ended> {
        let mut left = n_bytes;
        while left > 0 {
            left -= self.piece(usize::try_from(left).unwrap_or(usize::MAX)).await?.len() as u64;
        }
        Ok(())
    }
}
