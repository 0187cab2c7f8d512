//! Group norm in two parts, so that bands of a picture can share their moments: partial moments of blocks of
//! rows, and the affine map of each channel that the folded moments give.
//!
//! A partial is always of the same block of rows wherever a picture is cut, and partials are folded in row
//! order, so the statistics of a cut picture are those of the whole, to the bit.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::{output, with_values};
#[cfg(feature = "cuda")]
use crate::cuda::{device::on_gpu, ops};
use crate::simd::{LANES, Simd, dispatch, silu};

/// Pixels whose sums are taken in f32 before they are folded into f64.
const CHUNK_PIXELS: usize = 64;

/// Count, mean and sum of squared deviations of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// How many values.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// Sum of squared deviations from the mean.
    pub m2: f64,
}

impl Moments {
    const NONE: Self = Self { count: 0.0, mean: 0.0, m2: 0.0 };

    /// The moments of both sets of values (Chan, Golub, LeVeque 1979, equation 2.1).
    fn fold(self, other: Self) -> Self {
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * (other.count / count),
            m2: self.m2 + other.m2 + delta * delta * (self.count * other.count / count),
        }
    }
}

/// Moments of each group of channels in each block of `block_rows` rows of `pieces`, `[rows, cols, channels]` each, which
/// follow each other: `[blocks][groups]`.
///
/// # Errors
/// If blocks or groups do not divide a piece evenly, or one is not contiguous f32 on the CPU, or f32 or bf16 on a GPU.
pub fn moments(pieces: &[Tensor], groups: usize, block_rows: usize) -> Result<Vec<Moments>> {
    for x in pieces {
        let (rows, cols, channels) = x.dims3()?;
        if [block_rows, groups, cols, channels].contains(&0) || rows % block_rows != 0 || channels % groups != 0 {
            bail!("moments of {rows} rows in blocks of {block_rows}, {channels} channels in {groups} groups");
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = pieces.first().and_then(on_gpu) {
        return ops::moments(&device, pieces, groups, block_rows);
    }
    let mut all = Vec::new();
    for x in pieces {
        let (rows, cols, channels) = x.dims3()?;
        let mut of_piece = vec![Moments::NONE; rows / block_rows * groups];
        with_values(x, |x| {
            of_piece.par_chunks_mut(groups).zip(x.par_chunks(block_rows * cols * channels)).for_each(|(out, x)| {
                let mut of_channels = vec![Moments::NONE; channels];
                for row in x.chunks_exact(cols * channels) {
                    fold_row(row, &mut of_channels);
                }
                for (out, channels) in out.iter_mut().zip(of_channels.chunks_exact(channels / groups)) {
                    *out = channels.iter().fold(Moments::NONE, |sum, channel| sum.fold(*channel));
                }
            });
        })?;
        all.append(&mut of_piece);
    }
    Ok(all)
}

dispatch! {
    /// Folds one row of pixels into the moments of each channel.
    fn fold_row(row: &[f32], channels: &mut [Moments]) = fold_row_with
}

#[inline(always)]
unsafe fn fold_row_with<S: Simd>(row: &[f32], channels: &mut [Moments]) {
    let width = channels.len();
    for chunk in row.chunks(CHUNK_PIXELS * width) {
        let n_pixels = chunk.len() / width;
        for col in (0..width).step_by(LANES) {
            let n = LANES.min(width - col);
            let (mut means, mut squares) = ([0f32; LANES], [0f32; LANES]);
            // SAFETY: every pixel of the chunk has `n` channels from `col`.
            unsafe {
                let mut sum = S::splat(0.0);
                for pixel in 0..n_pixels {
                    sum = S::add(sum, S::load_first(chunk[pixel * width + col..].as_ptr(), n));
                }
                let mean = S::div(sum, S::splat(n_pixels as f32));
                let mut square = S::splat(0.0);
                for pixel in 0..n_pixels {
                    let d = S::sub(S::load_first(chunk[pixel * width + col..].as_ptr(), n), mean);
                    square = S::fma(d, d, square);
                }
                S::store(means.as_mut_ptr(), mean);
                S::store(squares.as_mut_ptr(), square);
            }
            for (lane, channel) in channels[col..col + n].iter_mut().enumerate() {
                let part =
                    Moments { count: n_pixels as f64, mean: f64::from(means[lane]), m2: f64::from(squares[lane]) };
                *channel = channel.fold(part);
            }
        }
    }
}

/// `x·scale + shift`, channel by channel: a group norm once its moments are known.
pub struct ChannelAffine {
    /// Factor of each channel.
    pub(crate) scale: Vec<f32>,
    /// Added to each channel; as many as there are factors.
    pub(crate) shift: Vec<f32>,
}

/// The map that normalises by `partials` (`[blocks][groups]`, in row order, of the whole picture) and then
/// applies the norm's own `weight` and `bias`.
///
/// The variance is biased (divided by n), as in the reference.
pub fn affine_of(partials: &[Moments], groups: usize, weight: &[f32], bias: &[f32], eps: f64) -> ChannelAffine {
    let per_group = weight.len() / groups;
    let (mut scale, mut shift) = (Vec::with_capacity(weight.len()), Vec::with_capacity(weight.len()));
    for group in 0..groups {
        let all = partials.iter().skip(group).step_by(groups).fold(Moments::NONE, |sum, part| sum.fold(*part));
        let inverse = 1.0 / (all.m2 / all.count + eps).sqrt();
        for channel in group * per_group..(group + 1) * per_group {
            let factor = inverse * f64::from(weight[channel]);
            scale.push(factor as f32);
            shift.push((f64::from(bias[channel]) - all.mean * factor) as f32);
        }
    }
    ChannelAffine { scale, shift }
}

/// `affine` applied to every pixel of `x` `[rows, cols, channels]`, giving token rows `[rows·cols, channels]`.
///
/// # Errors
/// If `x` is not contiguous f32 on the CPU or has other channels.
pub fn apply(x: &Tensor, affine: &ChannelAffine) -> Result<Tensor> {
    let (rows, cols, channels) = x.dims3()?;
    if channels != affine.scale.len() || [cols, channels].contains(&0) {
        bail!("a map of {} channels applied to {:?}", affine.scale.len(), x.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = on_gpu(x) {
        return ops::apply(&device, x, affine);
    }
    let mut out = output(&[rows, cols, channels])?;
    with_values(x, |x| {
        out.par_chunks_mut(cols * channels)
            .zip(x.par_chunks(cols * channels))
            .for_each(|(out, x)| apply_row(x, out, affine, false));
    })?;
    Tensor::from_vec(out, (rows * cols, channels), x.device())
}

dispatch! {
    /// `affine` applied to pixels, with SiLU behind it if `activate`.
    pub(crate) fn apply_row(x: &[f32], out: &mut [f32], affine: &ChannelAffine, activate: bool) = apply_row_with
}

#[inline(always)]
unsafe fn apply_row_with<S: Simd>(x: &[f32], out: &mut [f32], affine: &ChannelAffine, activate: bool) {
    let width = affine.scale.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        for col in (0..width).step_by(LANES) {
            let n = LANES.min(width - col);
            // SAFETY: pixels and map have `n` channels from `col`.
            unsafe {
                let scale = S::load_first(affine.scale[col..].as_ptr(), n);
                let shift = S::load_first(affine.shift[col..].as_ptr(), n);
                let mut y = S::fma(S::load_first(x[col..].as_ptr(), n), scale, shift);
                if activate {
                    y = silu::<S>(y);
                }
                S::store_first(out[col..].as_mut_ptr(), n, y);
            }
        }
    }
}
