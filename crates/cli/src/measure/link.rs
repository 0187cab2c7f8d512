//! The link between two ranks in two processes: tensors one way, tensors both ways, and empty exchanges.
//!
//! Rank 0 leads: it says over a line of its own ([`control`]) what comes next, and both ends play their part of it.
//! What is timed are sends and receives alone; every value is compared before the clock runs.

pub(crate) mod control;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use fabric::collective::all_gather;
use fabric::grpc::{Port, PortConfig};
use fabric::{Fabric, Payload, Tag};
use plan::{Epoch, Rank};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use control::{Control, Line};

/// Bytes of one number.
pub(crate) const VALUE_BYTES: usize = size_of::<f32>();
/// About how much one run carries.
const RUN_BYTES: usize = 1 << 30;
/// One tensor of this many is sent before the clock runs: connections and memory are as they are in the midst of a
/// picture then.
const WARM_UP_SHARE: usize = 4;
/// While the clock runs, one value of this many is compared.
const SAMPLE_STEP: usize = 4096;
/// Tags of what both ranks gather; those below are of single sends.
const GATHERED: u64 = 1 << 32;
const IMAGE: u64 = 1;

/// What two ranks do together.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Exercise {
    /// Tensors from rank 0 to rank 1.
    Stream { bytes: usize, count: usize },
    /// Both ranks gather each other's tensor, again and again.
    Gather { bytes: usize, count: usize },
    /// An empty tensor to rank 1, and one back.
    Trips { count: usize },
}

/// Medians of what a link carried.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) sizes: Vec<Size>,
    pub(crate) round_trip: RoundTrip,
    pub(crate) runs: usize,
}

/// Tensors of one size.
#[derive(Debug, Serialize)]
pub(crate) struct Size {
    pub(crate) bytes: usize,
    /// One way, in 10⁹ bytes a second.
    pub(crate) stream_gb_per_s: f64,
    /// Processor time of both ends for 10⁹ bytes one way, in seconds.
    pub(crate) stream_cpu_s_per_gb: f64,
    /// What each of two ranks receives while they gather, in 10⁹ bytes a second.
    pub(crate) all_gather_gb_per_s: f64,
}

/// An empty exchange, there and back.
#[derive(Debug, Serialize)]
pub(crate) struct RoundTrip {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// Measures the link to whoever follows at the other end of `control`.
pub(crate) fn lead(control: &mut Control, sizes: &[usize], runs: usize, trips: usize) -> Result<Measured> {
    let mut pair = Pair::meet(control, Rank(0))?;
    let mut streams = vec![Vec::new(); sizes.len()];
    let mut cpu = vec![Vec::new(); sizes.len()];
    let mut gathers = vec![Vec::new(); sizes.len()];
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        for (idx, &bytes) in sizes.iter().enumerate() {
            let count = (RUN_BYTES / bytes).max(4);
            let gb = (bytes * count) as f64 / 1e9;
            let (own, others_cpu_s) = pair.order(control, Exercise::Stream { bytes, count })?;
            streams[idx].push(gb / own.total_s());
            cpu[idx].push((own.cpu_s + others_cpu_s) / gb);
            let (own, _) = pair.order(control, Exercise::Gather { bytes, count })?;
            gathers[idx].push(gb / own.total_s());
        }
        let (own, _) = pair.order(control, Exercise::Trips { count: trips })?;
        p50.push(quantile(&own.seconds, 0.5) * 1e6);
        p99.push(quantile(&own.seconds, 0.99) * 1e6);
    }
    let median = |values: &[f64]| quantile(values, 0.5);
    let size = |(idx, &bytes): (usize, &usize)| Size {
        bytes,
        stream_gb_per_s: median(&streams[idx]),
        stream_cpu_s_per_gb: median(&cpu[idx]),
        all_gather_gb_per_s: median(&gathers[idx]),
    };
    let sizes = sizes.iter().enumerate().map(size).collect();
    Ok(Measured { sizes, round_trip: RoundTrip { p50_us: median(&p50), p99_us: median(&p99) }, runs })
}

/// Plays rank 1 for as long as the other end leads.
pub(crate) fn follow(control: &mut Control) -> Result<()> {
    let mut pair = Pair::meet(control, Rank(1))?;
    while let Some(line) = control.read()? {
        let Line::Play { epoch, exercise } = line else { bail!("{line:?} was said where an exercise was expected") };
        let played = match pair.play(Epoch(epoch), exercise) {
            Ok(played) => Line::Played { cpu_s: played.cpu_s },
            Err(error) => Line::Failed { reason: format!("{error:#}") },
        };
        control.write(&played)?;
    }
    Ok(())
}

/// One end of a link.
struct Pair {
    port: Port,
    rank: Rank,
    peers: Vec<String>,
    epoch: Epoch,
}

impl Pair {
    /// Binds a port and learns where the other end's is.
    fn meet(control: &mut Control, rank: Rank) -> Result<Self> {
        let port = Port::bind(&control.port_address(), PortConfig::default()).context("bind the link's port")?;
        let own = port.address().to_owned();
        control.write(&Line::Hello { version: env!("CARGO_PKG_VERSION").to_owned(), port: own.clone() })?;
        let (version, other) = match control.read()? {
            Some(Line::Hello { version, port }) => (version, port),
            said => bail!("the other end said {said:?}, not where its port is: is it `fresco bench link`?"),
        };
        ensure!(
            version == env!("CARGO_PKG_VERSION"),
            "the other end is fresco {version}, not {}",
            env!("CARGO_PKG_VERSION")
        );
        let peers = if rank == Rank(0) { vec![own, other] } else { vec![other, own] };
        Ok(Self { port, rank, peers, epoch: Epoch(0) })
    }

    /// Plays an exercise with the other end. Returns what was timed here, and the other end's processor time.
    fn order(&mut self, control: &mut Control, exercise: Exercise) -> Result<(Played, f64)> {
        let epoch = Epoch(self.epoch.0 + 1);
        control.write(&Line::Play { epoch: epoch.0, exercise })?;
        let played = self.play(epoch, exercise)?;
        match control.read()? {
            Some(Line::Played { cpu_s }) => Ok((played, cpu_s)),
            Some(Line::Failed { reason }) => bail!("the other end failed: {reason}"),
            said => bail!("the other end said {said:?} after an exercise"),
        }
    }

    fn play(&mut self, epoch: Epoch, exercise: Exercise) -> Result<Played> {
        self.epoch = epoch;
        let fabric = self.port.open(epoch, IMAGE, self.rank, self.peers.clone());
        let mut end = End { fabric, other: Rank(1 - self.rank.0), n_sent: 0, n_received: 0 };
        match exercise {
            Exercise::Stream { bytes, count } => end.stream(bytes, count),
            Exercise::Gather { bytes, count } => end.gather(bytes, count),
            Exercise::Trips { count } => end.trips(count),
        }
        .with_context(|| format!("{exercise:?}"))
    }
}

/// What one end timed.
struct Played {
    /// Of each part: a round trip, or all there was to carry.
    seconds: Vec<f64>,
    /// This process's processor time.
    cpu_s: f64,
}

impl Played {
    fn total_s(&self) -> f64 {
        self.seconds.iter().sum()
    }
}

/// One rank of an exercise.
struct End {
    fabric: Arc<dyn Fabric>,
    other: Rank,
    n_sent: u64,
    n_received: u64,
}

impl End {
    fn stream(&mut self, bytes: usize, count: usize) -> Result<Played> {
        let (tensor, n_warm_up) = (Tensor::new(Rank(0), bytes), count / WARM_UP_SHARE);
        if self.fabric.rank() == Rank(0) {
            (0..n_warm_up).try_for_each(|_| self.send(tensor.payload.clone()))?;
            self.timed(|end| {
                (0..count).try_for_each(|_| end.send(tensor.payload.clone()))?;
                end.recv().map(drop)
            })
        } else {
            (0..n_warm_up).try_for_each(|_| tensor.check_all(&self.recv()?))?;
            self.timed(|end| {
                (0..count).try_for_each(|_| tensor.check_some(&end.recv()?))?;
                end.send(empty())
            })
        }
    }

    fn gather(&mut self, bytes: usize, count: usize) -> Result<Played> {
        let group = [Rank(0), Rank(1)];
        let tensors = group.map(|rank| Tensor::new(rank, bytes));
        let (own, others) = (usize::from(self.fabric.rank().0), usize::from(self.other.0));
        let fabric = self.fabric.clone();
        let gather =
            |idx: usize| all_gather(&*fabric, Tag(GATHERED + idx as u64), &group, tensors[own].payload.clone());
        let n_warm_up = count / WARM_UP_SHARE;
        for idx in 0..n_warm_up {
            for (tensor, gathered) in tensors.iter().zip(gather(idx)?) {
                tensor.check_all(&gathered)?;
            }
        }
        self.timed(|_| {
            (n_warm_up..n_warm_up + count).try_for_each(|idx| tensors[others].check_some(&gather(idx)?[others]))
        })
    }

    fn trips(&mut self, count: usize) -> Result<Played> {
        let mut seconds = Vec::with_capacity(count);
        let is_first = self.fabric.rank() == Rank(0);
        let played = self.timed(|end| {
            for _ in 0..count {
                let start = Instant::now();
                if is_first {
                    end.send(empty())?;
                    end.recv()?;
                } else {
                    end.recv()?;
                    end.send(empty())?;
                }
                seconds.push(start.elapsed().as_secs_f64());
            }
            Ok(())
        })?;
        Ok(Played { seconds, ..played })
    }

    /// Times what both ends begin together.
    fn timed(&mut self, play: impl FnOnce(&mut Self) -> Result<()>) -> Result<Played> {
        self.send(empty())?;
        self.recv()?;
        let (start, cpu_s) = (Instant::now(), cpu_s());
        play(self)?;
        Ok(Played { seconds: vec![start.elapsed().as_secs_f64()], cpu_s: self::cpu_s() - cpu_s })
    }

    fn send(&mut self, payload: Payload) -> Result<()> {
        self.n_sent += 1;
        Ok(self.fabric.send(self.other, Tag(self.n_sent), payload)?)
    }

    fn recv(&mut self) -> Result<Payload> {
        self.n_received += 1;
        Ok(self.fabric.recv(self.other, Tag(self.n_received))?)
    }
}

fn empty() -> Payload {
    Payload::F32(Arc::default())
}

/// Numbers of which either end knows what they are.
struct Tensor {
    values: Arc<Vec<f32>>,
    payload: Payload,
}

impl Tensor {
    fn new(rank: Rank, bytes: usize) -> Self {
        let value = |idx: usize| (idx % 65_521 + usize::from(rank.0)) as f32;
        let values: Arc<Vec<f32>> = Arc::new((0..bytes / VALUE_BYTES).map(value).collect());
        Self { payload: Payload::F32(values.clone()), values }
    }

    fn check_all(&self, came: &Payload) -> Result<()> {
        self.check(came, 1)
    }

    fn check_some(&self, came: &Payload) -> Result<()> {
        self.check(came, SAMPLE_STEP)
    }

    fn check(&self, came: &Payload, step: usize) -> Result<()> {
        let Payload::F32(came) = came else { bail!("something else than f32 values came") };
        let is_equal = || came.iter().step_by(step).eq(self.values.iter().step_by(step));
        ensure!(came.len() == self.values.len() && is_equal(), "other values came than were sent");
        Ok(())
    }
}

/// Processor time of this process so far, all threads, in the system too.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The value below which a share of all lie.
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let idx = (sorted.len() as f64 * share) as usize;
    sorted.get(idx.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
