//! `softmax(q·kᵀ/√d)·v` for any number of keys, with no matrix of scores.
//!
//! Queries lie across the vector lanes, so maxima and sums over keys are plain vertical operations, every
//! head width fits without padding, and a query's result cannot depend on the queries beside it. Keys are
//! walked in blocks counted from the first key, with the running maximum and sum of online softmax
//! (arXiv:2205.14135, Algorithm 1), so the order of every sum is a function of the key's index alone.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::buffer::{AlignedBuffer, SharedMut, output, with_values};
use crate::simd::{LANES, Simd, dispatch};
use crate::tile::{self, Operands, PANEL};

/// Keys of a block: a whole number of tiles on every machine, and part of what fixes the result's bits.
const KEY_BLOCK: usize = 168;
/// Panels of queries that share one pass over a block of keys.
const TASK_PANELS: usize = 4;
/// Channels of a score summed in one go.
const DEPTH: usize = 256;

/// Attention of `q` `[queries, heads·d]` over `k`, `v` `[keys, heads·d]`, giving `[queries, heads·d]`.
///
/// Heads are contiguous runs of channels; scores are scaled by `1/√d`.
///
/// # Errors
/// If shapes do not fit, there are no keys or channels, or a tensor is not contiguous f32 on the CPU.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (n_queries, width) = q.dims2()?;
    let (n_keys, _) = k.dims2()?;
    if k.dims() != v.dims() || k.dim(1)? != width || heads == 0 || width % heads != 0 || [width, n_keys].contains(&0) {
        bail!("attention of {heads} heads over q {:?}, k {:?}, v {:?}", q.dims(), k.dims(), v.dims());
    }
    #[cfg(feature = "cuda")]
    if let Some(device) = crate::cuda::device::on_gpu(q) {
        return crate::cuda::ops::attention(&device, q, k, v, heads);
    }
    let d = width / heads;
    let mut out = output(&[n_queries, width])?;
    let shared = SharedMut::new(&mut out);
    let task_queries = TASK_PANELS * PANEL;
    let n_groups = n_queries.div_ceil(task_queries);
    with_values(q, |q| {
        with_values(k, |k| {
            with_values(v, |v| {
                let (k, v) = (by_head(k, heads, d), by_head(v, heads, d));
                (0..heads * n_groups).into_par_iter().for_each_init(
                    || Scratch::new(d),
                    |scratch, task| {
                        let (head, group) = (task / n_groups, task % n_groups);
                        let first = group * task_queries;
                        let job = Job {
                            d,
                            width,
                            n_queries: task_queries.min(n_queries - first),
                            n_keys,
                            q: &q[first * width + head * d..],
                            k: &k[head * n_keys * d..],
                            v: &v[head * n_keys * d..],
                            // SAFETY: the first element of this task's queries and head lies in the output.
                            out: unsafe { shared.at(first * width + head * d) },
                        };
                        // SAFETY: `out` has these queries' rows, and no other task writes this head's channels of them.
                        unsafe { attend(&job, scratch) };
                    },
                );
            })
        })
    })???;
    Tensor::from_vec(out, (n_queries, width), q.device())
}

/// `[keys, heads·d]` laid out `[heads, keys, d]`; borrowed as it is if there is one head.
fn by_head(x: &[f32], heads: usize, d: usize) -> std::borrow::Cow<'_, [f32]> {
    if heads == 1 {
        return x.into();
    }
    let n_keys = x.len() / (heads * d);
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(n_keys * d).enumerate().for_each(|(head, out)| {
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(heads * d)) {
            out.copy_from_slice(&x[head * d..][..d]);
        }
    });
    out.into()
}

/// Some queries of one head.
struct Job<'a> {
    d: usize,
    width: usize,
    n_queries: usize,
    n_keys: usize,
    /// First query's first channel; rows are `width` apart.
    q: &'a [f32],
    /// `[keys, d]`.
    k: &'a [f32],
    v: &'a [f32],
    /// As `q`.
    out: *mut f32,
}

/// What one task works in; a panel is [`PANEL`] queries.
struct Scratch {
    /// Scaled queries, `[panel][d][PANEL]`.
    q: AlignedBuffer,
    /// Scores, then weights, of a block of keys: `[KEY_BLOCK][PANEL]`.
    weights: AlignedBuffer,
    /// Weighted sums of values, `[panel][d][PANEL]`.
    sums: AlignedBuffer,
    /// Running maximum and running sum of weights, `[panel][2][PANEL]`.
    running: AlignedBuffer,
}

impl Scratch {
    fn new(d: usize) -> Self {
        Self {
            q: AlignedBuffer::zeroed(TASK_PANELS * d * PANEL),
            weights: AlignedBuffer::zeroed(KEY_BLOCK * PANEL),
            sums: AlignedBuffer::zeroed(TASK_PANELS * d * PANEL),
            running: AlignedBuffer::zeroed(TASK_PANELS * 2 * PANEL),
        }
    }
}

dispatch! {
    /// Runs `job`, writing its head's channels of its queries' rows.
    unsafe fn attend(job: &Job<'_>, scratch: &mut Scratch) = attend_with
}

#[inline(always)]
unsafe fn attend_with<S: Simd>(job: &Job<'_>, scratch: &mut Scratch) {
    let (d, n_panels) = (job.d, job.n_queries.div_ceil(PANEL));
    let q = scratch.q.as_mut_slice();
    let scale = 1.0 / (d as f32).sqrt();
    q[..n_panels * d * PANEL].fill(0.0);
    for query in 0..job.n_queries {
        let (panel, lane) = (query / PANEL, query % PANEL);
        for (channel, value) in job.q[query * job.width..][..d].iter().enumerate() {
            q[(panel * d + channel) * PANEL + lane] = value * scale;
        }
    }
    scratch.running.as_mut_slice().chunks_exact_mut(2 * PANEL).for_each(|running| {
        running[..PANEL].fill(f32::NEG_INFINITY);
        running[PANEL..].fill(0.0);
    });
    for first_key in (0..job.n_keys).step_by(KEY_BLOCK) {
        let n = KEY_BLOCK.min(job.n_keys - first_key);
        let (k, v) = (&job.k[first_key * d..][..n * d], &job.v[first_key * d..][..n * d]);
        for panel in 0..n_panels {
            let q = &scratch.q.as_slice()[panel * d * PANEL..][..d * PANEL];
            let sums = &mut scratch.sums.as_mut_slice()[panel * d * PANEL..][..d * PANEL];
            let running = &mut scratch.running.as_mut_slice()[panel * 2 * PANEL..][..2 * PANEL];
            let weights = &mut scratch.weights.as_mut_slice()[..n * PANEL];
            // SAFETY: the slices have the sizes the calls state.
            unsafe {
                score::<S>(d, n, q, k, weights);
                let shrink = softmax_block::<S>(weights, running);
                weigh::<S>(d, n, weights, v, sums, (first_key > 0).then_some(&shrink));
            }
        }
    }
    for query in 0..job.n_queries {
        let (panel, lane) = (query / PANEL, query % PANEL);
        let total = scratch.running.as_slice()[(panel * 2 + 1) * PANEL + lane];
        let inverse = 1.0 / total;
        for channel in 0..d {
            let sum = scratch.sums.as_slice()[(panel * d + channel) * PANEL + lane];
            // SAFETY: this query's row and this head's channels, which no other task writes.
            unsafe { *job.out.add(query * job.width + channel) = sum * inverse };
        }
    }
}

/// `weights[key][query] = Σ_channel k[key][channel] · q[channel][query]`.
#[inline(always)]
unsafe fn score<S: Simd>(d: usize, n_keys: usize, q: &[f32], k: &[f32], weights: &mut [f32]) {
    for first in (0..d).step_by(DEPTH) {
        let op = Operands {
            a: k[first..].as_ptr(),
            a_row: d,
            a_col: 1,
            b: q[first * PANEL..].as_ptr(),
            c: weights.as_mut_ptr(),
            c_row: PANEL,
            k: DEPTH.min(d - first),
            onto: first > 0,
        };
        // SAFETY: `k` is `n_keys × d`, `q` a panel of `d` rows, `weights` a panel of `n_keys` rows.
        unsafe { tile::panel::<S>(n_keys, PANEL, op) };
    }
}

/// Scores to weights `exp(score − maximum)`, moving the running maximum and sum on; returns by what earlier
/// sums must be multiplied.
#[inline(always)]
unsafe fn softmax_block<S: Simd>(weights: &mut [f32], running: &mut [f32]) -> [f32; PANEL] {
    let mut shrink = [0f32; PANEL];
    for half in [0, LANES] {
        // SAFETY: rows of `weights` are PANEL wide, `running` holds two of them.
        unsafe {
            let before = S::load(running[half..].as_ptr());
            let mut maximum = before;
            for row in weights.chunks_exact(PANEL) {
                maximum = S::max(maximum, S::load(row[half..].as_ptr()));
            }
            let mut sum = S::splat(0.0);
            for row in weights.chunks_exact_mut(PANEL) {
                let weight = S::exp(S::sub(S::load(row[half..].as_ptr()), maximum));
                S::store(row[half..].as_mut_ptr(), weight);
                sum = S::add(sum, weight);
            }
            let factor = S::exp(S::sub(before, maximum));
            let total = S::fma(S::load(running[PANEL + half..].as_ptr()), factor, sum);
            S::store(running[half..].as_mut_ptr(), maximum);
            S::store(running[PANEL + half..].as_mut_ptr(), total);
            S::store(shrink[half..].as_mut_ptr(), factor);
        }
    }
    shrink
}

/// `sums[channel][query] = sums·shrink + Σ_key v[key][channel] · weights[key][query]`.
#[inline(always)]
unsafe fn weigh<S: Simd>(
    d: usize,
    n_keys: usize,
    weights: &[f32],
    v: &[f32],
    sums: &mut [f32],
    shrink: Option<&[f32; PANEL]>,
) {
    if let Some(shrink) = shrink {
        // SAFETY: rows of `sums` and `shrink` are PANEL wide.
        unsafe {
            let (low, high) = (S::load(shrink.as_ptr()), S::load(shrink[LANES..].as_ptr()));
            for row in sums.chunks_exact_mut(PANEL) {
                S::store(row.as_mut_ptr(), S::mul(S::load(row.as_ptr()), low));
                S::store(row[LANES..].as_mut_ptr(), S::mul(S::load(row[LANES..].as_ptr()), high));
            }
        }
    }
    let op = Operands {
        a: v.as_ptr(),
        a_row: 1,
        a_col: d,
        b: weights.as_ptr(),
        c: sums.as_mut_ptr(),
        c_row: PANEL,
        k: n_keys,
        onto: shrink.is_some(),
    };
    // SAFETY: `v` is `n_keys × d` read by columns, `weights` a panel of `n_keys` rows, `sums` one of `d` rows.
    unsafe { tile::panel::<S>(d, PANEL, op) };
}
