//! Prompts to captions: the T5 encoder (arXiv:1910.10683) that cross-attention reads.
//!
//! candle-transformers computes it. It has no attention mask, so it runs on the real tokens alone, which gives
//! their rows exactly as a masked run does. Weights stay in the type they are stored in; arithmetic is f32.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use candle_transformers::models::{quantized_t5, t5};
use candle_transformers::quantized_var_builder;
use plan::TextSpec;

use crate::weights::{Manifest, OnRead, Weights, broken_off};

pub mod gguf;

use gguf::Gguf;

/// A text encoder, ready to run.
pub enum TextEncoder {
    /// Weights from safetensors.
    Plain(Box<t5::T5EncoderModel>),
    /// Weights from a GGUF file.
    Quantized(Box<quantized_t5::T5EncoderModel>),
}

/// Where an encoder's weights are.
#[derive(Clone)]
pub enum TextWeights {
    /// safetensors files.
    Safetensors(Arc<Weights>),
    /// One GGUF file.
    Gguf(Arc<Gguf>),
}

impl TextEncoder {
    /// Builds the encoder that `config` (T5's `config.json`) describes. `read` is told of each weight and may break off.
    ///
    /// # Errors
    /// If a weight is missing or misshapen, the config lacks a value, or `read` breaks off.
    pub fn load(config: &serde_json::Value, weights: &TextWeights, read: &OnRead<'_>) -> Result<Self> {
        let invalid = |error: serde_json::Error| candle_core::Error::Msg(format!("text_encoder/config.json: {error}"));
        match weights {
            TextWeights::Safetensors(weights) => {
                let config: t5::Config = serde_json::from_value(config.clone()).map_err(invalid)?;
                let backend = Box::new(Stored { weights: weights.clone(), read });
                let vars = VarBuilder::from_backend(backend, DType::F32, Device::Cpu);
                Ok(Self::Plain(Box::new(t5::T5EncoderModel::load(vars, &config)?)))
            }
            TextWeights::Gguf(file) => {
                let config: quantized_t5::Config = serde_json::from_value(config.clone()).map_err(invalid)?;
                // candle looks for its own names; while it reads others, the file is in memory twice.
                let vars = if file.has_candle_names() {
                    quantized_var_builder::VarBuilder::from_gguf(file.path(), &Device::Cpu)?
                } else {
                    quantized_var_builder::VarBuilder::from_gguf_buffer(&file.with_candle_names(), &Device::Cpu)?
                };
                Ok(Self::Quantized(Box::new(quantized_t5::T5EncoderModel::load(vars, &config)?)))
            }
        }
    }

    /// `ids` to `[tokens, width]` f32.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn encode(&mut self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        match self {
            Self::Plain(encoder) => encoder.forward_dt(&ids, Some(DType::F32))?.squeeze(0),
            Self::Quantized(encoder) => encoder.forward(&ids)?.to_dtype(DType::F32)?.squeeze(0),
        }
    }
}

/// Hands weights to candle in their stored type where it widens them itself, and in f32 where it does not.
struct Stored<'a> {
    weights: Arc<Weights>,
    read: &'a OnRead<'a>,
}

impl Stored<'_> {
    fn fetch(&self, name: &str) -> Result<Tensor> {
        if (self.read)().is_break() {
            return Err(broken_off());
        }
        let weights = &self.weights;
        // The relative bias is added to scores and embeddings are looked up before anything is widened.
        if name.contains("relative_attention_bias") { weights.f32(name) } else { weights.stored(name) }
    }
}

impl SimpleBackend for Stored<'_> {
    fn get(&self, shape: Shape, name: &str, _: candle_nn::Init, _: DType, _: &Device) -> Result<Tensor> {
        let tensor = self.fetch(name)?;
        if tensor.shape() != &shape {
            candle_core::bail!("`{name}` has shape {:?}, not {shape:?}", tensor.shape());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        self.fetch(name)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.weights.header(name).is_some()
    }
}

/// Names and shapes of every tensor the encoder that `config` describes needs.
pub fn manifest(spec: &TextSpec, config: &serde_json::Value) -> Manifest {
    let number = |key: &str| config.get(key).and_then(serde_json::Value::as_u64).unwrap_or(1) as usize;
    let (heads, hidden) = (number("num_heads"), number("d_ff"));
    let inner = heads * number("d_kv");
    let embeddings = ["shared.weight", "encoder.embed_tokens.weight"].map(str::to_owned).to_vec();
    let mut all = vec![
        (embeddings, vec![spec.vocabulary, spec.width]),
        (vec!["encoder.final_layer_norm.weight".into()], vec![spec.width]),
        (
            vec!["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight".into()],
            vec![number("relative_attention_num_buckets"), heads],
        ),
    ];
    for idx in 0..spec.depth {
        let layers = format!("encoder.block.{idx}.layer");
        let mut tensor =
            |name: &str, shape: [usize; 2]| all.push((vec![format!("{layers}.{name}.weight")], shape.to_vec()));
        for projection in ["q", "k", "v"] {
            tensor(&format!("0.SelfAttention.{projection}"), [inner, spec.width]);
        }
        tensor("0.SelfAttention.o", [spec.width, inner]);
        tensor("1.DenseReluDense.wi_0", [hidden, spec.width]);
        tensor("1.DenseReluDense.wi_1", [hidden, spec.width]);
        tensor("1.DenseReluDense.wo", [spec.width, hidden]);
        for norm in ["0.layer_norm", "1.layer_norm"] {
            all.push((vec![format!("{layers}.{norm}.weight")], vec![spec.width]));
        }
    }
    all
}
