//! 3×3 convolutions of pixel rows, with group norm and SiLU before them, row by row.
//!
//! Only a few rows of the normalised input exist at a time, in a padded strip; products run straight on the
//! strip, tap after tap, so there is no matrix of patches. What lies outside a band of rows comes in as a [`Halo`].
//!
//! Each output pixel is a sum over taps and channels in index order, wherever the picture is cut; on a CPU a convolution
//! onto a shortcut begins its sums with the shortcut, on a GPU it ends them so.

#[cfg(feature = "cuda")]
use candle_core::{DType, Device};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::{SharedMut, output, share_memory, with_values, with_values_mut};
#[cfg(feature = "cuda")]
use crate::cuda::{device::on_gpu, ops::Layer};
use crate::group_norm::ChannelAffine;
use crate::linear::Packed;
use crate::simd::{LANES, Simd, dispatch};
use crate::tile::{self, Operands, PANEL};

mod strip;
use strip::{Source, Strip, walk};

/// Channels of a tap summed in one go.
const DEPTH: usize = 256;
/// Pixels a task computes: its part of the strip stays in the second-level cache.
const TASK_PIXELS: usize = 192;

/// The rows just outside a band, `[1, cols, channels]` each, before any norm; nothing at the picture's own
/// borders, where zeros are read.
#[derive(Default)]
pub struct Halo {
    /// The row before the first.
    pub above: Option<Tensor>,
    /// The row behind the last.
    pub below: Option<Tensor>,
}

/// A 3×3 convolution with zero padding of one.
pub struct Conv3x3 {
    taps: Packed,
    bias: Vec<f32>,
    inputs: usize,
    #[cfg(feature = "cuda")]
    on_gpu: Option<Layer>,
}

impl Conv3x3 {
    /// From `weight` `[outputs, inputs, 3, 3]` and `bias` `[outputs]`, on the device of `weight` and, on a GPU, of its
    /// type.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (outputs, inputs) = parameters(weight, bias)?;
        #[cfg(feature = "cuda")]
        if on_gpu(weight).is_some() {
            let by_tap = weight.permute((0, 2, 3, 1))?.contiguous()?.reshape((outputs, 9 * inputs))?;
            let on_gpu = Some(Layer::new(by_tap, Some(bias), 9)?);
            return Ok(Self { taps: Packed::elsewhere(9 * inputs, outputs), bias: Vec::new(), inputs, on_gpu });
        }
        let bias = bias.to_vec1()?;
        let weight = weight.flatten_all()?;
        let taps = with_values(&weight, |w| {
            Packed::new(9 * inputs, outputs, |k, n| w[(n * inputs + k % inputs) * 9 + k / inputs])
        })?;
        Ok(Self {
            taps,
            bias,
            inputs,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        })
    }

    /// `x` `[rows, cols, inputs]` to `[rows, cols, outputs]`: `conv(silu(norm(x)))`, or `conv(x)` without a norm.
    ///
    /// # Errors
    /// If shapes do not fit, or a tensor is not contiguous f32 on the CPU.
    pub fn forward(&self, x: &Tensor, halo: &Halo, norm: Option<&ChannelAffine>) -> Result<Tensor> {
        let (rows, cols, _) = x.dims3()?;
        #[cfg(feature = "cuda")]
        if let (Some(layer), Some(device)) = (&self.on_gpu, on_gpu(x)) {
            return layer.convolve(&device, x, halo, norm, None);
        }
        let mut out = output(&[rows, cols, self.taps.n])?;
        self.run(x, halo, norm, SharedMut::new(&mut out), false)?;
        Tensor::from_vec(out, (rows, cols, self.taps.n), x.device())
    }

    /// As [`Self::forward`], added to `onto` `[rows, cols, outputs]` in its place, which nobody else may hold.
    ///
    /// # Errors
    /// As [`Self::forward`], or if `onto` is a view of what is read.
    pub fn forward_onto(&self, x: &Tensor, halo: &Halo, norm: Option<&ChannelAffine>, onto: Tensor) -> Result<Tensor> {
        let (rows, cols, _) = x.dims3()?;
        if onto.dims() != [rows, cols, self.taps.n] {
            bail!("a convolution of {rows}x{cols} pixels to {} channels onto {:?}", self.taps.n, onto.dims());
        }
        if [Some(x), halo.above.as_ref(), halo.below.as_ref()]
            .into_iter()
            .flatten()
            .any(|read| share_memory(read, &onto))
        {
            bail!("a convolution cannot write over its own input");
        }
        #[cfg(feature = "cuda")]
        if let (Some(layer), Some(device)) = (&self.on_gpu, on_gpu(x)) {
            return layer.convolve(&device, x, halo, norm, Some(onto));
        }
        with_values_mut(&onto, |values| self.run(x, halo, norm, SharedMut::new(values), true))?;
        Ok(onto)
    }

    /// Fills `out`, `rows × cols × outputs` values, or adds to what is there.
    fn run(&self, x: &Tensor, halo: &Halo, norm: Option<&ChannelAffine>, out: SharedMut, onto: bool) -> Result<()> {
        let (rows, cols, inputs) = x.dims3()?;
        if inputs != self.inputs || norm.is_some_and(|norm| norm.scale.len() != inputs) {
            bail!("a convolution of {} channels was given {inputs}", self.inputs);
        }
        if cols == 0 {
            bail!("a convolution of {rows} rows without pixels");
        }
        let (above, below) = edges(halo)?;
        with_values(x, |values| {
            let source = Source::new(values, (rows, cols, inputs), above, below, norm)?;
            walk(&source, |strip, first, n_rows| {
                tasks(n_rows, cols, self.taps.n_panels(), |place| {
                    let task = Task { place, first, cols, onto };
                    // SAFETY: tasks cover disjoint rows, columns and panels of the output.
                    unsafe { convolve(self, strip, &task, out) };
                });
            });
            Ok(())
        })?
    }
}

/// The rows above and below a band, copied.
type Edges = (Option<Vec<f32>>, Option<Vec<f32>>);

fn edges(halo: &Halo) -> Result<Edges> {
    let copy = |row: &Option<Tensor>| row.as_ref().map(|row| row.flatten_all()?.to_vec1()).transpose();
    Ok((copy(&halo.above)?, copy(&halo.below)?))
}

/// Outputs and inputs of a 3×3 convolution's `weight`, whose `bias` fits it.
fn parameters(weight: &Tensor, bias: &Tensor) -> Result<(usize, usize)> {
    let (outputs, inputs, height, width) = weight.dims4()?;
    if (height, width) != (3, 3) || outputs == 0 || inputs == 0 || bias.dims() != [outputs] {
        bail!("no 3x3 convolution: weight {:?}, bias {:?}", weight.dims(), bias.dims());
    }
    Ok((outputs, inputs))
}

/// What a task computes: rows of the strip's outputs, columns, panels.
#[derive(Clone, Copy)]
struct Place {
    rows: (usize, usize),
    cols: (usize, usize),
    panels: (usize, usize),
}

struct Task {
    place: Place,
    /// The picture's row that is the strip's first output row.
    first: usize,
    /// Columns of the picture.
    cols: usize,
    /// Whether the output holds what is to be added to.
    onto: bool,
}

/// Cuts `n_rows × cols` pixels and `n_panels` panels into tasks and runs them on all threads.
fn tasks(n_rows: usize, cols: usize, n_panels: usize, run: impl Fn(Place) + Sync) {
    let n_segments = cols.div_ceil(TASK_PIXELS);
    let n_bands = n_rows.div_ceil((TASK_PIXELS / cols).max(1));
    // Few pixels: share the panels out instead.
    let wanted = 4 * rayon::current_num_threads();
    let n_groups = wanted.div_ceil(n_segments * n_bands).clamp(1, n_panels);
    (0..n_groups * n_bands * n_segments).into_par_iter().for_each(|task| {
        let (segment, rest) = (task % n_segments, task / n_segments);
        let (band, group) = (rest % n_bands, rest / n_bands);
        let part = |idx: usize, parts: usize, whole: usize| (idx * whole / parts, (idx + 1) * whole / parts);
        run(Place {
            rows: part(band, n_bands, n_rows),
            cols: part(segment, n_segments, cols),
            panels: part(group, n_groups, n_panels),
        });
    });
}

dispatch! {
    /// One task of a 3×3 convolution: reads the strip, writes the task's pixels of `out`.
    unsafe fn convolve(conv: &Conv3x3, strip: &Strip, task: &Task, out: SharedMut) = convolve_with
}

#[inline(always)]
unsafe fn convolve_with<S: Simd>(conv: &Conv3x3, strip: &Strip, task: &Task, out: SharedMut) {
    let Place { rows, cols, panels } = task.place;
    let (outputs, n_cols) = (conv.taps.n, cols.1 - cols.0);
    for panel in panels.0..panels.1 {
        let width = conv.taps.cols(panel);
        let pixel = |row: usize| (task.first + row) * task.cols + cols.0;
        // SAFETY: `pixel` lies in the picture, the panel's columns in its channels, and no other task has both.
        let at = |row: usize| unsafe { out.at(pixel(row) * outputs + panel * PANEL) };
        let mut onto = task.onto;
        for tap in 0..9 {
            for first in (0..conv.inputs).step_by(DEPTH) {
                for row in rows.0..rows.1 {
                    let op = Operands {
                        a: strip.at(row + tap / 3, cols.0 + tap % 3)[first..].as_ptr(),
                        a_row: conv.inputs,
                        a_col: 1,
                        b: conv.taps.at(panel, tap * conv.inputs + first),
                        c: at(row),
                        c_row: outputs,
                        k: DEPTH.min(conv.inputs - first),
                        onto,
                    };
                    // SAFETY: the strip has a row and a column more than the pixels on each side.
                    unsafe { tile::panel::<S>(n_cols, width, op) };
                }
                onto = true;
            }
        }
        for row in rows.0..rows.1 {
            for col in 0..n_cols {
                for lane in (0..width).step_by(LANES) {
                    let n = LANES.min(width - lane);
                    let channel = panel * PANEL + lane;
                    // SAFETY: `n` channels from `lane` are this task's.
                    unsafe {
                        let to = at(row).add(col * outputs + lane);
                        let y = S::add(S::load_first(to, n), S::load_first(conv.bias[channel..].as_ptr(), n));
                        S::store_first(to, n, y);
                    }
                }
            }
        }
    }
}

/// Nearest-neighbour enlargement by two, then a 3×3 convolution, in one.
///
/// Of the nine taps on the enlarged picture, those that fall on the same small pixel are summed beforehand:
/// each of the four output phases is a 2×2 convolution of the small picture, 4/9 of the arithmetic.
pub struct UpConv {
    /// Phase `2·(row parity) + (column parity)`, taps `[dy][dx][inputs]`.
    phases: [Packed; 4],
    bias: Vec<f32>,
    inputs: usize,
    #[cfg(feature = "cuda")]
    on_gpu: Option<Layer>,
}

impl UpConv {
    /// From the 3×3 convolution's `weight` `[outputs, inputs, 3, 3]` and `bias`, on the device of `weight` and, on a GPU,
    /// of its type.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(weight: &Tensor, bias: &Tensor) -> Result<Self> {
        let (outputs, inputs) = parameters(weight, bias)?;
        #[cfg(feature = "cuda")]
        if on_gpu(weight).is_some() {
            let all = Self::phase_weights(&weight.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)?;
            let all = Tensor::from_vec(all, (4 * outputs, 4 * inputs), &Device::Cpu)?;
            let all = all.to_dtype(weight.dtype())?.to_device(weight.device())?;
            let none = || Packed::elsewhere(4 * inputs, outputs);
            let on_gpu = Some(Layer::new(all, Some(bias), 4)?);
            return Ok(Self { phases: [none(), none(), none(), none()], bias: Vec::new(), inputs, on_gpu });
        }
        let bias = bias.to_vec1()?;
        let all = Self::phase_weights(weight)?;
        let mut phases = all.chunks_exact(outputs * 4 * inputs);
        let mut next = || {
            let phase = phases.next().unwrap_or_default();
            Packed::new(4 * inputs, outputs, |k, n| phase[n * 4 * inputs + k])
        };
        Ok(Self {
            phases: [next(), next(), next(), next()],
            bias,
            inputs,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        })
    }

    /// The weights of each phase, `[phase][outputs][dy][dx][inputs]`, from those of the 3×3 convolution.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub(crate) fn phase_weights(weight: &Tensor) -> Result<Vec<f32>> {
        let (outputs, inputs, _, _) = weight.dims4()?;
        let weight = weight.flatten_all()?.to_vec1::<f32>()?;
        // Which of three taps fall on the first and on the second small pixel, by parity of the output.
        const TAPS: [[&[usize]; 2]; 2] = [[&[0], &[1, 2]], [&[0, 1], &[2]]];
        let mut all = vec![0.0; 16 * outputs * inputs];
        all.par_chunks_mut(inputs).enumerate().for_each(|(line, to)| {
            let (phase, n, tap) = (line / 4 / outputs, line / 4 % outputs, line % 4);
            let (ys, xs) = (TAPS[phase / 2][tap / 2], TAPS[phase % 2][tap % 2]);
            for (channel, to) in to.iter_mut().enumerate() {
                let of = |y: &usize, x: &usize| f64::from(weight[(n * inputs + channel) * 9 + y * 3 + x]);
                *to = ys.iter().map(|y| xs.iter().map(|x| of(y, x)).sum::<f64>()).sum::<f64>() as f32;
            }
        });
        Ok(all)
    }

    /// `x` `[rows, cols, inputs]` to `[2·rows, 2·cols, outputs]`; the halo is of the small picture.
    ///
    /// # Errors
    /// If shapes do not fit, or a tensor is not contiguous f32 on the CPU.
    pub fn forward(&self, x: &Tensor, halo: &Halo) -> Result<Tensor> {
        let (rows, cols, inputs) = x.dims3()?;
        if inputs != self.inputs || cols == 0 {
            bail!("an enlarging convolution of {} channels was given {:?}", self.inputs, x.dims());
        }
        #[cfg(feature = "cuda")]
        if let (Some(layer), Some(device)) = (&self.on_gpu, on_gpu(x)) {
            return layer.convolve(&device, x, halo, None, None);
        }
        let outputs = self.phases[0].n;
        let mut out = output(&[4, rows, cols, outputs])?;
        let shared = SharedMut::new(&mut out);
        let (above, below) = edges(halo)?;
        with_values(x, |values| {
            let source = Source::new(values, (rows, cols, inputs), above, below, None)?;
            walk(&source, |strip, first, n_rows| {
                tasks(n_rows, cols, self.phases[0].n_panels(), |place| {
                    let task = Task { place, first, cols, onto: false };
                    // SAFETY: tasks cover disjoint small pixels and panels, and so do the pixels they become.
                    unsafe { enlarge(self, strip, &task, shared) };
                });
            });
            Ok::<_, candle_core::Error>(())
        })??;
        Tensor::from_vec(out, (2 * rows, 2 * cols, outputs), x.device())
    }
}

dispatch! {
    /// One task of an enlarging convolution: reads the strip, writes the task's pixels of `out`.
    unsafe fn enlarge(conv: &UpConv, strip: &Strip, task: &Task, out: SharedMut) = enlarge_with
}

#[inline(always)]
unsafe fn enlarge_with<S: Simd>(conv: &UpConv, strip: &Strip, task: &Task, out: SharedMut) {
    let Place { rows, cols, panels } = task.place;
    let (outputs, n_cols) = (conv.phases[0].n, cols.1 - cols.0);
    for (phase, taps) in conv.phases.iter().enumerate() {
        let (py, px) = (phase / 2, phase % 2);
        for panel in panels.0..panels.1 {
            let width = taps.cols(panel);
            let at = |row: usize| {
                let pixel = (2 * (task.first + row) + py) * 2 * task.cols + 2 * cols.0 + px;
                // SAFETY: the pixel lies in the enlarged picture and belongs to this task and phase.
                unsafe { out.at(pixel * outputs + panel * PANEL) }
            };
            for tap in 0..4 {
                for first in (0..conv.inputs).step_by(DEPTH) {
                    for row in rows.0..rows.1 {
                        let op = Operands {
                            a: strip.at(row + py + tap / 2, cols.0 + px + tap % 2)[first..].as_ptr(),
                            a_row: conv.inputs,
                            a_col: 1,
                            b: taps.at(panel, tap * conv.inputs + first),
                            c: at(row),
                            c_row: 2 * outputs,
                            k: DEPTH.min(conv.inputs - first),
                            onto: tap > 0 || first > 0,
                        };
                        // SAFETY: the strip has a row and a column more than the pixels on each side.
                        unsafe { tile::panel::<S>(n_cols, width, op) };
                    }
                }
            }
            for row in rows.0..rows.1 {
                for col in 0..n_cols {
                    for lane in (0..width).step_by(LANES) {
                        let n = LANES.min(width - lane);
                        // SAFETY: `n` channels from `lane` of this pixel are this task's.
                        unsafe {
                            let to = at(row).add(2 * col * outputs + lane);
                            let bias = S::load_first(conv.bias[panel * PANEL + lane..].as_ptr(), n);
                            S::store_first(to, n, S::add(S::load_first(to, n), bias));
                        }
                    }
                }
            }
        }
    }
}
