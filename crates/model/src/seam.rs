//! The two places where a row needs more than itself, as questions the mathematics asks.
//!
//! Nearly everything in these networks is done token by token or pixel by pixel. Tokens meet other tokens in
//! self-attention only; pixels meet others in 3×3 convolutions, in group norm and in one attention. So a split
//! picture needs these two traits and no other knowledge of ranks. The implementations beside them are for one
//! rank that holds every row: the oracle others are tested against.

use candle_core::{Result, Tensor};
use kernels::{Halo, Moments};
use plan::{LayerIdx, TokenGrid};

use crate::dit::block::Block;

/// Where queries meet keys and values that this rank may not hold.
pub trait AttentionContext {
    /// Self-attention of one layer: this rank's queries over the keys and values of all ranks, in the order of
    /// their rows. Gives `[tokens, heads·d]`.
    ///
    /// What is asked of `rows` first is computed first, so that what must travel can be on its way while the rest
    /// is computed. May wait for other ranks.
    ///
    /// # Errors
    /// If shapes do not fit, or another rank is gone.
    fn attend(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor>;
}

/// A band's rows at the door of one layer's self-attention.
pub struct SelfAttention<'a> {
    block: &'a Block,
    x: Tensor,
    cols: usize,
}

impl<'a> SelfAttention<'a> {
    /// `x` `[tokens, width]`, whole rows of `cols` tokens, normalised and modulated.
    pub(crate) fn new(block: &'a Block, x: Tensor, cols: usize) -> Self {
        Self { block, x, cols }
    }

    /// Which layer this is.
    pub fn layer(&self) -> LayerIdx {
        self.block.layer()
    }

    /// Attention heads of the layer.
    pub fn heads(&self) -> usize {
        self.block.heads()
    }

    /// The rows themselves, `[tokens, width]`.
    pub fn rows(&self) -> &Tensor {
        &self.x
    }

    /// Tokens in a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many keys `n_rows` rows of tokens have.
    pub fn n_keys(&self, n_rows: usize) -> usize {
        let grid = TokenGrid { rows: n_rows, cols: self.cols };
        grid.compressed(self.block.kv_ratio()).n_tokens()
    }

    /// Queries of these rows, `[tokens, heads·d]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn queries(&self) -> Result<Tensor> {
        self.block.queries(&self.x)
    }

    /// Keys and values of whole rows `x` `[tokens, width]`, these or another rank's, `[keys, heads·d]` each:
    /// compressed already where the layer compresses.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn keys_and_values(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        self.block.keys_and_values(x, self.cols)
    }
}

/// One rank holds the whole sequence.
pub struct WholeSequence;

impl AttentionContext for WholeSequence {
    fn attend(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let (k, v) = rows.keys_and_values(rows.rows())?;
        kernels::attention(&rows.queries()?, &k, &v, rows.heads())
    }
}

/// Where a band of pixel rows meets the rows of other bands.
pub trait RowExchange {
    /// The rows just above and below this band, given its own `first` and `last` row, `[1, cols, channels]` each.
    ///
    /// # Errors
    /// If another rank is gone.
    fn halo(&mut self, first: &Tensor, last: &Tensor) -> Result<Halo>;

    /// The partial moments of all bands, in row order, given this band's.
    ///
    /// # Errors
    /// If another rank is gone.
    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>>;

    /// The rows of all bands, in order, given this band's `[cells, channels]`, one a latent cell.
    ///
    /// # Errors
    /// If another rank is gone.
    fn gather(&mut self, x: Tensor) -> Result<Tensor>;

    /// Told whenever a layer has computed some rows of the band: a sign of life.
    ///
    /// # Errors
    /// If whoever watches the decode breaks off.
    fn slab_done(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One rank holds the whole picture.
pub struct WholePicture;

impl RowExchange for WholePicture {
    fn halo(&mut self, _first: &Tensor, _last: &Tensor) -> Result<Halo> {
        Ok(Halo::default())
    }

    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>> {
        Ok(partials)
    }

    fn gather(&mut self, x: Tensor) -> Result<Tensor> {
        Ok(x)
    }
}
