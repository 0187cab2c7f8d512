//! A band of pixel rows in a few tensors, so that a layer can give back what it has read before it has read all.

use candle_core::{Result, Tensor};
use kernels::Halo;

use crate::place::bring_back;

/// Rows that follow each other, `[rows, cols, channels]` each.
#[derive(Default)]
pub(super) struct Slabs(Vec<Tensor>);

impl Slabs {
    /// All rows in one.
    pub(super) fn one(x: Tensor) -> Self {
        Self(vec![x])
    }

    /// From the top.
    pub(super) fn of(slabs: Vec<Tensor>) -> Self {
        Self(slabs)
    }

    /// From the top.
    pub(super) fn all(&self) -> &[Tensor] {
        &self.0
    }

    /// The first and the last row.
    pub(super) fn edges(&self) -> Result<(Tensor, Tensor)> {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else {
            candle_core::bail!("a band without rows has no edges")
        };
        Ok((first.narrow(0, 0, 1)?, last.narrow(0, last.dim(0)? - 1, 1)?))
    }

    /// Gives `layer` each slab and the rows around it, `outer` outside all of them. A slab is `layer`'s to keep or drop:
    /// its last row is copied for the one below.
    pub(super) fn each<T>(self, outer: Halo, mut layer: impl FnMut(Tensor, &Halo) -> Result<T>) -> Result<Vec<T>> {
        let Halo { mut above, below: mut behind_all } = outer;
        let mut slabs = self.0.into_iter().peekable();
        let mut results = Vec::with_capacity(slabs.len());
        while let Some(x) = slabs.next() {
            let (below, last) = match slabs.peek() {
                Some(next) => (Some(next.narrow(0, 0, 1)?), Some(x.narrow(0, x.dim(0)? - 1, 1)?.force_contiguous()?)),
                None => (behind_all.take(), None),
            };
            results.push(layer(x, &Halo { above, below })?);
            above = last;
        }
        Ok(results)
    }

    /// Cut into slabs of at most `most_values` where they are larger, but of whole blocks of `block_rows`.
    pub(super) fn cut(self, block_rows: usize, most_values: usize) -> Result<Self> {
        let mut pieces = Vec::new();
        for x in self.0 {
            let (n_rows, cols, channels) = x.dims3()?;
            let block_values = block_rows * cols * channels;
            let most_rows = block_rows * (most_values / block_values.max(1)).max(1);
            for first in (0..n_rows).step_by(most_rows) {
                pieces.push(x.narrow(0, first, most_rows.min(n_rows - first))?);
            }
        }
        Ok(Self(pieces))
    }

    /// In one tensor.
    pub(super) fn whole(self) -> Result<Tensor> {
        match <[Tensor; 1]>::try_from(self.0) {
            Ok([x]) => Ok(x),
            Err(slabs) => Tensor::cat(&slabs, 0),
        }
    }

    /// In one tensor, f32 on the CPU.
    pub(super) fn bring_back(self) -> Result<Tensor> {
        Self(self.0.iter().map(bring_back).collect::<Result<_>>()?).whole()
    }
}
