//! Tensors between processes: one port a process, and to every peer process one stream out and one in.
//!
//! A rank's view is blocking; sockets, answers and reconnecting are on one thread of the port's own, because each
//! hand-over between threads costs more than a small tensor. Whoever sends dials: a stream carries tensors one
//! way and answers the other. A message comes whole, once and in order, or the wait for it ends with an error.
//!
//! Left out: which ranks there are. Addresses come from the coordinator, and so does the secret of each attempt, which a
//! stream shows before it is believed.

mod answer;
mod arrivals;
mod config;
mod dial;
mod header;
mod outbox;
mod receive;
mod secret;
mod socket;
mod transmit;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use plan::{Epoch, Rank};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use arrivals::Arrivals;
use config::Tally;
pub use config::{Counters, PortConfig};
use header::LinkKey;
use outbox::Outbox;
pub use secret::Secret;
use socket::{Address, Listener};

use crate::seat::{Seat, lock};
use crate::spares::Spares;
use crate::{Fabric, FabricError, Payload, Tag};

/// Why a port could not be bound.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PortError {
    #[error("{0}")]
    Address(String),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: io::Error },
    #[error("no thread for the port: {0}")]
    Thread(io::Error),
}

/// A process's end of all its links, on a thread of its own. Ends with its last tensors unsent when dropped:
/// see [`Port::settle`].
pub struct Port {
    shared: Arc<Shared>,
    address: String,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    config: PortConfig,
    tally: Tally,
    arrivals: Arrivals,
    spares: Spares,
    /// By the peer process's address.
    outboxes: Mutex<BTreeMap<String, Arc<Outbox>>>,
    runtime: Handle,
}

impl Port {
    /// Listens on `address`, `http://IP:PORT` (port 0 for any) or `unix:///PATH`.
    ///
    /// # Errors
    /// If the address is malformed or taken.
    pub fn bind(address: &str, config: PortConfig) -> Result<Self, PortError> {
        let address: Address = address.parse().map_err(PortError::Address)?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(PortError::Thread)?;
        let listen = |error| PortError::Listen { address: address.to_string(), error };
        let listener = runtime.block_on(Listener::bind(&address)).map_err(listen)?;
        let bound = listener.address().map_err(listen)?.to_string();
        let shared = Arc::new(Shared {
            spares: Spares::new(config.spare_limit_bytes),
            config,
            tally: Tally::default(),
            arrivals: Arrivals::default(),
            outboxes: Mutex::default(),
            runtime: runtime.handle().clone(),
        });
        let (stop, stopped) = oneshot::channel();
        let serving = receive::serve(listener, shared.clone());
        let thread = std::thread::Builder::new().name("fabric".to_owned());
        let thread = thread.spawn(move || {
            runtime.block_on(async {
                tokio::select! { _ = stopped => {} _ = serving => {} }
            });
        });
        let thread = Some(thread.map_err(PortError::Thread)?);
        Ok(Self { shared, address: bound, stop: Some(stop), thread })
    }

    /// Where peers reach this port, as seen from this machine. Bound to `0.0.0.0`, it is for the caller to say
    /// which of the machine's addresses peers use.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Joins an epoch as `rank`. `peers` are the addresses of all ranks in rank order; ranks with this rank's
    /// own address are in this process. `image` tells images apart that are made at the same time.
    ///
    /// Ends older epochs of the same image here. An epoch that was aborted stays so: every call of the view fails.
    pub fn open(&self, epoch: Epoch, image: u64, rank: Rank, peers: Vec<String>) -> Arc<dyn Fabric> {
        self.open_with(Secret::NONE, (epoch, image), rank, peers)
    }

    /// The same for an attempt with a secret: what comes on streams that have not shown it is dropped and counted.
    pub fn open_with(
        &self,
        secret: Secret,
        (epoch, image): (Epoch, u64),
        rank: Rank,
        peers: Vec<String>,
    ) -> Arc<dyn Fabric> {
        let own = peers.get(usize::from(rank.0)).cloned().unwrap_or_default();
        let ranks = || (0..=u16::MAX).map(Rank).zip(&peers);
        let chairs = ranks().filter(|(_, address)| **address == own).map(|(rank, _)| rank);
        let (seat, superseded) =
            self.shared.arrivals.open((epoch, image, secret), rank, peers.len(), chairs, &self.shared.tally);
        superseded.into_iter().for_each(|old| self.shared.abort_outboxes(old));

        let mut links: BTreeMap<&str, Vec<LinkKey>> = BTreeMap::new();
        for (to, address) in ranks().filter(|(_, address)| **address != own) {
            links.entry(address).or_default().push(LinkKey { epoch, from: rank, to });
        }
        let routes: BTreeMap<&str, Route> = links
            .into_iter()
            .map(|(address, links)| (address, self.shared.route(address, (image, secret), links)))
            .collect();
        let routes = peers.iter().map(|address| routes.get(address.as_str()).cloned().unwrap_or(Route::Here)).collect();
        Arc::new(View { shared: self.shared.clone(), epoch, rank, routes, seat })
    }

    /// Ends all waits of an epoch at once, and forgets its messages. It cannot be opened again.
    pub fn abort(&self, epoch: Epoch) {
        self.shared.arrivals.abort(epoch);
        self.shared.abort_outboxes(epoch);
        self.shared.spare_if_busy();
    }

    /// Waits, at most for `time`, until all that was sent is known to have come. True if it has.
    pub fn settle(&self, time: Duration) -> bool {
        let began = Instant::now();
        loop {
            if lock(&self.shared.outboxes).values().all(|outbox| outbox.is_settled()) {
                return true;
            }
            if began.elapsed() >= time {
                return false;
            }
            std::thread::sleep(self.shared.config.answer_delay.max(Duration::from_millis(1)));
        }
    }

    /// What was counted since the port was bound.
    pub fn counters(&self) -> Counters {
        self.shared.tally.read()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It cannot fail but by a bug that has been reported already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Keeps no memory back while no epoch is open.
    fn spare_if_busy(&self) {
        if !self.arrivals.is_busy() {
            self.spares.clear();
        }
    }

    fn abort_outboxes(&self, epoch: Epoch) {
        lock(&self.outboxes).values().for_each(|outbox| outbox.abort(epoch));
    }

    /// The way to another process, dialled from now on.
    fn route(self: &Arc<Self>, address: &str, (image, secret): (u64, Secret), links: Vec<LinkKey>) -> Route {
        let parsed: Address = match address.parse() {
            Ok(parsed) => parsed,
            Err(reason) => return Route::Nowhere(reason),
        };
        let mut outboxes = lock(&self.outboxes);
        let outbox = outboxes.entry(address.to_owned()).or_insert_with(|| {
            let outbox = Arc::new(Outbox::new());
            self.runtime.spawn(tend(self.clone(), address.to_owned(), parsed, outbox.clone()));
            outbox
        });
        outbox.join(links.into_iter(), image, secret);
        Route::To(outbox.clone())
    }

    /// Forgets an outbox that nobody uses any more.
    fn retire(&self, address: &str, outbox: &Outbox) -> bool {
        let mut outboxes = lock(&self.outboxes);
        let is_over = outbox.is_over(&self.config);
        if is_over {
            outboxes.remove(address);
        }
        is_over
    }
}

/// Keeps the stream of an outbox and asks after unanswered messages, until nobody uses it any more.
async fn tend(shared: Arc<Shared>, name: String, address: Address, outbox: Arc<Outbox>) {
    let stream = dial::keep_stream(&address, &outbox, &shared.config, &shared.tally);
    let ask = async {
        while !shared.retire(&name, &outbox) {
            tokio::time::sleep(shared.config.probe).await;
            outbox.ask(shared.config.probe);
        }
    };
    tokio::select! { _ = stream => {} () = ask => {} }
}

#[derive(Clone)]
enum Route {
    Here,
    To(Arc<Outbox>),
    Nowhere(String),
}

/// One rank's view of one epoch.
struct View {
    shared: Arc<Shared>,
    epoch: Epoch,
    rank: Rank,
    routes: Vec<Route>,
    seat: Arc<Seat>,
}

impl Fabric for View {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.routes.len()
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn send(&self, to: Rank, tag: Tag, payload: Payload) -> Result<(), FabricError> {
        self.push(to, tag, &payload, true).map(|_| ())
    }

    fn try_send(&self, to: Rank, tag: Tag, payload: &Payload) -> Result<bool, FabricError> {
        self.push(to, tag, payload, false)
    }

    fn recv(&self, from: Rank, tag: Tag) -> Result<Payload, FabricError> {
        let config = &self.shared.config;
        let gone = || match self.routes.get(usize::from(from.0))? {
            Route::Here => None,
            Route::To(outbox) => outbox.gone(config.reconnect),
            Route::Nowhere(reason) => Some(reason.clone()),
        };
        self.seat.recv(from, tag, config.silence, gone)
    }
}

impl View {
    fn push(&self, to: Rank, tag: Tag, payload: &Payload, may_wait: bool) -> Result<bool, FabricError> {
        if self.seat.is_aborted() {
            return Err(FabricError::Aborted { epoch: self.epoch });
        }
        let link = LinkKey { epoch: self.epoch, from: self.rank, to };
        match self.routes.get(usize::from(to.0)) {
            Some(Route::Here) => self.shared.arrivals.hand(link, tag, payload.clone()).map(|()| true),
            Some(Route::To(outbox)) => {
                let is_queued = outbox.push(link, (tag, payload), &self.shared.config, may_wait)?;
                self.shared.tally.sent_bytes.add(if is_queued { payload.n_bytes() as u64 } else { 0 });
                Ok(is_queued)
            }
            Some(Route::Nowhere(reason)) => Err(FabricError::PeerGone { peer: to, reason: reason.clone() }),
            None => Err(self.seat.no_such_rank(to)),
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.shared.arrivals.leave(self.epoch, self.rank);
        self.shared.spare_if_busy();
        let mut left: Vec<&Arc<Outbox>> = Vec::new();
        for route in &self.routes {
            let Route::To(outbox) = route else { continue };
            if !left.iter().any(|other| Arc::ptr_eq(other, outbox)) {
                outbox.leave(self.epoch, self.rank);
                left.push(outbox);
            }
        }
    }
}
