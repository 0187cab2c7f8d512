//! Strong scaling: one worker of one thread against two over loopback gRPC, in turn, with the bytes compared.
//!
//! Both workers live in this process, each with a port of its own, so that every tensor crosses a socket; only
//! `scale/memory.rs` gives each a process. What is shared is in `scale/blocks.rs` and `scale/decode.rs`.

pub(crate) mod blocks;
pub(crate) mod decode;
pub(crate) mod memory;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use candle_core::Tensor;
use fabric::Fabric;
use fabric::grpc::{Port, PortConfig};
use plan::{Epoch, Rank};
use rayon::ThreadPool;

/// What two workers were measured to gain.
pub(crate) struct Scale {
    /// How the work was shared.
    pub(crate) what: String,
    /// Seconds of one worker, run by run.
    pub(crate) one: Vec<f64>,
    /// Seconds of two, run by run.
    pub(crate) two: Vec<f64>,
    /// How often two did the work that one did once.
    pub(crate) n_copies: usize,
    /// Share of its time a worker of two waited for tensors; none where nothing is exchanged.
    pub(crate) wait_share: Option<f64>,
}

/// A way to do with two workers what one does.
struct Way<'a> {
    what: String,
    run: &'a dyn Fn(Epoch) -> Result<Shared>,
}

/// What two workers made.
struct Shared {
    /// All that one worker makes, as often as it was made.
    copies: Vec<Vec<Tensor>>,
    /// How long each worker computed, where they exchange anything.
    computed: Option<[Duration; 2]>,
}

/// Two workers' ports.
struct Ports([Port; 2]);

impl Ports {
    fn bind() -> Result<Self> {
        Ok(Self([bind()?, bind()?]))
    }

    /// Runs both ranks of an epoch, each on a thread of its own.
    fn both<T: Send>(&self, epoch: Epoch, rank: impl Fn(usize, Arc<dyn Fabric>) -> Result<T> + Sync) -> Result<[T; 2]> {
        let peers: Vec<String> = self.0.iter().map(|port| port.address().to_owned()).collect();
        let open = |idx: usize| self.0[idx].open(epoch, 1, Rank(idx as u16), peers.clone());
        let fabrics = [open(0), open(1)];
        at_once(|idx| rank(idx, Arc::clone(&fabrics[idx]) as Arc<dyn Fabric>))
    }
}

fn bind() -> Result<Port> {
    Ok(Port::bind("http://127.0.0.1:0", PortConfig::default())?)
}

/// Runs `work` of 0 and 1 side by side.
fn at_once<T: Send>(work: impl Fn(usize) -> Result<T> + Sync) -> Result<[T; 2]> {
    let (first, second) = std::thread::scope(|scope| {
        let other = scope.spawn(|| work(1));
        (work(0), other.join())
    });
    Ok([first?, second.map_err(|_| anyhow!("a rank's thread died"))??])
}

fn one_thread() -> Result<ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(1).build()?)
}

/// One worker, then two in each way, again and again; the first round warms up and is not counted.
fn in_turn(runs: usize, one: impl Fn() -> Result<Vec<Tensor>>, ways: &[Way<'_>]) -> Result<Vec<Scale>> {
    let mut seconds_of_one = Vec::new();
    let mut measured: Vec<(Vec<f64>, Option<f64>, usize)> = ways.iter().map(|_| (Vec::new(), None, 1)).collect();
    for run in 0..=runs {
        let start = Instant::now();
        let whole = one()?;
        let seconds = start.elapsed().as_secs_f64();
        if run > 0 {
            seconds_of_one.push(seconds);
        }
        for (idx, (way, (seconds_of_two, waited, n_copies))) in ways.iter().zip(&mut measured).enumerate() {
            let start = Instant::now();
            let shared = (way.run)(Epoch((run * ways.len() + idx) as u64 + 1))?;
            let seconds = start.elapsed().as_secs_f64();
            for (whole, shared) in shared.copies.iter().flat_map(|copy| whole.iter().zip(copy)) {
                ensure!(bits(whole)? == bits(shared)?, "{}: two workers gave other bits than one", way.what);
            }
            *n_copies = shared.copies.len();
            if run > 0 {
                seconds_of_two.push(seconds);
                let computed = shared.computed.map(|both| both.iter().map(Duration::as_secs_f64).sum::<f64>() / 2.0);
                *waited = computed.map(|computed| waited.unwrap_or(0.0) + seconds - computed);
            }
        }
    }
    let scale = |(way, (two, waited, n_copies)): (&Way<'_>, (Vec<f64>, Option<f64>, usize))| Scale {
        what: way.what.clone(),
        one: seconds_of_one.clone(),
        wait_share: waited.map(|waited| waited / two.iter().sum::<f64>()),
        two,
        n_copies,
    };
    Ok(ways.iter().zip(measured).map(scale).collect())
}

fn bits(x: &Tensor) -> Result<Vec<u32>> {
    Ok(kernels::with_values(x, |values| values.iter().map(|value| value.to_bits()).collect())?)
}
