//! Operations on single token rows: layer norm with what follows it, and the compression of keys and values.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::{output, with_values};
#[cfg(feature = "cuda")]
use crate::cuda::{device::on_gpu, ops};
use crate::simd::{LANES, Simd, dispatch};

/// Rows a task takes.
const TASK_ROWS: usize = 32;

/// `LN(x)·(1 + scale) + shift` on `x` `[rows, width]`: layer norm without weights of its own, then adaLN's
/// modulation (arXiv:2212.09748, section 3.2).
///
/// `shift`, `scale`: one value a channel. `eps` is added to the variance.
///
/// # Errors
/// If shapes do not fit, or `x` is not contiguous f32 on the CPU.
pub fn layer_norm_modulate(x: &Tensor, shift: &[f32], scale: &[f32], eps: f32) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    if shift.len() != width || scale.len() != width || width == 0 {
        bail!("modulation of {} and {} channels on rows of {width}", shift.len(), scale.len());
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = on_gpu(x) {
        return ops::layer_norm_modulate(&device, x, shift, scale, eps);
    }
    let weight: Vec<f32> = scale.iter().map(|scale| 1.0 + scale).collect();
    let mut out = output(&[rows, width])?;
    with_values(x, |x| {
        out.par_chunks_mut(TASK_ROWS * width)
            .zip(x.par_chunks(TASK_ROWS * width))
            .for_each(|(out, x)| layer_norm_rows(x, out, width, &weight, shift, eps));
    })?;
    Tensor::from_vec(out, (rows, width), x.device())
}

dispatch! {
    /// Layer norm of each row of `x` into `out`, times `weight`, plus `bias`.
    fn layer_norm_rows(x: &[f32], out: &mut [f32], width: usize, weight: &[f32], bias: &[f32], eps: f32) = layer_norm_rows_with
}

#[inline(always)]
unsafe fn layer_norm_rows_with<S: Simd>(
    x: &[f32],
    out: &mut [f32],
    width: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
) {
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        // SAFETY: every access is of at most the lanes left in the row, and all rows are `width` long.
        unsafe {
            let mut sum = S::splat(0.0);
            for col in (0..width).step_by(LANES) {
                sum = S::add(sum, S::load_first(x[col..].as_ptr(), LANES.min(width - col)));
            }
            let mean = S::sum(sum) / width as f32;
            let mut squares = S::splat(0.0);
            for col in (0..width).step_by(LANES) {
                let n = LANES.min(width - col);
                // Lanes behind the row's end must add nothing, so they hold the mean before it is taken off.
                let mut lanes = [mean; LANES];
                std::ptr::copy_nonoverlapping(x[col..].as_ptr(), lanes.as_mut_ptr(), n);
                let d = S::sub(S::load(lanes.as_ptr()), S::splat(mean));
                squares = S::fma(d, d, squares);
            }
            let inverse = 1.0 / (S::sum(squares) / width as f32 + eps).sqrt();
            for col in (0..width).step_by(LANES) {
                let n = LANES.min(width - col);
                let d = S::sub(S::load_first(x[col..].as_ptr(), n), S::splat(mean));
                let normal = S::mul(d, S::splat(inverse));
                let weight = S::load_first(weight[col..].as_ptr(), n);
                let y = S::fma(normal, weight, S::load_first(bias[col..].as_ptr(), n));
                S::store_first(out[col..].as_mut_ptr(), n, y);
            }
        }
    }
}

/// Compression of keys or values: a depth-wise convolution of kernel and stride `ratio` over the token grid,
/// then layer norm (arXiv:2403.04692, section 3.3; the same weights serve keys and values).
pub struct Compress {
    ratio: usize,
    width: usize,
    /// `[ratio · ratio][width]`: a tap's weights lie together.
    pub(crate) taps: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) norm_weight: Vec<f32>,
    pub(crate) norm_bias: Vec<f32>,
    #[cfg(feature = "cuda")]
    on_gpu: Option<ops::CompressLayer>,
}

/// PyTorch's default, which the reference uses for this norm alone.
const COMPRESS_EPS: f32 = 1e-5;

impl Compress {
    /// From the convolution's `weight` `[width, 1, ratio, ratio]` and `bias`, and the norm's; on the device of `weight`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn new(weight: &Tensor, bias: &Tensor, norm_weight: &Tensor, norm_bias: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let device = on_gpu(weight);
        let (width, depth, ratio, ratio_across) = weight.dims4()?;
        if (depth, ratio) != (1, ratio_across) || width == 0 || ratio == 0 {
            bail!("no square depth-wise convolution: weight {:?}", weight.dims());
        }
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let n_taps = ratio * ratio;
        let taps: Vec<f32> = (0..n_taps * width).map(|i| weight[i % width * n_taps + i / width]).collect();
        let vector = |tensor: &Tensor| tensor.to_vec1::<f32>();
        let (bias, norm_weight, norm_bias) = (vector(bias)?, vector(norm_weight)?, vector(norm_bias)?);
        if [&bias, &norm_weight, &norm_bias].iter().any(|vector| vector.len() != width) {
            bail!("compression of {width} channels with vectors of another length");
        }
        #[cfg(feature = "cuda")]
        let on_gpu = device
            .map(|device| ops::CompressLayer::new(&device, [&taps, &bias, &norm_weight, &norm_bias]))
            .transpose()?;
        Ok(Self {
            ratio,
            width,
            taps,
            bias,
            norm_weight,
            norm_bias,
            #[cfg(feature = "cuda")]
            on_gpu,
        })
    }

    /// Kernel and stride.
    pub fn ratio(&self) -> usize {
        self.ratio
    }

    /// `x` `[rows · cols, width]`, tokens of whole rows, to `[⌊rows/R⌋ · ⌊cols/R⌋, width]`.
    ///
    /// A last row or column that does not fill a kernel is dropped, as in the reference.
    ///
    /// # Errors
    /// If `x` does not hold whole rows of `cols` tokens.
    pub fn forward(&self, x: &Tensor, cols: usize) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        if width != self.width || cols == 0 || tokens % cols != 0 {
            bail!("compression of {tokens} tokens of {width} channels in rows of {cols}");
        }
        #[cfg(feature = "cuda")]
        if let (Some(layer), Some(device)) = (&self.on_gpu, on_gpu(x)) {
            return layer.forward(&device, x, cols, self.ratio, COMPRESS_EPS);
        }
        let (out_rows, out_cols) = (tokens / cols / self.ratio, cols / self.ratio);
        let mut out = output(&[out_rows, out_cols, width])?;
        with_values(x, |x| {
            out.par_chunks_mut((out_cols * width).max(1)).enumerate().for_each(|(row, out)| {
                compress_row(self, &x[row * self.ratio * cols * width..], cols, out);
            });
        })?;
        Tensor::from_vec(out, (out_rows * out_cols, width), x.device())
    }
}

dispatch! {
    /// One row of compressed tokens from `ratio` rows of `cols` tokens.
    fn compress_row(op: &Compress, x: &[f32], cols: usize, out: &mut [f32]) = compress_row_with
}

#[inline(always)]
unsafe fn compress_row_with<S: Simd>(op: &Compress, x: &[f32], cols: usize, out: &mut [f32]) {
    let width = op.width;
    let mut token = vec![0f32; width];
    for (out_col, out) in out.chunks_exact_mut(width).enumerate() {
        for col in (0..width).step_by(LANES) {
            let n = LANES.min(width - col);
            // SAFETY: the slices are checked, and hold `n` values from where they start.
            unsafe {
                let mut sum = S::load_first(op.bias[col..].as_ptr(), n);
                for tap in 0..op.ratio * op.ratio {
                    let (dy, dx) = (tap / op.ratio, tap % op.ratio);
                    let from = (dy * cols + out_col * op.ratio + dx) * width + col;
                    let value = S::load_first(x[from..].as_ptr(), n);
                    sum = S::fma(value, S::load_first(op.taps[tap * width + col..].as_ptr(), n), sum);
                }
                S::store_first(token[col..].as_mut_ptr(), n, sum);
            }
        }
        // SAFETY: one row of `width` in, one out.
        unsafe { layer_norm_rows_with::<S>(&token, out, width, &op.norm_weight, &op.norm_bias, COMPRESS_EPS) };
    }
}
