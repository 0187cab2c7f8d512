//! Connections to the status port: so many at most, each for as long as it asks for something.
//!
//! The port is open to whoever probes and scrapes, so nobody may hold it: a connection that has not asked for a while is
//! closed, and where there are too many, the one that has been silent for longest goes. Leaves out what is answered.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use machine::Refusals;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::answers::Answers;

/// How patient the port is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections at once.
    pub(crate) most: usize,
    /// Until the first request, and for the head of each.
    pub(crate) silent: Duration,
    /// Since the last request.
    pub(crate) idle: Duration,
    /// For answers that are on their way when a connection is to end.
    pub(crate) last_answers: Duration,
}

impl Limits {
    /// Prometheus asks once a minute at least, by most people's settings, and then keeps its connection.
    pub(crate) const USUAL: Self = Self {
        most: 128,
        silent: Duration::from_secs(5),
        idle: Duration::from_secs(90),
        last_answers: Duration::from_secs(5),
    };
}

/// One connection, as far as it matters whether it may stay.
struct Connection {
    last_asked: Mutex<Instant>,
    n_asked: AtomicUsize,
    has_to_make_room: Notify,
}

impl Connection {
    fn new() -> Self {
        Self { last_asked: Mutex::new(Instant::now()), n_asked: AtomicUsize::new(0), has_to_make_room: Notify::new() }
    }

    fn asked(&self) {
        *self.last_asked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.n_asked.fetch_add(1, Ordering::Relaxed);
    }

    fn last_asked(&self) -> Instant {
        *self.last_asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the connection has been silent for too long.
    async fn until_idle(&self, limits: Limits) {
        loop {
            let patience = if self.n_asked.load(Ordering::Relaxed) == 0 { limits.silent } else { limits.idle };
            let end = self.last_asked() + patience;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Accepts connections for as long as this is polled.
pub(crate) async fn serve(listener: TcpListener, answers: Answers, limits: Limits) {
    let mut refusals = Refusals::default();
    let mut open: Vec<Arc<Connection>> = Vec::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                refusals.accepted();
                // Whoever serves one holds it, too.
                open.retain(|connection| Arc::strong_count(connection) > 1);
                if open.len() >= limits.most
                    && let Some(silent) = (0..open.len()).min_by_key(|idx| open[*idx].last_asked())
                {
                    open.swap_remove(silent).has_to_make_room.notify_one();
                }
                let connection = Arc::new(Connection::new());
                open.push(Arc::clone(&connection));
                tokio::spawn(answer(stream, answers.clone(), connection, limits));
            }
            Err(error) => {
                let pause = refusals.refused(std::time::Instant::now(), "connections to the status port", &error);
                tokio::time::sleep(pause).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, answers: Answers, connection: Arc<Connection>, limits: Limits) {
    let asking = Arc::clone(&connection);
    let service = service_fn(move |request| {
        asking.asked();
        answers.to(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.silent);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(16);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        // A peer that breaks off or talks nonsense is no news.
        _ = &mut serving => return,
        () = connection.has_to_make_room.notified() => return,
        () = connection.until_idle(limits) => serving.as_mut().graceful_shutdown(),
    }
    drop(tokio::time::timeout(limits.last_answers, serving).await);
}
