//! The diffusion transformer of PixArt-Σ (arXiv:2403.04692): a noisy latent, a timestep and a caption in, the
//! predicted noise out.
//!
//! Works on a band of whole token rows; the whole picture is the band of all rows. Knows no rank: self-attention
//! asks an [`AttentionContext`].

use std::ops::Range;

use candle_core::{Result, Tensor};
use kernels::{Epilogue, Linear, layer_norm_modulate};
use plan::{DitSpec, LayerIdx, RowRange, TokenGrid};

use crate::finite::{self, ForwardError};
use crate::place::{Place, bring_back};
use crate::seam::AttentionContext;
use crate::weights::{OnRead, Weights, broken_off};

pub mod block;
mod embed;

use block::{Block, CaptionKeys};
use embed::{PatchEmbed, TimestepEmbed};

/// Added to the variance in every layer norm of the blocks and the head.
const NORM_EPS: f32 = 1e-6;

/// Consecutive blocks: any stage of the model, or all of it.
pub struct Stage {
    blocks: Vec<Block>,
}

impl Stage {
    /// The blocks `layers` of the model.
    ///
    /// # Errors
    /// If a weight is missing or misshapen.
    pub fn new(spec: &DitSpec, layers: Range<usize>, weights: &Weights) -> Result<Self> {
        let blocks = layers.map(|layer| Block::load(spec, LayerIdx(layer), weights)).collect::<Result<_>>()?;
        Ok(Self { blocks })
    }

    /// Keys and values of `caption` `[tokens, width]` (projected) for every block's cross-attention: they
    /// depend on nothing else, so they are computed once a prompt.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn caption_keys(&self, caption: &Tensor) -> Result<Vec<CaptionKeys>> {
        self.blocks.iter().map(|block| block.caption_keys(caption)).collect()
    }

    /// `x` `[tokens, width]`, whole rows of `cols` tokens, through all blocks.
    ///
    /// # Errors
    /// If a value stops being finite (the block is named), or `ctx` fails.
    pub fn forward(
        &self,
        mut x: Tensor,
        cols: usize,
        modulation: &[f32],
        caption: &[CaptionKeys],
        ctx: &mut dyn AttentionContext,
    ) -> std::result::Result<Tensor, ForwardError> {
        for (block, keys) in self.blocks.iter().zip(caption) {
            x = block.forward(&x, cols, modulation, keys, ctx)?;
            finite::check(std::slice::from_ref(&x), || format!("transformer_blocks.{}", block.layer()))?;
        }
        Ok(x)
    }
}

/// The whole transformer.
pub struct Dit {
    spec: DitSpec,
    place: Place,
    patches: PatchEmbed,
    timestep: TimestepEmbed,
    caption_widen: Linear,
    caption_project: Linear,
    stage: Stage,
    head: Head,
}

impl Dit {
    /// All blocks of the model. `read` is told of each and may break off.
    ///
    /// # Errors
    /// If a weight is missing or misshapen, or `read` breaks off.
    pub fn load(spec: &DitSpec, weights: &Weights, read: &OnRead<'_>) -> Result<Self> {
        let mut stage = Stage { blocks: Vec::with_capacity(spec.depth) };
        for layer in 0..spec.depth {
            stage.blocks.extend(Stage::new(spec, layer..layer + 1, weights)?.blocks);
            if read().is_break() {
                return Err(broken_off());
            }
        }
        Ok(Self {
            spec: spec.clone(),
            place: weights.place().clone(),
            patches: PatchEmbed::load(spec, weights)?,
            timestep: TimestepEmbed::load(weights)?,
            caption_widen: linear(weights, "caption_projection.linear_1")?,
            caption_project: linear(weights, "caption_projection.linear_2")?,
            stage,
            head: Head::load(weights)?,
        })
    }

    /// Facts of the model.
    pub fn spec(&self) -> &DitSpec {
        &self.spec
    }

    /// An encoded caption `[tokens, caption_width]` made ready for cross-attention.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn caption(&self, embeds: &Tensor) -> Result<Vec<CaptionKeys>> {
        let hidden = self.caption_widen.forward(&self.place.take(embeds)?, Epilogue::Gelu)?;
        self.stage.caption_keys(&self.caption_project.forward(&hidden, Epilogue::None)?)
    }

    /// Prediction for rows `band` of the token grid `grid`, at timestep `t` (0..1000).
    ///
    /// `latent`: `[4, 2·rows, 2·cols]`, the band's rows. Gives `[8, 2·rows, 2·cols]`: noise in channels 0–3,
    /// the learned variance, which this sampler does not use, in 4–7. Both are f32 on the CPU, wherever the blocks run.
    ///
    /// # Errors
    /// If shapes do not fit, a value stops being finite, or `ctx` fails.
    pub fn forward(
        &self,
        latent: &Tensor,
        band: RowRange,
        grid: TokenGrid,
        t: usize,
        caption: &[CaptionKeys],
        ctx: &mut dyn AttentionContext,
    ) -> std::result::Result<Tensor, ForwardError> {
        let time = self.timestep.forward(t)?;
        let x = self.patches.forward(latent, band, grid)?;
        let x = self.stage.forward(x, grid.cols, &time.modulation, caption, ctx)?;
        Ok(self.head.forward(&x, band.n_rows(), grid.cols, &time.embedding)?)
    }
}

/// The last norm, projection and the way back from tokens to cells.
struct Head {
    /// Rows shift and scale, to which the timestep's embedding is added.
    table: Vec<Vec<f32>>,
    project: Linear,
}

impl Head {
    fn load(weights: &Weights) -> Result<Self> {
        Ok(Self { table: weights.f32("scale_shift_table")?.to_vec2()?, project: linear(weights, "proj_out")? })
    }

    fn forward(&self, x: &Tensor, rows: usize, cols: usize, embedding: &[f32]) -> Result<Tensor> {
        let [shift, scale] = [0, 1].map(|row| sum(&self.table[row], embedding));
        let x = layer_norm_modulate(x, &shift, &scale, NORM_EPS)?;
        let x = bring_back(&self.project.forward(&x, Epilogue::None)?)?;
        // [rows, cols, p, q, channel] to [channel, rows, p, cols, q]
        let x = x.reshape((rows, cols, 2, 2, DitSpec::OUT_CHANNELS))?.permute((4, 0, 2, 1, 3))?;
        x.contiguous()?.reshape((DitSpec::OUT_CHANNELS, 2 * rows, 2 * cols))
    }
}

fn sum(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The linear layer `name`, with its bias.
pub(crate) fn linear(weights: &Weights, name: &str) -> Result<Linear> {
    let bias = weights.f32(&format!("{name}.bias"))?;
    let weight = weights.placed(&format!("{name}.weight"))?;
    // A 1×1 convolution is a linear layer on channels.
    let outputs = weight.dim(0)?;
    Linear::new(&weight.reshape((outputs, ()))?, Some(&bias))
}

/// Names and shapes of every tensor the transformer needs.
pub fn manifest(spec: &DitSpec) -> Vec<(String, Vec<usize>)> {
    let (width, hidden) = (spec.width(), spec.width() * DitSpec::MLP_RATIO);
    let mut all = Vec::new();
    let mut layer = |name: String, outputs: usize, inputs: usize| {
        all.push((format!("{name}.weight"), vec![outputs, inputs]));
        all.push((format!("{name}.bias"), vec![outputs]));
    };
    layer("adaln_single.emb.timestep_embedder.linear_1".into(), width, embed::TIMESTEP_WIDTH);
    layer("adaln_single.emb.timestep_embedder.linear_2".into(), width, width);
    layer("adaln_single.linear".into(), 6 * width, width);
    layer("caption_projection.linear_1".into(), width, spec.caption_width);
    layer("caption_projection.linear_2".into(), width, width);
    layer("proj_out".into(), 4 * DitSpec::OUT_CHANNELS, width);
    for idx in 0..spec.depth {
        let block = format!("transformer_blocks.{idx}");
        for attention in ["attn1", "attn2"] {
            for projection in ["to_q", "to_k", "to_v", "to_out.0"] {
                layer(format!("{block}.{attention}.{projection}"), width, width);
            }
        }
        layer(format!("{block}.ff.net.0.proj"), hidden, width);
        layer(format!("{block}.ff.net.2"), width, hidden);
    }
    for idx in 0..spec.depth {
        all.push((format!("transformer_blocks.{idx}.scale_shift_table"), vec![6, width]));
        let ratio = spec.kv_ratio(LayerIdx(idx));
        if ratio > 1 {
            let attention = format!("transformer_blocks.{idx}.attn1");
            all.push((format!("{attention}.sr.weight"), vec![width, 1, ratio, ratio]));
            for vector in ["sr.bias", "sr_norm.weight", "sr_norm.bias"] {
                all.push((format!("{attention}.{vector}"), vec![width]));
            }
        }
    }
    all.push(("pos_embed.proj.weight".into(), vec![width, DitSpec::IN_CHANNELS, 2, 2]));
    all.push(("pos_embed.proj.bias".into(), vec![width]));
    all.push(("scale_shift_table".into(), vec![2, width]));
    all
}
