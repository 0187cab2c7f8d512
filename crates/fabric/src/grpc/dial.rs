//! Keeps a stream to one peer process: dials, sends what its outbox has, takes in answers, dials again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{Method, Request, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::answer;
use super::config::{PortConfig, Tally};
use super::outbox::Outbox;
use super::socket::{Address, Socket};
use super::transmit::RequestBody;
use crate::fault::Sabotage;

/// Where the exchange is served.
pub(crate) const PATH: &str = "/fresco.v1.ExchangeService/Exchange";
/// How often a live connection is tried, and how long a peer may take to say that it is there.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(5);
pub(crate) const PING_ANSWERED: Duration = Duration::from_secs(5);

const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LAST_BACKOFF: Duration = Duration::from_millis(500);
/// An answer is some 50 bytes; what claims to be larger is none.
const ANSWER_LIMIT_BYTES: usize = 1 << 10;

/// Dials `address` for as long as this is polled.
pub(crate) async fn keep_stream(
    address: &Address,
    outbox: &Arc<Outbox>,
    config: &PortConfig,
    tally: &Tally,
) -> Infallible {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let mut was_up = false;
        let reason = match run_stream(address, outbox, config, tally, &mut was_up).await {
            Ok(ended) => ended.to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(%address, reason, "stream down");
        outbox.disconnected(format!("{address}: {reason}"));
        if was_up {
            backoff = FIRST_BACKOFF;
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// One connection, until it ends. Says how it ended.
async fn run_stream(
    address: &Address,
    outbox: &Arc<Outbox>,
    config: &PortConfig,
    tally: &Tally,
    was_up: &mut bool,
) -> Result<&'static str, AnyError> {
    let Ok(socket) = tokio::time::timeout(config.hello, Socket::connect(address)).await else {
        return Ok("nobody took the connection");
    };
    let (mut requests, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_frame_size(config.piece_bytes)
        .initial_stream_window_size(config.window_bytes)
        .initial_connection_window_size(config.window_bytes)
        .max_send_buf_size(config.piece_bytes as usize * 2)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWERED)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(socket?))
        .await?;
    // Driving the connection here and not apart ends it with this call, whatever ends this call.
    let mut connection = std::pin::pin!(connection);

    let (stream, n_resent) = outbox.begin_stream();
    tally.resent.add(n_resent);
    let sabotage = config.faults.as_ref().map(Sabotage::new);
    let body = RequestBody::new(outbox.clone(), stream, config.piece_bytes as usize, sabotage);
    let request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("http://exchange{PATH}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(body)?;
    let exchange = async {
        let Ok(response) = tokio::time::timeout(config.hello, requests.send_request(request)).await else {
            return Ok("it took the connection and said nothing");
        };
        let response = response?;
        if response.status() != StatusCode::OK {
            return Err(AnyError::from(format!("it answered {}", response.status())));
        }
        outbox.connected();
        tally.connected.add(1);
        *was_up = true;
        take_answers(response.into_body(), outbox, tally).await
    };
    tokio::select! {
        ended = exchange => ended,
        closed = &mut connection => closed.map(|()| "it closed the connection").map_err(AnyError::from),
    }
}

async fn take_answers(mut body: Incoming, outbox: &Outbox, tally: &Tally) -> Result<&'static str, AnyError> {
    let mut pending = BytesMut::new();
    while let Some(piece) = body.frame().await {
        match piece?.into_data() {
            Ok(data) => pending.extend_from_slice(&data),
            Err(trailers) => return Err(status(&trailers).into()),
        }
        while let Some(message) = split_message(&mut pending)? {
            match answer::decode(&message) {
                Some((answer, link)) => tally.resent.add(outbox.answered(&answer, link)),
                None => tally.corrupt.add(1),
            }
        }
    }
    Ok("it ended the stream")
}

/// Splits one whole gRPC message off the front of what came.
fn split_message(pending: &mut BytesMut) -> Result<Option<Bytes>, AnyError> {
    let Some(&[is_compressed, a, b, c, d]) = pending.first_chunk() else { return Ok(None) };
    let n_bytes = u32::from_be_bytes([a, b, c, d]) as usize;
    if is_compressed != 0 || n_bytes > ANSWER_LIMIT_BYTES {
        return Err("what came is no answer".into());
    }
    if pending.len() < 5 + n_bytes {
        return Ok(None);
    }
    pending.advance(5);
    Ok(Some(pending.split_to(n_bytes).freeze()))
}

fn status(trailers: &http_body::Frame<Bytes>) -> String {
    let text = |name| trailers.trailers_ref()?.get(name)?.to_str().ok();
    match (text("grpc-status"), text("grpc-message")) {
        (Some(status), Some(message)) => format!("it ended the stream with status {status}: {message}"),
        (Some(status), None) => format!("it ended the stream with status {status}"),
        _ => "it ended the stream".to_owned(),
    }
}
