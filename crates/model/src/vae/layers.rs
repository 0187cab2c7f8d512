//! The decoder's layers on a band: what each asks of the neighbours, and what it gives back.

use candle_core::{Result, Tensor};
use kernels::{ChannelAffine, Conv3x3, Epilogue, Halo, Linear, affine_of, apply, attention, moments};
use plan::VaeSpec;

use super::slabs::Slabs;
use super::{ATTENTION_NAMES, conv};
use crate::dit::linear;
use crate::seam::RowExchange;
use crate::weights::Weights;

/// Added to the variance in every group norm.
const NORM_EPS: f64 = 1e-6;

/// A band on its way through the decoder.
pub(super) struct Band<'a> {
    pub(super) slabs: Slabs,
    /// Rows that come from one latent row: moments are taken of such blocks.
    pub(super) block_rows: usize,
    pub(super) exchange: &'a mut dyn RowExchange,
}

impl Band<'_> {
    /// What lies outside the band.
    pub(super) fn halo(&mut self) -> Result<Halo> {
        let (first, last) = self.slabs.edges()?;
        self.exchange.halo(&first, &last)
    }
}

pub(super) struct GroupNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    groups: usize,
}

impl GroupNorm {
    pub(super) fn load(spec: &VaeSpec, weights: &Weights, name: &str) -> Result<Self> {
        let vector = |part: &str| weights.f32(&format!("{name}.{part}"))?.to_vec1();
        Ok(Self { weight: vector("weight")?, bias: vector("bias")?, groups: spec.groups })
    }

    /// The norm as a map of channels, from the moments of the whole picture.
    pub(super) fn affine(&self, band: &mut Band<'_>) -> Result<ChannelAffine> {
        let partials = moments(band.slabs.all(), self.groups, band.block_rows)?;
        let all = band.exchange.gather_moments(partials)?;
        Ok(affine_of(&all, self.groups, &self.weight, &self.bias, NORM_EPS))
    }
}

/// Norm, SiLU, convolution, twice, around a shortcut.
pub(super) struct Resnet {
    norm_first: GroupNorm,
    conv_first: Conv3x3,
    norm_second: GroupNorm,
    conv_second: Conv3x3,
    /// A 1×1 convolution where the channels change.
    shortcut: Option<Linear>,
}

impl Resnet {
    pub(super) fn load(spec: &VaeSpec, weights: &Weights, name: &str) -> Result<Self> {
        let shortcut = format!("{name}.conv_shortcut");
        let has_shortcut = weights.header(&format!("{shortcut}.weight")).is_some();
        Ok(Self {
            norm_first: GroupNorm::load(spec, weights, &format!("{name}.norm1"))?,
            conv_first: conv(weights, &format!("{name}.conv1"))?,
            norm_second: GroupNorm::load(spec, weights, &format!("{name}.norm2"))?,
            conv_second: conv(weights, &format!("{name}.conv2"))?,
            shortcut: has_shortcut.then(|| linear(weights, &shortcut)).transpose()?,
        })
    }

    pub(super) fn forward(&self, band: &mut Band<'_>) -> Result<()> {
        let norm = self.norm_first.affine(band)?;
        let halo = band.halo()?;
        let both = std::mem::take(&mut band.slabs).each(halo, |x, halo| {
            let hidden = self.conv_first.forward(&x, halo, Some(&norm))?;
            band.exchange.slab_done()?;
            let shortcut = match &self.shortcut {
                Some(project) => project_pixels(project, &x)?,
                None => x,
            };
            Ok((hidden, shortcut))
        })?;
        let (hidden, shortcuts): (_, Vec<_>) = both.into_iter().unzip();
        band.slabs = Slabs::of(hidden);

        let norm = self.norm_second.affine(band)?;
        let halo = band.halo()?;
        let mut shortcuts = shortcuts.into_iter();
        let summed = std::mem::take(&mut band.slabs).each(halo, |hidden, halo| {
            let Some(shortcut) = shortcuts.next() else { candle_core::bail!("every slab has a shortcut") };
            let summed = self.conv_second.forward_onto(&hidden, halo, Some(&norm), shortcut)?;
            band.exchange.slab_done()?;
            Ok(summed)
        })?;
        band.slabs = Slabs::of(summed);
        Ok(())
    }
}

/// A 1×1 convolution.
fn project_pixels(project: &Linear, x: &Tensor) -> Result<Tensor> {
    let (rows, cols, channels) = x.dims3()?;
    let pixels = project.forward(&x.reshape((rows * cols, channels))?, Epilogue::None)?;
    pixels.reshape((rows, cols, project.outputs()))
}

/// The one place where pixels attend to pixels: a single head as wide as the channels.
pub(super) struct MidAttention {
    norm: GroupNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl MidAttention {
    pub(super) fn load(spec: &VaeSpec, weights: &Weights, name: &str) -> Result<Self> {
        // Weights are found under the newer names, whichever a file has.
        let [q, k, v, out] = ATTENTION_NAMES.map(|[newer, _]| linear(weights, &format!("{name}.{newer}")));
        let norm = GroupNorm::load(spec, weights, &format!("{name}.group_norm"))?;
        Ok(Self { norm, q: q?, k: k?, v: v?, out: out? })
    }

    pub(super) fn forward(&self, band: &mut Band<'_>) -> Result<()> {
        let norm = self.norm.affine(band)?;
        let residual = std::mem::take(&mut band.slabs).whole()?;
        let dims = residual.dims3()?;
        let x = apply(&residual, &norm)?;
        let q = self.q.forward(&x, Epilogue::None)?;
        let k = band.exchange.gather(self.k.forward(&x, Epilogue::None)?)?;
        let v = band.exchange.gather(self.v.forward(&x, Epilogue::None)?)?;
        drop(x);
        let attended = attention(&q, &k, &v, 1)?;
        drop((q, k, v));
        let residual = residual.reshape((dims.0 * dims.1, dims.2))?;
        let x = self.out.forward(&attended, Epilogue::Onto { residual: &residual, gate: None })?;
        band.slabs = Slabs::one(x.reshape(dims)?);
        Ok(())
    }
}
