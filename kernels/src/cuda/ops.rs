//! The crate's operations on tensors of a GPU: checks are done by the public face, the arithmetic by the kernels.

use candle_core::{CudaDevice, DType, Device, Result, Tensor, bail};

use super::device::{number_of, room, run, vector, with_addresses};
use super::job::{Affine, Attention, Compression, Finish, Finite, MAX_HEAD_WIDTH, Modulation, MomentsOf, Product};
use crate::conv::Halo;
use crate::group_norm::{ChannelAffine, Moments};
use crate::linear::Epilogue;

/// A linear layer's or a convolution's weights on a GPU.
pub(crate) struct Layer {
    /// `[phases · outputs, taps · channels]`, in the type computed in.
    weight: Tensor,
    /// f32.
    bias: Option<Tensor>,
    taps: usize,
    channels: usize,
    outputs: usize,
}

impl Layer {
    /// From `weight` as the kernel reads it and `bias`, which may lie on the CPU.
    pub(crate) fn new(weight: Tensor, bias: Option<&Tensor>, taps: usize) -> Result<Self> {
        let phases = if taps == 4 { 4 } else { 1 };
        let (lines, terms) = weight.dims2()?;
        let bias = bias.map(|bias| bias.to_device(weight.device())).transpose()?;
        Ok(Self { bias, taps, channels: terms / taps, outputs: lines / phases, weight: weight.contiguous()? })
    }

    /// `x` `[rows, inputs]` to `[rows, outputs]`.
    pub(crate) fn linear(&self, device: &CudaDevice, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let out = room((rows, self.outputs), number_of(x)?, device)?;
        let (finish, residual, gate) = match epilogue {
            Epilogue::None => (Finish::Plain, None, None),
            Epilogue::Gelu => (Finish::Gelu, None, None),
            Epilogue::Silu => (Finish::Silu, None, None),
            Epilogue::Onto { residual, gate } => {
                if residual.elem_count() != rows * self.outputs || gate.is_some_and(|gate| gate.len() != self.outputs) {
                    bail!(
                        "a residual of {:?} or its gate does not fit {rows} rows of {}",
                        residual.dims(),
                        self.outputs
                    );
                }
                (Finish::Onto, Some(residual), gate.map(|gate| vector(gate, device)).transpose()?)
            }
        };
        let picture = Picture { x, halo: &Halo::default(), norm: None, axes: (rows, 1) };
        self.run(device, &picture, finish, residual, gate.as_ref(), &out)?;
        Ok(out)
    }

    /// `x` `[rows, cols, channels]` to `[rows, cols, outputs]`, or twice as many rows and columns; added to `onto` `[rows,
    /// cols, outputs]` in its place if there is one.
    pub(crate) fn convolve(
        &self,
        device: &CudaDevice,
        x: &Tensor,
        halo: &Halo,
        norm: Option<&ChannelAffine>,
        onto: Option<Tensor>,
    ) -> Result<Tensor> {
        let (rows, cols, channels) = x.dims3()?;
        if channels != self.channels || cols == 0 || norm.is_some_and(|norm| norm.scale.len() != channels) {
            bail!("a convolution of {} channels was given {:?}", self.channels, x.dims());
        }
        let scale = if self.taps == 4 { 2 } else { 1 };
        let picture = Picture { x, halo, norm, axes: (rows, cols) };
        if let Some(onto) = onto {
            // A value is read by the thread that writes its sum there.
            self.run(device, &picture, Finish::Onto, Some(&onto), None, &onto)?;
            return Ok(onto);
        }
        let out = room((scale * rows, scale * cols, self.outputs), number_of(x)?, device)?;
        self.run(device, &picture, Finish::Plain, None, None, &out)?;
        Ok(out)
    }

    fn run(
        &self,
        device: &CudaDevice,
        picture: &Picture<'_>,
        finish: Finish,
        residual: Option<&Tensor>,
        gate: Option<&Tensor>,
        out: &Tensor,
    ) -> Result<()> {
        let Picture { x, halo, norm, axes: (rows, cols) } = picture;
        let number = number_of(x)?;
        let same = [Some(*x), Some(&self.weight), residual, halo.above.as_ref(), halo.below.as_ref()];
        if same.into_iter().flatten().any(|tensor| tensor.dtype() != x.dtype()) {
            bail!("a layer computes in one type; its input is {:?}", x.dtype());
        }
        if x.elem_count() != rows * cols * self.channels {
            bail!("a layer of {} channels was given {:?}", self.channels, x.dims());
        }
        let edges = [&halo.above, &halo.below];
        if edges.into_iter().flatten().any(|row| row.elem_count() != cols * self.channels) {
            bail!("a halo row does not have {cols} pixels of {} channels", self.channels);
        }
        if out.elem_count() == 0 {
            return Ok(());
        }
        let of_norm = |values: fn(&ChannelAffine) -> &[f32]| norm.map(|norm| vector(values(norm), device)).transpose();
        let (scale, shift) = (of_norm(|norm| &norm.scale)?, of_norm(|norm| &norm.shift)?);
        let tensors = [
            Some(*x),
            halo.above.as_ref(),
            halo.below.as_ref(),
            scale.as_ref(),
            shift.as_ref(),
            Some(&self.weight),
            self.bias.as_ref(),
            residual,
            gate,
            Some(out),
        ];
        with_addresses(device, tensors, |[x, above, below, scale, shift, weight, bias, residual, gate, out]| {
            let parameters = Product {
                x,
                above,
                below,
                scale,
                shift,
                weight,
                bias,
                residual,
                gate,
                out,
                rows: *rows as i64,
                cols: *cols as i32,
                channels: self.channels as i32,
                outputs: self.outputs as i32,
                taps: self.taps as i32,
                finish,
            };
            // SAFETY: every tensor has the shape the kernel's struct names, as checked above; `out` was just made, or is the
            // residual, which its owner gave away.
            unsafe { run(device, number, &parameters) }
        })
    }
}

/// What a layer reads: rows and columns of pixels, or of one token each.
struct Picture<'a> {
    x: &'a Tensor,
    halo: &'a Halo,
    norm: Option<&'a ChannelAffine>,
    axes: (usize, usize),
}

/// `LN(x)·(1 + scale) + shift`.
pub(crate) fn layer_norm_modulate(
    device: &CudaDevice,
    x: &Tensor,
    shift: &[f32],
    scale: &[f32],
    eps: f32,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let number = number_of(x)?;
    let out = room((rows, width), number, device)?;
    let (shift, scale) = (vector(shift, device)?, vector(scale, device)?);
    with_addresses(device, [Some(x), Some(&shift), Some(&scale), Some(&out)], |[x, shift, scale, out]| {
        let parameters = Modulation { x, shift, scale, out, rows: rows as i64, width: width as i32, eps };
        // SAFETY: the caller has checked the lengths of shift and scale; `out` was just made.
        unsafe { run(device, number, &parameters) }
    })?;
    Ok(out)
}

/// Weights of a compression on a GPU, all f32.
pub(crate) struct CompressLayer {
    taps: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
}

impl CompressLayer {
    pub(crate) fn new(device: &CudaDevice, [taps, bias, norm_weight, norm_bias]: [&[f32]; 4]) -> Result<Self> {
        let there = |values: &[f32]| vector(values, device);
        Ok(Self {
            taps: there(taps)?,
            bias: there(bias)?,
            norm_weight: there(norm_weight)?,
            norm_bias: there(norm_bias)?,
        })
    }

    /// `x` `[rows · cols, width]` to `[⌊rows/R⌋ · ⌊cols/R⌋, width]`.
    pub(crate) fn forward(
        &self,
        device: &CudaDevice,
        x: &Tensor,
        cols: usize,
        ratio: usize,
        eps: f32,
    ) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let n_out = (tokens / cols / ratio) * (cols / ratio);
        let number = number_of(x)?;
        let out = room((n_out, width), number, device)?;
        if n_out == 0 {
            return Ok(out);
        }
        let tensors = [x, &self.taps, &self.bias, &self.norm_weight, &self.norm_bias, &out].map(Some);
        with_addresses(device, tensors, |[x, taps, bias, norm_weight, norm_bias, out]| {
            let tokens = n_out as i64;
            let (cols, width, ratio) = (cols as i32, width as i32, ratio as i32);
            let parameters =
                Compression { x, taps, bias, norm_weight, norm_bias, out, tokens, cols, width, ratio, eps };
            // SAFETY: the caller has checked that `x` holds whole rows of this width; `out` was just made.
            unsafe { run(device, number, &parameters) }
        })?;
        Ok(out)
    }
}

/// Partial moments of pieces that follow each other, `[blocks][groups]`; asked for once, so that the device is waited for
/// once.
pub(crate) fn moments(
    device: &CudaDevice,
    pieces: &[Tensor],
    groups: usize,
    block_rows: usize,
) -> Result<Vec<Moments>> {
    let n_blocks = |x: &Tensor| Ok::<_, candle_core::Error>(x.dim(0)? / block_rows);
    let all_blocks = pieces.iter().map(n_blocks).sum::<Result<usize>>()?;
    let out = Tensor::zeros(all_blocks * groups * 3, DType::F64, &Device::Cuda(device.clone()))?;
    let mut first = 0;
    for x in pieces {
        let (_, cols, channels) = x.dims3()?;
        let (number, n_blocks) = (number_of(x)?, n_blocks(x)?);
        let len = n_blocks * groups * 3;
        let part = out.narrow(0, first, len)?;
        first += len;
        with_addresses(device, [Some(x), Some(&part)], |[x, out]| {
            let (pixels, n_blocks) = ((block_rows * cols) as i64, n_blocks as i64);
            let parameters = MomentsOf { x, out, pixels, channels: channels as i32, groups: groups as i32, n_blocks };
            // SAFETY: the caller has checked that blocks and groups divide evenly; the part is this piece's alone.
            unsafe { run(device, number, &parameters) }
        })?;
    }
    let all = out.to_vec1::<f64>()?;
    Ok(all.chunks_exact(3).map(|part| Moments { count: part[0], mean: part[1], m2: part[2] }).collect())
}

/// `x·scale + shift`, giving token rows.
pub(crate) fn apply(device: &CudaDevice, x: &Tensor, affine: &ChannelAffine) -> Result<Tensor> {
    let (rows, cols, channels) = x.dims3()?;
    let number = number_of(x)?;
    let out = room((rows * cols, channels), number, device)?;
    let (scale, shift) = (vector(&affine.scale, device)?, vector(&affine.shift, device)?);
    with_addresses(device, [Some(x), Some(&scale), Some(&shift), Some(&out)], |[x, scale, shift, out]| {
        let n = (rows * cols * channels) as i64;
        // SAFETY: the caller has checked the channels; `out` was just made.
        unsafe { run(device, number, &Affine { x, scale, shift, out, n, channels: channels as i32 }) }
    })?;
    Ok(out)
}

/// Whether all values of all tensors are finite; asked for once.
pub(crate) fn is_finite(device: &CudaDevice, all: &[Tensor]) -> Result<bool> {
    let fault = Tensor::zeros(1, DType::U32, &Device::Cuda(device.clone()))?;
    for x in all {
        let number = number_of(x)?;
        with_addresses(device, [Some(x), Some(&fault)], |[x_at, fault]| {
            // SAFETY: `fault` is one number, just made.
            unsafe { run(device, number, &Finite { x: x_at, fault, n: x.elem_count() as i64 }) }
        })?;
    }
    Ok(fault.to_vec1::<u32>()? == [0])
}

/// Attention of shapes the caller has checked.
pub(crate) fn attention(device: &CudaDevice, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (n_queries, width) = q.dims2()?;
    let head_width = width / heads;
    if head_width > MAX_HEAD_WIDTH {
        bail!("a gpu attends with heads up to {MAX_HEAD_WIDTH} wide, not {head_width}");
    }
    let number = number_of(q)?;
    if k.dtype() != q.dtype() || v.dtype() != q.dtype() {
        bail!("attention of {:?} over {:?} and {:?}", q.dtype(), k.dtype(), v.dtype());
    }
    let out = room((n_queries, width), number, device)?;
    let n_keys = k.dim(0)? as i64;
    with_addresses(device, [q, k, v, &out].map(Some), |[q, k, v, out]| {
        let (width, head_width, n_queries) = (width as i32, head_width as i32, n_queries as i64);
        // SAFETY: the caller has checked the shapes; `out` was just made.
        unsafe { run(device, number, &Attention { q, k, v, out, n_queries, n_keys, width, head_width }) }
    })?;
    Ok(out)
}
