//! Facts about a model that arithmetic needs: depths, widths, which layers compress.
//!
//! Read from a model folder's configs by `model::config`; names of tensors and files live there.

use std::collections::BTreeSet;

use crate::geometry::{ImageSize, TOKEN_CELLS};
use crate::id::LayerIdx;
use crate::request::RequestError;

/// All three networks of a model folder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The diffusion transformer.
    pub dit: DitSpec,
    /// The picture decoder.
    pub vae: VaeSpec,
    /// The text encoder.
    pub text: TextSpec,
}

impl ModelSpec {
    /// PixArt-Σ XL/2 with SDXL's decoder and T5-XXL, as published for pictures of 1024².
    pub fn pixart_sigma_xl2() -> Self {
        Self {
            dit: DitSpec {
                depth: 28,
                heads: 16,
                head_width: 72,
                caption_width: 4096,
                sample_cells: 128,
                interpolation: 2.0,
                kv_compress: None,
            },
            vae: VaeSpec::sdxl_family(&[128, 256, 512, 512], 2, 32),
            text: TextSpec { width: 4096, depth: 24, vocabulary: 32_128 },
        }
    }

    /// Passes if this model can render pictures of `size`.
    ///
    /// # Errors
    /// If compression would leave no keys at all.
    pub fn check_size(&self, size: ImageSize) -> Result<(), RequestError> {
        let ratio = self.dit.kv_compress.as_ref().map_or(1, |kv| kv.ratio);
        let grid = size.latent(self.vae.factor()).tokens().compressed(ratio);
        if grid.rows > 0 && grid.cols > 0 {
            return Ok(());
        }
        let least_px = (ratio * self.vae.factor() * TOKEN_CELLS) as u32;
        Err(RequestError::Small { size, least_px })
    }
}

/// The diffusion transformer (PixArt-Σ, arXiv:2403.04692).
#[derive(Debug, Clone, PartialEq)]
pub struct DitSpec {
    /// Blocks.
    pub depth: usize,
    /// Attention heads.
    pub heads: usize,
    /// Channels of one head.
    pub head_width: usize,
    /// Channels of an encoded caption token.
    pub caption_width: usize,
    /// Latent side the position code is based on (`sample_size`, a constant of the checkpoint).
    pub sample_cells: usize,
    /// Divisor of the position coordinates (`interpolation_scale`).
    pub interpolation: f64,
    /// Which blocks compress keys and values, if any.
    pub kv_compress: Option<KvCompress>,
}

/// Compression of keys and values by a depth-wise convolution before attention.
#[derive(Debug, Clone, PartialEq)]
pub struct KvCompress {
    /// Kernel and stride, R: keys shrink by R².
    pub ratio: usize,
    /// Blocks that compress.
    pub layers: BTreeSet<LayerIdx>,
}

impl DitSpec {
    /// Latent channels in.
    pub const IN_CHANNELS: usize = 4;
    /// Channels out: four of predicted noise, four of learned variance.
    pub const OUT_CHANNELS: usize = 8;
    /// The MLP's hidden width over the model width.
    pub const MLP_RATIO: usize = 4;

    /// Channels of a token.
    pub fn width(&self) -> usize {
        self.heads * self.head_width
    }

    /// Ratio by which `layer` compresses keys and values, 1 if it does not.
    pub fn kv_ratio(&self, layer: LayerIdx) -> usize {
        match &self.kv_compress {
            Some(kv) if kv.layers.contains(&layer) => kv.ratio,
            _ => 1,
        }
    }

    /// Token rows per side the position code spans.
    pub fn base_tokens(&self) -> usize {
        self.sample_cells / TOKEN_CELLS
    }
}

/// The VAE decoder (SDXL family).
#[derive(Debug, Clone, PartialEq)]
pub struct VaeSpec {
    /// Channels of each level, finest first (`block_out_channels`).
    pub widths: Vec<usize>,
    /// Resnets a level of the encoder has; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub groups: usize,
    /// Latents are divided by this before they are decoded.
    pub scaling_factor: f64,
    /// Added after that division (0 for the SDXL family).
    pub shift_factor: f64,
    /// Channels of the latent.
    pub latent_channels: usize,
    /// Whether a 1×1 convolution precedes the decoder.
    pub has_post_quant_conv: bool,
    /// Whether the middle block attends.
    pub has_mid_attention: bool,
}

impl VaeSpec {
    /// A decoder as the SDXL family has it, of any size: `widths` finest first.
    pub fn sdxl_family(widths: &[usize], layers_per_block: usize, groups: usize) -> Self {
        Self {
            widths: widths.to_vec(),
            layers_per_block,
            groups,
            scaling_factor: 0.13025,
            shift_factor: 0.0,
            latent_channels: DitSpec::IN_CHANNELS,
            has_post_quant_conv: true,
            has_mid_attention: true,
        }
    }

    /// Pixels per latent cell on each side.
    pub fn factor(&self) -> usize {
        1 << (self.widths.len() - 1)
    }
}

/// The T5 text encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSpec {
    /// Channels of an encoded token.
    pub width: usize,
    /// Layers.
    pub depth: usize,
    /// Size of the vocabulary.
    pub vocabulary: usize,
}
