//! Strong scaling: one worker of one thread against two that share the rows over loopback gRPC, in turn, with the
//! bytes compared.
//!
//! Both workers live in this process, each with a port of its own, so that every tensor crosses a socket.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use candle_core::Tensor;
use fabric::Fabric;
use fabric::grpc::{Port, PortConfig};
use model::dit::{self, Stage};
use model::seam::{WholePicture, WholeSequence};
use model::vae::{self, Decoder};
use parallel::{BandOfPixels, BandOfTokens, Link, Turn};
use plan::{Branch, DitSpec, Epoch, Exchange, ImageSize, Rank, RowRange, StepIdx, VaeSpec};
use rayon::ThreadPool;

use super::{CAPTION_TOKENS, noise, random_weights};

/// What two workers were measured to gain.
pub(crate) struct Scale {
    /// Seconds of one worker, run by run.
    pub(crate) one: Vec<f64>,
    /// Seconds of two, run by run.
    pub(crate) two: Vec<f64>,
    /// Share of its time a worker of two waited for tensors.
    pub(crate) wait_share: f64,
}

/// Blocks of XL/2 width over a square of tokens, both branches.
pub(crate) fn blocks(n_blocks: usize, n_tokens: usize, runs: usize) -> Result<Scale> {
    let spec = DitSpec {
        depth: n_blocks,
        heads: 16,
        head_width: 72,
        caption_width: 64,
        sample_cells: 128,
        interpolation: 2.0,
        kv_compress: None,
    };
    let (_dir, weights) = random_weights(&dit::manifest(&spec))?;
    let stage = Stage::new(&spec, 0..n_blocks, &weights)?;
    drop(weights);
    let cols = n_tokens.isqrt();
    ensure!(cols * cols == n_tokens && cols > 1, "{n_tokens} tokens are not a square of two rows or more");
    let x = noise(&[n_tokens, spec.width()])?;
    let modulation = noise(&[6 * spec.width()])?.to_vec1::<f32>()?;
    let caption = |share: f64| -> Result<_> {
        Ok(stage.caption_keys(&noise(&[CAPTION_TOKENS, spec.width()])?.affine(share, 0.0)?)?)
    };
    let captions = [caption(1.0)?, caption(0.5)?];
    let bands = [RowRange { start: 0, end: cols / 2 }, RowRange { start: cols / 2, end: cols }];
    let exchanges = Exchange::for_blocks(&spec, n_tokens, 2, plan::Pace::default());
    let pool = one_thread()?;
    let ports = Ports::bind()?;

    let one = || -> Result<Vec<Tensor>> {
        let forward = |caption| stage.forward(x.clone(), cols, &modulation, caption, &mut WholeSequence);
        pool.install(|| captions.iter().map(|caption| Ok(forward(caption)?)).collect())
    };
    let pools = [[one_thread()?, one_thread()?], [one_thread()?, one_thread()?]];
    let two = |epoch: Epoch| -> Result<(Vec<Tensor>, Duration)> {
        let rank = |rank: usize, fabric: Arc<dyn Fabric>| -> Result<(Vec<Tensor>, Duration)> {
            let (link, turn) = (Link::new(&*fabric), Turn::default());
            let band = bands[rank];
            let part = x.narrow(0, band.start * cols, band.n_rows() * cols)?.force_contiguous()?;
            let group = [Rank(0), Rank(1)];
            let branch = |branch: Branch, pool: &ThreadPool| -> Result<Tensor> {
                pool.install(|| {
                    let mut ctx = BandOfTokens {
                        link: &link,
                        group: &group,
                        bands: &bands,
                        exchanges: &exchanges,
                        step: StepIdx(0),
                        branch,
                        turn: turn.take(),
                    };
                    Ok(stage.forward(part.clone(), cols, &modulation, &captions[branch as usize], &mut ctx)?)
                })
            };
            let made = std::thread::scope(|scope| {
                let branch = &branch;
                let both = Branch::BOTH.iter().zip(&pools[rank]);
                let threads: Vec<_> = both.map(|(of, pool)| scope.spawn(move || branch(*of, pool))).collect();
                let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Tensor>>| {
                    thread.join().map_err(|_| anyhow!("a branch's thread died"))?
                };
                threads.into_iter().map(join).collect::<Result<Vec<_>>>()
            });
            Ok((made?, turn.computed()))
        };
        let parts = ports.both(epoch, rank)?;
        let [(upper, computed), (lower, _)] = parts;
        let whole = upper.iter().zip(&lower).map(|(upper, lower)| Ok(Tensor::cat(&[upper, lower], 0)?));
        Ok((whole.collect::<Result<_>>()?, computed))
    };
    in_turn(runs, one, two)
}

/// A decode with SDXL's widths.
pub(crate) fn decode(size: ImageSize, runs: usize) -> Result<Scale> {
    let spec = VaeSpec::sdxl_family(&[128, 256, 512, 512], 2, 32);
    let manifest: Vec<_> = vae::manifest(&spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
    let (_dir, weights) = random_weights(&manifest)?;
    let decoder = Decoder::load(&spec, &weights)?;
    drop(weights);
    let latent = size.latent(spec.factor());
    ensure!(latent.rows > 1, "a decode of one row cannot be shared");
    let latents = noise(&[4, latent.rows, latent.cols])?;
    let middle = latent.rows / 2;
    let bands = [RowRange { start: 0, end: middle }, RowRange { start: middle, end: latent.rows }];
    let pool = one_thread()?;
    let pools = [one_thread()?, one_thread()?];
    let ports = Ports::bind()?;
    let go_on = |_| ControlFlow::Continue(());
    let one = || -> Result<Vec<Tensor>> {
        Ok(vec![pool.install(|| decoder.decode(&latents, &mut WholePicture, &mut { go_on }))?])
    };
    let two = |epoch: Epoch| -> Result<(Vec<Tensor>, Duration)> {
        let parts = ports.both(epoch, |rank, fabric| {
            let (link, turn) = (Link::new(&*fabric), Turn::default());
            let part = latents.narrow(1, bands[rank].start, bands[rank].n_rows())?.force_contiguous()?;
            let pixels = pools[rank].install(|| {
                let mut rows = BandOfPixels::new(&link, vec![Rank(0), Rank(1)], turn.take());
                decoder.decode(&part, &mut rows, &mut { go_on })
            })?;
            Ok((pixels, turn.computed()))
        })?;
        let [(upper, computed), (lower, _)] = parts;
        Ok((vec![Tensor::cat(&[upper, lower], 0)?], computed))
    };
    in_turn(runs, one, two)
}

/// Two workers' ports.
struct Ports([Port; 2]);

impl Ports {
    fn bind() -> Result<Self> {
        let port = || Port::bind("http://127.0.0.1:0", PortConfig::default());
        Ok(Self([port()?, port()?]))
    }

    /// Runs both ranks of an epoch, each on a thread of its own.
    fn both<T: Send>(&self, epoch: Epoch, rank: impl Fn(usize, Arc<dyn Fabric>) -> Result<T> + Sync) -> Result<[T; 2]> {
        let peers: Vec<String> = self.0.iter().map(|port| port.address().to_owned()).collect();
        let (first, second) = std::thread::scope(|scope| {
            let open = |idx: usize| self.0[idx].open(epoch, 1, Rank(idx as u16), peers.clone());
            let (first, second) = (open(0), open(1));
            let rank = &rank;
            let other = scope.spawn(move || rank(1, second));
            (rank(0, first), other.join())
        });
        Ok([first?, second.map_err(|_| anyhow!("a rank's thread died"))??])
    }
}

fn one_thread() -> Result<ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(1).build()?)
}

/// One, two, one, two, …; the first of each warms up and is not counted.
fn in_turn(
    runs: usize,
    one: impl Fn() -> Result<Vec<Tensor>>,
    two: impl Fn(Epoch) -> Result<(Vec<Tensor>, Duration)>,
) -> Result<Scale> {
    let mut scale = Scale { one: Vec::new(), two: Vec::new(), wait_share: 0.0 };
    let (mut computed, mut elapsed) = (0.0, 0.0);
    for run in 0..=runs {
        let start = Instant::now();
        let whole = one()?;
        let seconds_of_one = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let (shared, computed_now) = two(Epoch(run as u64 + 1))?;
        let seconds_of_two = start.elapsed().as_secs_f64();
        for (whole, shared) in whole.iter().zip(&shared) {
            let bits =
                |x: &Tensor| kernels::with_values(x, |values| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
            ensure!(bits(whole)? == bits(shared)?, "two workers gave other bits than one");
        }
        if run > 0 {
            scale.one.push(seconds_of_one);
            scale.two.push(seconds_of_two);
            computed += computed_now.as_secs_f64();
            elapsed += seconds_of_two;
        }
    }
    scale.wait_share = 1.0 - computed / elapsed;
    Ok(scale)
}
