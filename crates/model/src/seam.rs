//! The two places where a row needs more than itself, as questions the mathematics asks.
//!
//! Nearly everything in these networks is done token by token or pixel by pixel. Tokens meet other tokens in
//! self-attention only; pixels meet others in 3×3 convolutions, in group norm and in one attention. So a split
//! picture needs these two traits and no other knowledge of ranks. The implementations beside them are for one
//! rank that holds every row: the oracle others are tested against.

use candle_core::{Result, Tensor};
use kernels::{Halo, Moments};
use plan::LayerIdx;

/// Where queries meet keys and values that this rank may not hold.
pub trait AttentionContext {
    /// Self-attention of layer `layer`: this rank's queries over the keys and values of all ranks, in the order
    /// of their rows.
    ///
    /// `q` `[tokens, heads·d]`; `k`, `v` `[keys, heads·d]`, compressed already where the layer compresses.
    /// May wait for other ranks.
    ///
    /// # Errors
    /// If shapes do not fit, or another rank is gone.
    fn attend(&mut self, layer: LayerIdx, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor>;
}

/// One rank holds the whole sequence.
pub struct WholeSequence {
    /// Attention heads of the model.
    pub heads: usize,
}

impl AttentionContext for WholeSequence {
    fn attend(&mut self, _layer: LayerIdx, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        kernels::attention(q, k, v, self.heads)
    }
}

/// Where a band of pixel rows meets the rows of other bands.
pub trait RowExchange {
    /// The rows just above and below this band `x` `[rows, cols, channels]`.
    ///
    /// # Errors
    /// If another rank is gone.
    fn halo(&mut self, x: &Tensor) -> Result<Halo>;

    /// The partial moments of all bands, in row order, given this band's.
    ///
    /// # Errors
    /// If another rank is gone.
    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>>;

    /// The rows of all bands, in order, given this band's `[tokens, channels]`.
    ///
    /// # Errors
    /// If another rank is gone.
    fn gather(&mut self, x: Tensor) -> Result<Tensor>;
}

/// One rank holds the whole picture.
pub struct WholePicture;

impl RowExchange for WholePicture {
    fn halo(&mut self, _x: &Tensor) -> Result<Halo> {
        Ok(Halo::default())
    }

    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>> {
        Ok(partials)
    }

    fn gather(&mut self, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}
