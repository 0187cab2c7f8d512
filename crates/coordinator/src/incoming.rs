//! Connections as they come in: a bounded number, served once they speak HTTP/2, closed when nobody asks anything on them.
//!
//! A peer that answers pings and asks nothing is alive and useless; peers that vanish are found by the server's pings.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use machine::Refusals;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

mod beginning;
mod counted;

use beginning::{Beginning, begins_with, turn_away};

pub(crate) use counted::CountRequests;

/// How long a connection may take to say what it speaks, and to take in an answer.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
/// How long it may then take to ask something for the first time.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// How long it may be without a request afterwards.
const IDLE_FOR: Duration = Duration::from_secs(60);
/// Connections that wait to be served.
const BACKLOG: usize = 64;
/// Connections at a time, where the system allows that many files.
const MOST_CONNECTIONS: usize = 8192;
/// Files for all else.
const OTHER_FILES: u64 = 256;

/// Connections of `listener` that are worth serving.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(accept(listener, ready, Arc::new(Gate::new(most_connections()))));
    ReceiverStream::new(connections)
}

fn most_connections() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let files = files.map_or(MOST_CONNECTIONS, |files| {
        usize::try_from(files.saturating_sub(OTHER_FILES).max(files / 2)).unwrap_or(MOST_CONNECTIONS)
    });
    files.clamp(16, MOST_CONNECTIONS)
}

async fn accept(listener: TcpListener, ready: mpsc::Sender<io::Result<Connection>>, gate: Arc<Gate>) {
    let mut refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                refusals.accepted();
                let Some(place) = gate.enter() else {
                    tracing::debug!(%peer, "a connection was closed: there are too many that are in use");
                    continue;
                };
                let ready = ready.clone();
                tokio::spawn(async move {
                    let evicted = Arc::clone(&place.usage);
                    let begun = tokio::select! {
                        begun = tokio::time::timeout(PREFACE_WITHIN, begins_with(&stream)) => begun,
                        () = evicted.evicted.notified() => return,
                    };
                    match begun {
                        // A server that has ended does not want it.
                        Ok(Ok(Beginning::Http2)) => drop(ready.send(Ok(Connection::new(stream, place))).await),
                        Ok(Ok(Beginning::Http1)) => {
                            tracing::debug!(%peer, "a connection that speaks HTTP/1 was told where it is");
                            drop(tokio::time::timeout(PREFACE_WITHIN, turn_away(stream)).await);
                        }
                        _ => tracing::debug!(%peer, "a connection that does not speak HTTP/2 was closed"),
                    }
                });
            }
            Err(error) => {
                let now = std::time::Instant::now();
                tokio::time::sleep(refusals.refused(now, "connections", &error)).await;
            }
        }
    }
}

/// Lets a number of connections in. One that comes when it is full takes the place of the one that was idle longest.
struct Gate {
    most: usize,
    inside: Mutex<(u64, BTreeMap<u64, Arc<Usage>>)>,
}

/// A place inside; free again when it is dropped.
struct Place {
    gate: Arc<Gate>,
    number: u64,
    usage: Arc<Usage>,
}

impl Gate {
    fn new(most: usize) -> Self {
        Self { most, inside: Mutex::default() }
    }

    fn inside(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Arc<Usage>>)> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, unless all are taken by connections that are in use.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut inside = self.inside();
        if inside.1.len() >= self.most {
            let idle = inside.1.iter().filter_map(|(number, usage)| Some((usage.idle_since()?, *number)));
            let (_, longest) = idle.min()?;
            // It is closed as soon as its task runs; its place is given away now.
            inside.1.remove(&longest)?.evicted.notify_one();
        }
        inside.0 += 1;
        let (number, usage) = (inside.0, Arc::new(Usage::new()));
        inside.1.insert(number, Arc::clone(&usage));
        Some(Place { gate: Arc::clone(self), number, usage })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.inside().1.remove(&self.number);
    }
}

/// What a connection is used for.
struct Usage {
    state: Mutex<UsageState>,
    evicted: Notify,
}

struct UsageState {
    n_open: usize,
    has_asked: bool,
    /// When the last request ended, or it came in.
    since: Instant,
}

impl Usage {
    fn new() -> Self {
        let state = UsageState { n_open: 0, has_asked: false, since: Instant::now() };
        Self { state: Mutex::new(state), evicted: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, UsageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since when nothing is asked, if nothing is.
    fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.n_open == 0).then_some(state.since)
    }

    /// Waits until the connection has been idle for too long, or another needs its place.
    async fn until_useless(self: Arc<Self>) {
        loop {
            let (is_idle, due) = {
                let state = self.state();
                let patience = if state.has_asked { IDLE_FOR } else { FIRST_REQUEST_WITHIN };
                let since = if state.n_open == 0 { state.since } else { Instant::now() };
                (state.n_open == 0, since + patience)
            };
            if is_idle && due <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.evicted.notified() => return,
            }
        }
    }
}

/// A connection, closed once it is useless.
pub(crate) struct Connection {
    stream: TcpStream,
    place: Place,
    useless: BoxFuture<'static, ()>,
}

impl Connection {
    fn new(stream: TcpStream, place: Place) -> Self {
        let useless = Box::pin(Arc::clone(&place.usage).until_useless());
        Self { stream, place, useless }
    }
}

/// What a request knows of its connection.
#[derive(Clone)]
pub(crate) struct ConnectionInfo {
    tcp: TcpConnectInfo,
    usage: Arc<Usage>,
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        ConnectionInfo { tcp: self.stream.connect_info(), usage: Arc::clone(&self.place.usage) }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.useless.as_mut().poll(cx).is_ready() {
            // It must not be asked again.
            self.useless = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
