//! `y = x·Wᵀ + b` on token rows, with what follows it done while the block is in cache, and the two layers of
//! an MLP in one go so that its hidden rows are never whole.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::{AlignedBuffer, SharedMut, output, with_values};
#[cfg(feature = "cuda")]
use crate::cuda::{device::on_gpu, ops::Layer};
use crate::simd::{LANES, Simd, dispatch, gelu_tanh, silu};
use crate::tile::{self, Operands, PANEL};

/// Terms of a sum taken in one go: a panel of B this deep (32 KiB) stays in the first-level cache.
const DEPTH: usize = 256;
/// Rows of a task: its part of A stays in the second-level cache.
const BLOCK_ROWS: usize = 192;
/// Panels of a task.
const BLOCK_PANELS: usize = 6;

/// What is done to `x·Wᵀ + b` before it is written.
#[derive(Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// GELU, tanh form.
    Gelu,
    /// SiLU.
    Silu,
    /// Added onto `residual` (of the output's shape), after multiplication by `gate` (one value an output
    /// channel) if there is one.
    Onto {
        /// What the result is added to.
        residual: &'a Tensor,
        /// Weight of each channel.
        gate: Option<&'a [f32]>,
    },
}

/// The same with plain slices, for use inside tasks.
#[derive(Clone, Copy)]
enum Finish<'a> {
    None,
    Gelu,
    Silu,
    Onto { residual: &'a [f32], gate: Option<&'a [f32]> },
}

/// A matrix laid out in panels of columns for the micro-kernel.
pub(crate) struct Packed {
    values: AlignedBuffer,
    /// Length of each sum.
    pub(crate) k: usize,
    /// Columns.
    pub(crate) n: usize,
}

impl Packed {
    /// Column `j` of the matrix is `column(j)[..k]`, given by its elements.
    pub(crate) fn new(k: usize, n: usize, element: impl Fn(usize, usize) -> f32 + Sync) -> Self {
        let mut values = AlignedBuffer::zeroed(n.div_ceil(PANEL) * k * PANEL);
        values.as_mut_slice().par_chunks_mut(k * PANEL).enumerate().for_each(|(panel, chunk)| {
            let cols = PANEL.min(n.saturating_sub(panel * PANEL));
            for (row, line) in chunk.chunks_exact_mut(PANEL).enumerate() {
                for (col, value) in line[..cols].iter_mut().enumerate() {
                    *value = element(row, panel * PANEL + col);
                }
            }
        });
        Self { values, k, n }
    }

    /// A matrix whose values lie on another device.
    #[cfg(feature = "cuda")]
    pub(crate) fn elsewhere(k: usize, n: usize) -> Self {
        Self { values: AlignedBuffer::zeroed(0), k, n }
    }

    pub(crate) fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }

    /// Columns panel `panel` really has.
    pub(crate) fn cols(&self, panel: usize) -> usize {
        PANEL.min(self.n - panel * PANEL)
    }

    /// Row `k` of panel `panel`.
    pub(crate) fn at(&self, panel: usize, k: usize) -> *const f32 {
        self.values.as_slice()[(panel * self.k + k) * PANEL..].as_ptr()
    }
}

/// A linear layer.
pub struct Linear {
    packed: Packed,
    bias: Option<Vec<f32>>,
    #[cfg(feature = "cuda")]
    on_gpu: Option<Layer>,
}

impl Linear {
    /// From `weight` `[outputs, inputs]` and `bias` `[outputs]`, on the device of `weight` and, on a GPU, of its type.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        if bias.is_some_and(|bias| bias.dims() != [outputs]) {
            bail!("a bias does not have the {outputs} outputs of its weight");
        }
        if inputs == 0 || outputs == 0 {
            bail!("a linear layer of {inputs} inputs and {outputs} outputs");
        }
        #[cfg(feature = "cuda")]
        if on_gpu(weight).is_some() {
            let layer = Layer::new(weight.clone(), bias, 1)?;
            return Ok(Self { packed: Packed::elsewhere(inputs, outputs), bias: None, on_gpu: Some(layer) });
        }
        let bias = bias.map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let packed = with_values(weight, |w| Packed::new(inputs, outputs, |k, n| w[n * inputs + k]))?;
        Ok(Self {
            packed,
            bias,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        })
    }

    /// Channels out.
    pub fn outputs(&self) -> usize {
        self.packed.n
    }

    /// Channels in.
    pub fn inputs(&self) -> usize {
        self.packed.k
    }

    /// `x` `[rows, inputs]` to `[rows, outputs]`.
    ///
    /// # Errors
    /// If shapes do not fit, or a tensor is not contiguous f32 on the CPU.
    pub fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let rows = self.check_input(x)?;
        #[cfg(feature = "cuda")]
        if let (Some(layer), Some(device)) = (&self.on_gpu, on_gpu(x)) {
            return layer.linear(&device, x, epilogue);
        }
        let axes = (rows, self.packed.n);
        let mut out = output(&[rows, self.packed.n])?;
        with_values(x, |x| with_finish(epilogue, axes, |finish| self.run(rows, x, &mut out, finish)))??;
        Tensor::from_vec(out, axes, x.device())
    }

    fn check_input(&self, x: &Tensor) -> Result<usize> {
        let (rows, inputs) = x.dims2()?;
        if inputs != self.packed.k {
            bail!("a linear layer of {} inputs was given {inputs}", self.packed.k);
        }
        Ok(rows)
    }

    fn run(&self, rows: usize, x: &[f32], out: &mut [f32], finish: Finish<'_>) {
        let n_row_blocks = rows.div_ceil(BLOCK_ROWS);
        let n_groups = self.packed.n_panels().div_ceil(BLOCK_PANELS);
        let out = SharedMut::new(out);
        (0..n_row_blocks * n_groups).into_par_iter().for_each(|task| {
            let (group, block) = (task / n_row_blocks, task % n_row_blocks);
            let first = block * rows / n_row_blocks;
            let n_rows = (block + 1) * rows / n_row_blocks - first;
            let panels = (group * BLOCK_PANELS, ((group + 1) * BLOCK_PANELS).min(self.packed.n_panels()));
            // SAFETY: `x` and `out` hold `rows` whole rows; each task writes its own rows and columns.
            unsafe {
                let out = out.at(first * self.packed.n);
                block_product(self, panels, n_rows, x[first * self.packed.k..].as_ptr(), out);
                block_finish(self, panels, n_rows, first, out, finish);
            }
        });
    }
}

/// Runs `f` with the tensors of `epilogue` as slices, if they fit an output of `rows × n` values.
fn with_finish(epilogue: Epilogue<'_>, (rows, n): (usize, usize), f: impl FnOnce(Finish<'_>)) -> Result<()> {
    match epilogue {
        Epilogue::None => f(Finish::None),
        Epilogue::Gelu => f(Finish::Gelu),
        Epilogue::Silu => f(Finish::Silu),
        Epilogue::Onto { residual, gate } => with_values(residual, |residual| {
            if residual.len() != rows * n {
                bail!("a residual of {} values cannot take {rows} rows of {n}", residual.len());
            }
            if let Some(gate) = gate.filter(|gate| gate.len() != n) {
                bail!("a gate of {} channels for {n}", gate.len());
            }
            f(Finish::Onto { residual, gate });
            Ok(())
        })??,
    }
    Ok(())
}

dispatch! {
    /// The product of `rows` rows of `x` with the given panels, into `out` (the first of those rows).
    ///
    /// `x` and `out` point to `rows` whole rows.
    unsafe fn block_product(layer: &Linear, panels: (usize, usize), rows: usize, x: *const f32, out: *mut f32) = block_product_with
}

#[inline(always)]
unsafe fn block_product_with<S: Simd>(
    layer: &Linear,
    panels: (usize, usize),
    rows: usize,
    x: *const f32,
    out: *mut f32,
) {
    let packed = &layer.packed;
    for first in (0..packed.k).step_by(DEPTH) {
        for panel in panels.0..panels.1 {
            // SAFETY: the caller's rows are whole, so `first` and the panel's columns lie inside them.
            unsafe {
                let op = Operands {
                    a: x.add(first),
                    a_row: packed.k,
                    a_col: 1,
                    b: packed.at(panel, first),
                    c: out.add(panel * PANEL),
                    c_row: packed.n,
                    k: DEPTH.min(packed.k - first),
                    onto: first > 0,
                };
                tile::panel::<S>(rows, packed.cols(panel), op);
            }
        }
    }
}

dispatch! {
    /// Adds the bias and applies `finish` to what `block_product` wrote.
    ///
    /// `first` is the row of the whole output that `out` points to.
    unsafe fn block_finish(layer: &Linear, panels: (usize, usize), rows: usize, first: usize, out: *mut f32, finish: Finish<'_>) = block_finish_with
}

#[inline(always)]
unsafe fn block_finish_with<S: Simd>(
    layer: &Linear,
    panels: (usize, usize),
    rows: usize,
    first: usize,
    out: *mut f32,
    finish: Finish<'_>,
) {
    let n = layer.packed.n;
    let cols = panels.0 * PANEL..(panels.1 * PANEL).min(n);
    for row in 0..rows {
        for col in cols.clone().step_by(LANES) {
            let width = LANES.min(cols.end - col);
            // SAFETY: `col + width` lies in the row, for the output, the bias, the gate and the residual alike.
            unsafe {
                let at = out.add(row * n + col);
                let mut y = S::load_first(at, width);
                if let Some(bias) = &layer.bias {
                    y = S::add(y, S::load_first(bias[col..].as_ptr(), width));
                }
                y = match finish {
                    Finish::None => y,
                    Finish::Gelu => gelu_tanh::<S>(y),
                    Finish::Silu => silu::<S>(y),
                    Finish::Onto { residual, gate } => {
                        let onto = S::load_first(residual[(first + row) * n + col..].as_ptr(), width);
                        match gate {
                            Some(gate) => S::fma(S::load_first(gate[col..].as_ptr(), width), y, onto),
                            None => S::add(y, onto),
                        }
                    }
                };
                S::store_first(at, width, y);
            }
        }
    }
}

/// Two linear layers with GELU between them.
pub struct Mlp {
    /// Model width to hidden width.
    pub widen: Linear,
    /// Hidden width to model width.
    pub narrow: Linear,
}

impl Mlp {
    /// `x` `[rows, width]` to `[rows, width]`; the hidden rows exist a block at a time.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<Tensor> {
        let rows = self.widen.check_input(x)?;
        #[cfg(feature = "cuda")]
        if on_gpu(x).is_some() {
            return self.narrow.forward(&self.widen.forward(x, Epilogue::Gelu)?, epilogue);
        }
        let (inputs, hidden, outputs) = (self.widen.packed.k, self.widen.packed.n, self.narrow.packed.n);
        if hidden != self.narrow.packed.k {
            bail!("an mlp of {hidden} hidden channels goes on with {}", self.narrow.packed.k);
        }
        let mut out = output(&[rows, outputs])?;
        let shared = SharedMut::new(&mut out);
        // Small inputs are cut finer, so that every thread has work.
        let fair = rows.div_ceil(2 * rayon::current_num_threads()).max(1);
        let n_blocks = rows.div_ceil(BLOCK_ROWS.min(fair));
        with_values(x, |x| {
            with_finish(epilogue, (rows, outputs), |finish| {
                (0..n_blocks).into_par_iter().for_each_init(Vec::new, |scratch: &mut Vec<f32>, block| {
                    let first = block * rows / n_blocks;
                    let n_rows = (block + 1) * rows / n_blocks - first;
                    scratch.resize(n_rows * hidden, 0.0);
                    // SAFETY: `x` holds whole rows, `scratch` is this task's, and each task writes its own rows.
                    unsafe {
                        let all = (0, self.widen.packed.n_panels());
                        block_product(&self.widen, all, n_rows, x[first * inputs..].as_ptr(), scratch.as_mut_ptr());
                        block_finish(&self.widen, all, n_rows, 0, scratch.as_mut_ptr(), Finish::Gelu);
                        let all = (0, self.narrow.packed.n_panels());
                        let out = shared.at(first * outputs);
                        block_product(&self.narrow, all, n_rows, scratch.as_ptr(), out);
                        block_finish(&self.narrow, all, n_rows, first, out, finish);
                    }
                });
            })
        })??;
        Tensor::from_vec(out, (rows, outputs), x.device())
    }
}
