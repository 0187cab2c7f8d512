//! The strip: a few padded rows of a convolution's input, normalised, moving down the picture.

use candle_core::{Result, bail};
use rayon::prelude::*;

use crate::group_norm::{ChannelAffine, apply_row};

/// How much memory a strip may take; never fewer rows than [`LEAST_ROWS`].
const STRIP_BYTES: usize = 8 << 20;
const LEAST_ROWS: usize = 4;

/// A band of rows to be convolved, and what lies beyond its edges.
pub(super) struct Source<'a> {
    values: &'a [f32],
    rows: usize,
    cols: usize,
    channels: usize,
    above: Option<Vec<f32>>,
    below: Option<Vec<f32>>,
    norm: Option<&'a ChannelAffine>,
}

impl<'a> Source<'a> {
    /// `values` are `rows × cols × channels`.
    pub(super) fn new(
        values: &'a [f32],
        (rows, cols, channels): (usize, usize, usize),
        above: Option<Vec<f32>>,
        below: Option<Vec<f32>>,
        norm: Option<&'a ChannelAffine>,
    ) -> Result<Self> {
        if [&above, &below].into_iter().flatten().any(|edge| edge.len() != cols * channels) {
            bail!("a halo row is not {cols} pixels of {channels} channels");
        }
        Ok(Self { values, rows, cols, channels, above, below, norm })
    }

    /// Row `row - 1` with SiLU and norm applied and a zero pixel at each end; zeros where there is no row.
    fn fill(&self, row: usize, padded: &mut [f32]) {
        let len = self.cols * self.channels;
        let raw = if row == 0 {
            self.above.as_deref()
        } else if row == self.rows + 1 {
            self.below.as_deref()
        } else {
            Some(&self.values[(row - 1) * len..][..len])
        };
        let inner = &mut padded[self.channels..][..len];
        match (raw, self.norm) {
            (Some(raw), Some(norm)) => apply_row(raw, inner, norm, true),
            (Some(raw), None) => inner.copy_from_slice(raw),
            (None, _) => inner.fill(0.0),
        }
    }
}

/// Padded rows: row 0 is the one above the first output row.
pub(super) struct Strip {
    values: Vec<f32>,
    row_len: usize,
    channels: usize,
}

impl Strip {
    /// From padded row `row` and padded column `col` on.
    pub(super) fn at(&self, row: usize, col: usize) -> &[f32] {
        &self.values[row * self.row_len + col * self.channels..]
    }
}

/// Moves a strip down the source: `emit(strip, first, n)` computes output rows `first..first + n`. The last two rows of a
/// strip are carried over to the next in their padded form.
pub(super) fn walk(source: &Source<'_>, emit: impl Fn(&Strip, usize, usize)) {
    let row_len = (source.cols + 2) * source.channels;
    let n_rows = (STRIP_BYTES / (4 * row_len)).saturating_sub(2).max(LEAST_ROWS).min(source.rows);
    let mut strip = Strip { values: vec![0.0; (n_rows + 2) * row_len], row_len, channels: source.channels };
    let mut first = 0;
    while first < source.rows {
        let n = n_rows.min(source.rows - first);
        let carried = if first == 0 { 0 } else { 2 };
        strip.values[carried * row_len..(n + 2) * row_len]
            .par_chunks_mut(row_len)
            .enumerate()
            .for_each(|(row, padded)| source.fill(first + carried + row, padded));
        emit(&strip, first, n);
        strip.values.copy_within(n * row_len..(n + 2) * row_len, 0);
        first += n;
    }
}
