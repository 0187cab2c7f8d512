//! The decoder of the SDXL family's VAE (`AutoencoderKL`): latents to pixels.
//!
//! Works on a band of whole latent rows, channels last; the whole picture is the band of all rows. What a band
//! needs of its neighbours it asks a [`RowExchange`]. A band's pixels lie in [`Slabs`], and what a layer has read is
//! given back while it still computes: at its widest the decode holds one picture of features and a slab.

use candle_core::{Result, Tensor};
use kernels::{Conv3x3, Epilogue, Linear, UpConv};
use plan::{VaeSpec, slab_bytes};

use crate::dit::linear;
use crate::finite::{self, ForwardError};
use crate::place::Place;
use crate::seam::RowExchange;
use crate::weights::Weights;

mod layers;
mod slabs;
use layers::{Band, GroupNorm, MidAttention, Resnet};
use slabs::Slabs;

const IMAGE_CHANNELS: usize = 3;

/// The decoder's weights.
pub struct Decoder {
    spec: VaeSpec,
    place: Place,
    /// Where it is not chosen by the band's size.
    slab_values: Option<usize>,
    post_quant: Option<Linear>,
    conv_in: Conv3x3,
    mid_first: Resnet,
    mid_attention: Option<MidAttention>,
    mid_second: Resnet,
    /// Coarsest first.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv3x3,
}

struct Level {
    resnets: Vec<Resnet>,
    enlarge: Option<UpConv>,
}

impl Decoder {
    /// The whole decoder.
    ///
    /// # Errors
    /// If a weight is missing or misshapen.
    pub fn load(spec: &VaeSpec, weights: &Weights) -> Result<Self> {
        let resnet = |name: &str| Resnet::load(spec, weights, name);
        let levels = (0..spec.widths.len())
            .map(|level| {
                let name = format!("decoder.up_blocks.{level}");
                let resnets = (0..=spec.layers_per_block)
                    .map(|idx| resnet(&format!("{name}.resnets.{idx}")))
                    .collect::<Result<_>>()?;
                let enlarge = if level + 1 < spec.widths.len() {
                    let conv = format!("{name}.upsamplers.0.conv");
                    Some(UpConv::new(
                        &weights.placed(&format!("{conv}.weight"))?,
                        &weights.f32(&format!("{conv}.bias"))?,
                    )?)
                } else {
                    None
                };
                Ok(Level { resnets, enlarge })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            spec: spec.clone(),
            place: weights.place().clone(),
            slab_values: None,
            post_quant: spec.has_post_quant_conv.then(|| linear(weights, "post_quant_conv")).transpose()?,
            conv_in: conv(weights, "decoder.conv_in")?,
            mid_first: resnet("decoder.mid_block.resnets.0")?,
            mid_attention: spec
                .has_mid_attention
                .then(|| MidAttention::load(spec, weights, "decoder.mid_block.attentions.0"))
                .transpose()?,
            mid_second: resnet("decoder.mid_block.resnets.1")?,
            levels,
            norm_out: GroupNorm::load(spec, weights, "decoder.conv_norm_out")?,
            conv_out: conv(weights, "decoder.conv_out")?,
        })
    }

    /// The same with slabs of about so many values, whole latent rows at least. The pixels do not depend on it.
    #[must_use]
    pub fn with_slabs_of(self, slab_values: usize) -> Self {
        Self { slab_values: Some(slab_values), ..self }
    }

    /// Layers of the decode as [`Self::decode`] counts them.
    pub fn n_parts(&self) -> usize {
        4 + self.levels.iter().map(|level| level.resnets.len() + usize::from(level.enlarge.is_some())).sum::<usize>()
    }

    /// A band of latents `[4, rows, cols]` to pixels `[rows·8, cols·8, 3]`, nominally in −1..1; both are f32 on the CPU.
    ///
    /// `part_done` is told after each of [`Self::n_parts`] layers and may break off.
    ///
    /// # Errors
    /// If a value stops being finite (the layer is named), `part_done` breaks off, or `exchange` fails.
    pub fn decode(
        &self,
        latents: &Tensor,
        exchange: &mut dyn RowExchange,
        part_done: &mut dyn FnMut(usize) -> std::ops::ControlFlow<()>,
    ) -> std::result::Result<Tensor, ForwardError> {
        let mut n_done = 0;
        let mut checked = |slabs: &Slabs, name: &str| -> std::result::Result<(), ForwardError> {
            finite::check(slabs.all(), || name.to_owned())?;
            n_done += 1;
            if part_done(n_done).is_break() { Err(ForwardError::Cancelled) } else { Ok(()) }
        };
        let slab_values = self
            .slab_values
            .unwrap_or_else(|| self.slab_values_for(latents.elem_count() / self.spec.latent_channels.max(1)));
        let mut band = Band { slabs: Slabs::one(self.enter(latents)?), block_rows: 1, exchange };
        let halo = band.halo()?;
        band.slabs = Slabs::of(band.slabs.each(halo, |x, halo| self.conv_in.forward(&x, halo, None))?);
        checked(&band.slabs, "decoder.conv_in")?;

        self.mid_first.forward(&mut band)?;
        checked(&band.slabs, "decoder.mid_block.resnets.0")?;
        if let Some(attention) = &self.mid_attention {
            attention.forward(&mut band)?;
        }
        self.mid_second.forward(&mut band)?;
        checked(&band.slabs, "decoder.mid_block.resnets.1")?;
        for (level_idx, level) in self.levels.iter().enumerate() {
            for (idx, resnet) in level.resnets.iter().enumerate() {
                resnet.forward(&mut band)?;
                checked(&band.slabs, &format!("decoder.up_blocks.{level_idx}.resnets.{idx}"))?;
            }
            if let Some(enlarge) = &level.enlarge {
                let halo = band.halo()?;
                // Channels stay, pixels become four.
                let small = band.slabs.cut(band.block_rows, slab_values / 4)?;
                band.slabs = Slabs::of(small.each(halo, |x, halo| {
                    let large = enlarge.forward(&x, halo)?;
                    band.exchange.slab_done()?;
                    Ok(large)
                })?);
                band.block_rows *= 2;
                checked(&band.slabs, &format!("decoder.up_blocks.{level_idx}.upsamplers.0"))?;
            }
        }
        let norm = self.norm_out.affine(&mut band)?;
        let halo = band.halo()?;
        let slabs = Slabs::of(band.slabs.each(halo, |x, halo| self.conv_out.forward(&x, halo, Some(&norm)))?);
        checked(&slabs, "decoder.conv_out")?;
        Ok(slabs.bring_back()?)
    }

    fn slab_values_for(&self, n_cells: usize) -> usize {
        let value_bytes = self.place.value_bytes();
        usize::try_from(slab_bytes(&self.spec, n_cells as u128, value_bytes) / u128::from(value_bytes))
            .unwrap_or(usize::MAX)
    }

    /// Latents as the encoder left them, channels last.
    fn enter(&self, latents: &Tensor) -> Result<Tensor> {
        let (channels, rows, cols) = latents.dims3()?;
        let x = latents.affine(1.0 / self.spec.scaling_factor, self.spec.shift_factor)?;
        let x = self.place.take(&x.permute((1, 2, 0))?.contiguous()?.reshape((rows * cols, channels))?)?;
        let x = match &self.post_quant {
            Some(post_quant) => post_quant.forward(&x, Epilogue::None)?,
            None => x,
        };
        x.reshape((rows, cols, channels))
    }
}

/// Decoded pixels `[rows, cols, 3]` as a picture `[1, 3, rows, cols]` in 0..1.
///
/// # Errors
/// If shapes do not fit.
pub fn picture(pixels: &Tensor) -> Result<Tensor> {
    let picture = pixels.affine(0.5, 0.5)?.clamp(0f32, 1f32)?;
    picture.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)
}

fn conv(weights: &Weights, name: &str) -> Result<Conv3x3> {
    Conv3x3::new(&weights.placed(&format!("{name}.weight"))?, &weights.f32(&format!("{name}.bias"))?)
}

/// Projections of the middle attention: the names in use, and those of older files.
const ATTENTION_NAMES: [[&str; 2]; 4] =
    [["to_q", "query"], ["to_k", "key"], ["to_v", "value"], ["to_out.0", "proj_attn"]];

/// Names and shapes of every tensor the decoder needs; where two names are in use, both, the newer first.
pub fn manifest(spec: &VaeSpec) -> Vec<(Vec<String>, Vec<usize>)> {
    let mut all = Vec::new();
    let mut tensor = |name: String, shape: Vec<usize>| all.push((vec![name], shape));
    let mut conv = |name: String, outputs: usize, inputs: usize, kernel: usize| {
        tensor(format!("{name}.weight"), vec![outputs, inputs, kernel, kernel]);
        tensor(format!("{name}.bias"), vec![outputs]);
    };
    let (finest, coarsest) = (spec.widths[0], spec.widths[spec.widths.len() - 1]);
    if spec.has_post_quant_conv {
        conv("post_quant_conv".into(), spec.latent_channels, spec.latent_channels, 1);
    }
    conv("decoder.conv_in".into(), coarsest, spec.latent_channels, 3);
    conv("decoder.conv_out".into(), IMAGE_CHANNELS, finest, 3);
    let mut norms = vec![("decoder.conv_norm_out".to_owned(), finest)];
    let mut resnet = |name: String, inputs: usize, outputs: usize| {
        conv(format!("{name}.conv1"), outputs, inputs, 3);
        conv(format!("{name}.conv2"), outputs, outputs, 3);
        if inputs != outputs {
            conv(format!("{name}.conv_shortcut"), outputs, inputs, 1);
        }
        norms.push((format!("{name}.norm1"), inputs));
        norms.push((format!("{name}.norm2"), outputs));
    };
    for idx in 0..2 {
        resnet(format!("decoder.mid_block.resnets.{idx}"), coarsest, coarsest);
    }
    let mut width = coarsest;
    for (level, &outputs) in spec.widths.iter().rev().enumerate() {
        for idx in 0..=spec.layers_per_block {
            resnet(format!("decoder.up_blocks.{level}.resnets.{idx}"), width, outputs);
            width = outputs;
        }
    }
    for (level, &outputs) in spec.widths.iter().rev().enumerate().take(spec.widths.len() - 1) {
        conv(format!("decoder.up_blocks.{level}.upsamplers.0.conv"), outputs, outputs, 3);
    }
    if spec.has_mid_attention {
        let name = "decoder.mid_block.attentions.0";
        norms.push((format!("{name}.group_norm"), coarsest));
        for names in ATTENTION_NAMES {
            let both = |end: &str| names.iter().map(|part| format!("{name}.{part}.{end}")).collect::<Vec<_>>();
            all.push((both("weight"), vec![coarsest, coarsest]));
            all.push((both("bias"), vec![coarsest]));
        }
    }
    for (name, width) in norms {
        for end in ["weight", "bias"] {
            all.push((vec![format!("{name}.{end}")], vec![width]));
        }
    }
    all
}
