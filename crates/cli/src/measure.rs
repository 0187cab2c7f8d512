//! What `bench` measures: kernels, a block and a decode on random weights, inside one warm process.
//!
//! Leaves out how results are shown. Every measurement warms up once, which is not counted.

pub(crate) mod link;
mod memory;
pub(crate) mod roofline;
pub(crate) mod scale;
pub(crate) mod step;

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Tensor;
use kernels::{Epilogue, Linear};
use model::Place;
use model::dit::{self, block::Block};
use model::seam::{WholePicture, WholeSequence};
use model::vae::{self, Decoder};
use model::weights::{Weights, random};
use plan::{DitSpec, ImageSize, KvCompress, LatentSize, LayerIdx, VaeSpec, flop};

/// Seconds of each run, and the arithmetic one run does.
#[derive(Debug, Clone)]
pub(crate) struct Measurement {
    /// In order of the runs.
    pub(crate) seconds: Vec<f64>,
    /// Floating-point operations of a run; 0 where they are not what is measured.
    pub(crate) flop: f64,
    /// Most memory in use during the runs over that before them, if the system tells.
    pub(crate) peak_bytes: Option<u64>,
}

impl Measurement {
    fn of(place: &Place, runs: usize, flop: f64, mut work: impl FnMut() -> Result<()>) -> Result<Self> {
        let mut run = || {
            work()?;
            Ok::<_, anyhow::Error>(place.wait()?)
        };
        run()?;
        let before = memory::restart_peak(place);
        let mut seconds = Vec::with_capacity(runs);
        for _ in 0..runs {
            let start = Instant::now();
            run()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let peak_bytes = before.and_then(|before| Some(memory::peak(place)?.saturating_sub(before)));
        Ok(Self { seconds, flop, peak_bytes })
    }

    /// Middle of the runs.
    pub(crate) fn median(&self) -> f64 {
        median(&self.seconds)
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Random rows of a shape, where they are needed. A GPU gets a few thousand over and over: making tens of millions takes
/// longer than what is measured, and how fast it computes does not depend on them.
fn noise_on(place: &Place, shape: &[usize; 2]) -> Result<Tensor> {
    const ENOUGH: usize = 1 << 22;
    let [rows, width] = *shape;
    let period = if place.device().is_cpu() { rows } else { rows.min(ENOUGH / width + 1) };
    let some = place.take(&noise(&[period, width])?)?;
    if period == rows {
        return Ok(some);
    }
    let piece = |first: usize| some.narrow(0, 0, period.min(rows - first));
    let pieces = (0..rows).step_by(period).map(piece).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&pieces, 0)?)
}

/// Random values of a shape.
fn noise(shape: &[usize]) -> Result<Tensor> {
    let len: usize = shape.iter().product();
    let noise = model::noise::initial(1, LatentSize { rows: 4, cols: len.div_ceil(16) })?;
    Ok(noise.flatten_all()?.narrow(0, 0, len)?.reshape(shape)?)
}

/// Attention of `queries` over `keys`.
pub(crate) fn attention(
    place: &Place,
    queries: usize,
    keys: usize,
    heads: usize,
    head_width: usize,
    runs: usize,
) -> Result<Measurement> {
    let width = heads * head_width;
    let (q, k, v) =
        (noise_on(place, &[queries, width])?, noise_on(place, &[keys, width])?, noise_on(place, &[keys, width])?);
    let flop = 4.0 * queries as f64 * keys as f64 * width as f64;
    Measurement::of(place, runs, flop, || Ok(kernels::attention(&q, &k, &v, heads).map(drop)?))
}

/// A linear layer on `rows` rows.
pub(crate) fn linear(place: &Place, rows: usize, inputs: usize, outputs: usize, runs: usize) -> Result<Measurement> {
    let layer = Linear::new(&noise_on(place, &[outputs, inputs])?, None)?;
    let x = noise_on(place, &[rows, inputs])?;
    let flop = 2.0 * rows as f64 * inputs as f64 * outputs as f64;
    Measurement::of(place, runs, flop, || Ok(layer.forward(&x, Epilogue::None).map(drop)?))
}

/// A copy of `bytes` bytes, on a CPU shared among all threads; read and written bytes over seconds is the bandwidth.
pub(crate) fn copy(place: &Place, bytes: usize, runs: usize) -> Result<Measurement> {
    use rayon::prelude::*;
    #[cfg(feature = "cuda")]
    if !place.device().is_cpu() {
        // Into memory that is there: mapping new memory is not what is measured.
        let made = || Tensor::zeros(bytes / 4, candle_core::DType::F32, place.device());
        let (from, to) = (made()?, made()?);
        return Measurement::of(place, runs, 0.0, || Ok(kernels::overwrite(&to, &from)?));
    }
    let from = vec![1f32; bytes / 4];
    let mut to = vec![0f32; bytes / 4];
    Measurement::of(place, runs, 0.0, || {
        to.par_chunks_mut(1 << 18).zip(from.par_chunks(1 << 18)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    })
}

/// One transformer block on `tokens` tokens in a grid as square as may be.
pub(crate) fn block(
    place: &Place,
    tokens: usize,
    heads: usize,
    head_width: usize,
    kv_ratio: usize,
    runs: usize,
) -> Result<Measurement> {
    let compress = KvCompress { ratio: kv_ratio, layers: [LayerIdx(0)].into() };
    let spec = DitSpec {
        depth: 1,
        heads,
        head_width,
        caption_width: 64,
        sample_cells: 128,
        interpolation: 2.0,
        kv_compress: (kv_ratio > 1).then_some(compress),
    };
    let (_dir, weights) = random_weights(&dit::manifest(&spec))?;
    let weights = weights.on(place.clone());
    let block = Block::load(&spec, LayerIdx(0), &weights)?;
    let rows = (1..=tokens.isqrt()).rev().find(|rows| tokens.is_multiple_of(*rows)).unwrap_or(1);
    let cols = tokens / rows;
    let width = spec.width();
    let x = noise_on(place, &[tokens, width])?;
    let modulation = noise(&[6 * width])?.to_vec1::<f32>()?;
    let caption = block.caption_keys(&noise_on(place, &[flop::CAPTION_TOKENS, width])?)?;
    let flop = flop::block(tokens, (rows / kv_ratio) * (cols / kv_ratio), width);
    Measurement::of(place, runs, flop, || {
        Ok(block.forward(&x, cols, &modulation, &caption, &mut WholeSequence).map(drop)?)
    })
}

/// A decode to a picture of `size`.
pub(crate) fn decode(place: &Place, size: ImageSize, spec: &VaeSpec, runs: usize) -> Result<Measurement> {
    let manifest: Vec<_> = vae::manifest(spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
    let (_dir, weights) = random_weights(&manifest)?;
    let weights = weights.on(place.clone());
    let decoder = Decoder::load(spec, &weights)?;
    drop(weights);
    let latent = size.latent(spec.factor());
    let latents = noise(&[4, latent.rows, latent.cols])?;
    Measurement::of(place, runs, flop::decode(spec, latent), || {
        let pixels = decoder.decode(&latents, &mut WholePicture, &mut |_| ControlFlow::Continue(()))?;
        drop(pixels);
        Ok(())
    })
}

fn random_weights(manifest: &[(String, Vec<usize>)]) -> Result<(tempfile::TempDir, Weights)> {
    let dir = tempfile::tempdir().context("make a temporary folder")?;
    random::write(dir.path(), manifest, 1).context("write random weights")?;
    let weights = Weights::open(dir.path(), "bench").map_err(|faults| anyhow::anyhow!(faults.join("; ")))?;
    Ok((dir, weights))
}
