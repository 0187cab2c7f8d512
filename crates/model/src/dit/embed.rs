//! What enters the blocks: tokens with their places, and the timestep as modulation.

use candle_core::{Device, Result, Tensor};
use kernels::{Epilogue, Linear};
use plan::{DitSpec, RowRange, TokenGrid};

use super::linear;
use crate::place::Place;
use crate::weights::Weights;

/// Width of the timestep's sinusoidal code.
pub(super) const TIMESTEP_WIDTH: usize = 256;

/// 2×2 cells to a token, plus the code of the token's place.
pub(super) struct PatchEmbed {
    place: Place,
    project: Linear,
    width: usize,
    base_tokens: usize,
    interpolation: f64,
}

impl PatchEmbed {
    pub(super) fn load(spec: &DitSpec, weights: &Weights) -> Result<Self> {
        Ok(Self {
            place: weights.place().clone(),
            project: linear(weights, "pos_embed.proj")?,
            width: spec.width(),
            base_tokens: spec.base_tokens(),
            interpolation: spec.interpolation,
        })
    }

    /// `latent` `[4, 2·rows, 2·cols]`, rows `band` of `grid`, to `[rows·cols, width]`.
    pub(super) fn forward(&self, latent: &Tensor, band: RowRange, grid: TokenGrid) -> Result<Tensor> {
        let channels = latent.dim(0)?;
        // [channel, rows, p, cols, q] to [rows, cols, channel, p, q], the order of the convolution's weights
        let cells = latent.reshape((channels, band.n_rows(), 2, grid.cols, 2))?.permute((1, 3, 0, 2, 4))?;
        let cells = cells.contiguous()?.reshape((band.n_rows() * grid.cols, 4 * channels))?;
        let places = self.place.take(&self.places(band, grid)?)?;
        self.project.forward(&self.place.take(&cells)?, Epilogue::Onto { residual: &places, gate: None })
    }

    /// Sinusoidal codes of the places of a band's tokens, `[rows·cols, width]`: column first, then row.
    ///
    /// Coordinates are scaled so that any grid spans the range of the one trained on (`base_tokens`), in f32 as
    /// the reference does it.
    fn places(&self, band: RowRange, grid: TokenGrid) -> Result<Tensor> {
        let code = |idx: usize, n: usize| -> Vec<f32> {
            let span = n as f32 / self.base_tokens as f32;
            let place = f64::from(idx as f32 / span / self.interpolation as f32);
            let n_frequencies = self.width / 4;
            let angle = |k: usize| place / libm::pow(10_000.0, k as f64 / n_frequencies as f64);
            let sines = (0..n_frequencies).map(|k| libm::sin(angle(k)) as f32);
            sines.chain((0..n_frequencies).map(|k| libm::cos(angle(k)) as f32)).collect()
        };
        let of_cols: Vec<Vec<f32>> = (0..grid.cols).map(|col| code(col, grid.cols)).collect();
        let mut values = Vec::with_capacity(band.n_rows() * grid.cols * self.width);
        for row in band.start..band.end {
            let of_row = code(row, grid.rows);
            for of_col in &of_cols {
                values.extend_from_slice(of_col);
                values.extend_from_slice(&of_row);
            }
        }
        Tensor::from_vec(values, (band.n_rows() * grid.cols, self.width), &Device::Cpu)
    }
}

/// adaLN-single: one MLP turns the timestep into modulation for all blocks.
pub(super) struct TimestepEmbed {
    widen: Linear,
    embed: Linear,
    modulate: Linear,
}

/// A timestep as the blocks and the head need it.
pub(super) struct Time {
    /// `[width]`, for the head.
    pub(super) embedding: Vec<f32>,
    /// `[6·width]`, for the blocks.
    pub(super) modulation: Vec<f32>,
}

impl TimestepEmbed {
    pub(super) fn load(weights: &Weights) -> Result<Self> {
        Ok(Self {
            widen: at_home(weights, "adaln_single.emb.timestep_embedder.linear_1")?,
            embed: at_home(weights, "adaln_single.emb.timestep_embedder.linear_2")?,
            modulate: at_home(weights, "adaln_single.linear")?,
        })
    }

    pub(super) fn forward(&self, t: usize) -> Result<Time> {
        let code = Tensor::from_vec(timestep_code(t), (1, TIMESTEP_WIDTH), &Device::Cpu)?;
        let hidden = self.widen.forward(&code, Epilogue::Silu)?;
        let embedding = self.embed.forward(&hidden, Epilogue::None)?.flatten_all()?.to_vec1()?;
        let activated = self.embed.forward(&hidden, Epilogue::Silu)?;
        let modulation = self.modulate.forward(&activated, Epilogue::None)?.flatten_all()?.to_vec1()?;
        Ok(Time { embedding, modulation })
    }
}

/// The linear layer `name` on the CPU: one row is not worth a journey.
fn at_home(weights: &Weights, name: &str) -> Result<Linear> {
    Linear::new(&weights.f32(&format!("{name}.weight"))?, Some(&weights.f32(&format!("{name}.bias"))?))
}

/// Cosines, then sines, of the timestep at 128 frequencies; frequencies and angles are rounded to f32 as in
/// the reference, for at t near 1000 their last bits show.
fn timestep_code(t: usize) -> Vec<f32> {
    const HALF: usize = TIMESTEP_WIDTH / 2;
    let log_period = -libm::log(10_000.0) as f32;
    let angle = |k: usize| {
        let frequency = libm::exp(f64::from(log_period * k as f32 / HALF as f32)) as f32;
        f64::from(t as f32 * frequency)
    };
    let cosines = (0..HALF).map(|k| libm::cos(angle(k)) as f32);
    cosines.chain((0..HALF).map(|k| libm::sin(angle(k)) as f32)).collect()
}
