//! One transformer block: self-attention and MLP under adaLN's modulation, cross-attention between them.

use candle_core::{Result, Tensor};
use kernels::{Compress, Epilogue, Linear, Mlp, attention, layer_norm_modulate};
use plan::{DitSpec, LayerIdx};

use super::{NORM_EPS, linear, sum};
use crate::seam::{AttentionContext, SelfAttention};
use crate::weights::Weights;

/// Keys and values of one caption in one block's cross-attention, `[tokens, width]` each.
pub struct CaptionKeys {
    keys: Tensor,
    values: Tensor,
}

/// A block's weights.
pub struct Block {
    layer: LayerIdx,
    heads: usize,
    kv_ratio: usize,
    /// Six vectors, to which the timestep's are added: shift, scale, gate of attention, then of the MLP.
    table: Vec<f32>,
    attention: Projections,
    compress: Option<Compress>,
    cross: Projections,
    mlp: Mlp,
}

struct Projections {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
}

impl Projections {
    fn load(weights: &Weights, name: &str) -> Result<Self> {
        let of = |projection: &str| linear(weights, &format!("{name}.{projection}"));
        Ok(Self { q: of("to_q")?, k: of("to_k")?, v: of("to_v")?, out: of("to_out.0")? })
    }
}

impl Block {
    /// Block `layer` of the model.
    ///
    /// # Errors
    /// If a weight is missing or misshapen.
    pub fn load(spec: &DitSpec, layer: LayerIdx, weights: &Weights) -> Result<Self> {
        let name = format!("transformer_blocks.{layer}");
        let tensor = |part: &str| weights.f32(&format!("{name}.{part}"));
        let compress = if spec.kv_ratio(layer) > 1 {
            // The few weights of a compression stay f32 wherever they lie.
            let weight = tensor("attn1.sr.weight")?.to_device(weights.place().device())?;
            let bias = tensor("attn1.sr.bias")?;
            Some(Compress::new(&weight, &bias, &tensor("attn1.sr_norm.weight")?, &tensor("attn1.sr_norm.bias")?)?)
        } else {
            None
        };
        Ok(Self {
            layer,
            heads: spec.heads,
            kv_ratio: spec.kv_ratio(layer),
            table: tensor("scale_shift_table")?.flatten_all()?.to_vec1()?,
            attention: Projections::load(weights, &format!("{name}.attn1"))?,
            compress,
            cross: Projections::load(weights, &format!("{name}.attn2"))?,
            mlp: Mlp {
                widen: linear(weights, &format!("{name}.ff.net.0.proj"))?,
                narrow: linear(weights, &format!("{name}.ff.net.2"))?,
            },
        })
    }

    /// Which block this is.
    pub fn layer(&self) -> LayerIdx {
        self.layer
    }

    /// Attention heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// By how much it compresses keys and values on each side.
    pub fn kv_ratio(&self) -> usize {
        self.kv_ratio
    }

    /// Self-attention's queries of `x` `[tokens, width]`, normalised and modulated.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.attention.q.forward(x, Epilogue::None)
    }

    /// Self-attention's keys and values of `x` `[tokens, width]`, whole rows of `cols` tokens, normalised and
    /// modulated; compressed where this block compresses.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn keys_and_values(&self, x: &Tensor, cols: usize) -> Result<(Tensor, Tensor)> {
        let k = self.attention.k.forward(x, Epilogue::None)?;
        let v = self.attention.v.forward(x, Epilogue::None)?;
        match &self.compress {
            // One set of weights for both, and the norm behind it rescales values too (as trained).
            Some(compress) => Ok((compress.forward(&k, cols)?, compress.forward(&v, cols)?)),
            None => Ok((k, v)),
        }
    }

    /// Keys and values of `caption` `[tokens, width]`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn caption_keys(&self, caption: &Tensor) -> Result<CaptionKeys> {
        Ok(CaptionKeys {
            keys: self.cross.k.forward(caption, Epilogue::None)?,
            values: self.cross.v.forward(caption, Epilogue::None)?,
        })
    }

    /// `x` `[tokens, width]`, whole rows of `cols` tokens; `modulation`: the timestep's six vectors, `[6·width]`.
    ///
    /// # Errors
    /// If shapes do not fit or `ctx` fails.
    pub fn forward(
        &self,
        x: &Tensor,
        cols: usize,
        modulation: &[f32],
        caption: &CaptionKeys,
        ctx: &mut dyn AttentionContext,
    ) -> Result<Tensor> {
        let all = sum(&self.table, modulation);
        let mut vectors = all.chunks_exact(all.len() / 6);
        let mut next = || vectors.next().unwrap_or_default();
        let (shift_attention, scale_attention, gate_attention) = (next(), next(), next());
        let (shift_mlp, scale_mlp, gate_mlp) = (next(), next(), next());

        let normal = layer_norm_modulate(x, shift_attention, scale_attention, NORM_EPS)?;
        let attended = ctx.attend(&SelfAttention::new(self, normal, cols))?;
        let gated = Epilogue::Onto { residual: x, gate: Some(gate_attention) };
        let with_self = self.attention.out.forward(&attended, gated)?;
        drop(attended);

        // Cross-attention stands under no norm, no modulation and no gate.
        let q = self.cross.q.forward(&with_self, Epilogue::None)?;
        let attended = attention(&q, &caption.keys, &caption.values, self.heads)?;
        let x = self.cross.out.forward(&attended, Epilogue::Onto { residual: &with_self, gate: None })?;
        drop((with_self, q, attended));

        let normal = layer_norm_modulate(&x, shift_mlp, scale_mlp, NORM_EPS)?;
        self.mlp.forward(&normal, Epilogue::Onto { residual: &x, gate: Some(gate_mlp) })
    }
}
