//! Configs of a model folder, read into facts.
//!
//! Every fault is collected, none is fatal alone, so that a user sees all of them at once. Keys that mean
//! nothing to us are listed, not refused; values that would change the picture in a way we cannot compute are.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use plan::request::MAX_STEPS;
use plan::{DitSpec, KvCompress, LayerIdx, TextSpec, VaeSpec};
use serde_json::Value;

use crate::sampler::NoiseSchedule;

/// One `config.json`, and the faults found in it so far.
pub struct Config<'a> {
    part: &'a str,
    values: serde_json::Map<String, Value>,
    faults: &'a mut Vec<String>,
}

/// Parses JSON as Python writes it: `-Infinity`, `Infinity` and `NaN` may stand for numbers.
///
/// # Errors
/// If it is not a JSON object, as one line.
pub fn parse(text: &str) -> Result<serde_json::Map<String, Value>, String> {
    let plain =
        [": -Infinity", ": Infinity", ": NaN"].iter().fold(text.to_owned(), |text, odd| text.replace(odd, ": null"));
    serde_json::from_str(&plain).map_err(|error| format!("is not a JSON object: {error}"))
}

impl<'a> Config<'a> {
    /// The config of part `part`, which is the start of every fault's text.
    pub fn new(part: &'a str, values: serde_json::Map<String, Value>, faults: &'a mut Vec<String>) -> Self {
        Self { part, values, faults }
    }

    /// How many faults there are so far, in this config and before it.
    pub fn n_faults(&self) -> usize {
        self.faults.len()
    }

    fn fault(&mut self, key: &str, what: &str) {
        let found = self.values.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        self.faults.push(format!("{}: `{key}` is {found}, {what}", self.part));
    }

    fn present(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A whole number from 1 to a bound no real model comes near, which keeps later products in range.
    fn count(&mut self, key: &str, default: Option<usize>) -> usize {
        self.count_in(1..=1 << 20, key, default)
    }

    /// How many layers: each is a dozen names to look for, so the bound is closer.
    fn layers(&mut self, key: &str, default: Option<usize>) -> usize {
        self.count_in(1..=1 << 10, key, default)
    }

    fn count_in(&mut self, range: RangeInclusive<u64>, key: &str, default: Option<usize>) -> usize {
        let value = match (self.present(key), default) {
            (None, Some(default)) => return default,
            (value, _) => value.and_then(Value::as_u64),
        };
        match value {
            Some(value) if range.contains(&value) => value as usize,
            _ => {
                let (least, most) = (range.start(), range.end());
                self.fault(key, &format!("a whole number from {least} to {most} is needed"));
                *least as usize
            }
        }
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        match self.present(key).map(Value::as_f64) {
            None => default,
            Some(Some(value)) if value.is_finite() => value,
            Some(_) => {
                self.fault(key, "a number is needed");
                default
            }
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.present(key).map(Value::as_bool) {
            None => default,
            Some(Some(value)) => value,
            Some(None) => {
                self.fault(key, "true or false is needed");
                default
            }
        }
    }

    /// Refuses any value of `key` but the allowed ones; absent is allowed.
    fn only(&mut self, key: &str, allowed: &[Value]) {
        if self.present(key).is_some_and(|value| !allowed.iter().any(|allowed| same(allowed, value))) {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            self.fault(key, &format!("only {} is supported", allowed.join(" or ")));
        }
    }

    /// Keys that are none of `known`.
    pub fn unknown_keys(&self, known: &[&str]) -> Vec<String> {
        self.values.keys().filter(|key| !key.starts_with('_') && !known.contains(&key.as_str())).cloned().collect()
    }

    /// The transformer's facts.
    pub fn dit(&mut self) -> DitSpec {
        self.only("_class_name", &["PixArtTransformer2DModel".into(), "Transformer2DModel".into()]);
        self.only("activation_fn", &["gelu-approximate".into()]);
        self.only("norm_type", &["ada_norm_single".into()]);
        self.only("norm_elementwise_affine", &[false.into()]);
        self.only("attention_bias", &[true.into()]);
        self.only("attention_type", &["default".into()]);
        self.only("patch_size", &[2.into()]);
        self.only("in_channels", &[DitSpec::IN_CHANNELS.into()]);
        self.only("out_channels", &[DitSpec::OUT_CHANNELS.into()]);
        self.only("norm_eps", &[Value::from(1e-6)]);
        self.only("qk_norm", &[false.into()]);
        // The position code is based on tokens, of two cells each.
        let sample_cells = self.count_in(2..=1 << 20, "sample_size", Some(128));
        // diffusers takes an absent value to mean yes for models of 1024 px.
        let conditioned = self.flag(
            "use_additional_conditions",
            self.values.contains_key("use_additional_conditions") && sample_cells == 128,
        );
        if conditioned {
            self.fault("use_additional_conditions", "size conditions belong to PixArt-α and are not supported");
        }
        let (heads, head_width) = (self.count("num_attention_heads", None), self.count("attention_head_dim", None));
        if !(heads * head_width).is_multiple_of(4) {
            self.fault("attention_head_dim", "heads times head width must be a multiple of 4");
        }
        let interpolation = self.number("interpolation_scale", (sample_cells / 64).max(1) as f64);
        if interpolation <= 0.0 {
            self.fault("interpolation_scale", "a number above 0 is needed");
        }
        let depth = self.layers("num_layers", None);
        DitSpec {
            depth,
            heads,
            head_width,
            caption_width: self.count("caption_channels", None),
            sample_cells,
            interpolation,
            kv_compress: self.kv_compress(depth),
        }
    }

    fn kv_compress(&mut self, depth: usize) -> Option<KvCompress> {
        let value = self.present("kv_compress")?.clone();
        let ratio = value.get("scale_factor").and_then(Value::as_u64).filter(|ratio| (1..=16).contains(ratio));
        let layers: Option<BTreeSet<LayerIdx>> = value.get("layers").and_then(Value::as_array).and_then(|layers| {
            let layer = |value: &Value| value.as_u64().filter(|&layer| (layer as usize) < depth);
            layers.iter().map(|value| layer(value).map(|layer| LayerIdx(layer as usize))).collect()
        });
        let sampling = value.get("sampling").and_then(Value::as_str).unwrap_or("conv");
        match (ratio, layers, sampling) {
            (Some(1), Some(_), "conv") => None,
            (Some(ratio), Some(layers), "conv") => Some(KvCompress { ratio: ratio as usize, layers }),
            _ => {
                self.fault(
                    "kv_compress",
                    "it needs `scale_factor` from 1 to 16, `layers` that exist and `sampling` \"conv\"",
                );
                None
            }
        }
    }

    /// The decoder's facts.
    pub fn vae(&mut self) -> VaeSpec {
        self.only("_class_name", &["AutoencoderKL".into()]);
        self.only("act_fn", &["silu".into()]);
        self.only("out_channels", &[3.into()]);
        self.only("latent_channels", &[DitSpec::IN_CHANNELS.into()]);
        for key in ["latents_mean", "latents_std"] {
            if self.present(key).is_some() {
                self.fault(key, "statistics of latents are not supported");
            }
        }
        let groups = self.count("norm_num_groups", Some(32));
        let widths = self.present("block_out_channels").and_then(Value::as_array);
        let width = |value: &Value| value.as_u64().map(|width| width as usize);
        let widths: Vec<usize> = widths.and_then(|all| all.iter().map(width).collect()).unwrap_or_default();
        // The latent cell must be eight pixels wide, or a multiple of 16 px would not be whole tokens.
        let fits = widths.len() == 4 && widths.iter().all(|width| (1..1 << 16).contains(width) && width % groups == 0);
        if !fits {
            self.fault("block_out_channels", "four widths are needed, each a multiple of `norm_num_groups`");
        }
        let scaling_factor = self.number("scaling_factor", 0.18215);
        if scaling_factor == 0.0 {
            self.fault("scaling_factor", "latents cannot be divided by it");
        }
        VaeSpec {
            widths: if fits { widths } else { vec![groups; 4] },
            layers_per_block: self.layers("layers_per_block", Some(1)),
            groups,
            scaling_factor,
            shift_factor: self.number("shift_factor", 0.0),
            latent_channels: DitSpec::IN_CHANNELS,
            has_post_quant_conv: self.flag("use_post_quant_conv", true),
            has_mid_attention: self.flag("mid_block_add_attention", true),
        }
    }

    /// The text encoder's facts, and its config completed by T5's defaults for candle to read.
    pub fn text(&mut self) -> (TextSpec, Value) {
        self.only("feed_forward_proj", &["gated-gelu".into()]);
        self.only("model_type", &["t5".into()]);
        let spec = TextSpec {
            width: self.count("d_model", None),
            depth: self.layers("num_layers", None),
            vocabulary: self.count("vocab_size", None),
        };
        for key in ["d_kv", "d_ff", "num_heads"] {
            self.count(key, None);
        }
        // candle halves them twice and divides one by the other.
        self.count_in(4..=1 << 20, "relative_attention_num_buckets", Some(32));
        self.count("relative_attention_max_distance", Some(128));
        let defaults = serde_json::json!({
            "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.0,
            "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "is_encoder_decoder": false,
            "pad_token_id": 0, "eos_token_id": 1, "feed_forward_proj": "gated-gelu",
        });
        let mut complete = self.values.clone();
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                complete.entry(key).or_insert(value);
            }
        }
        (spec, Value::Object(complete))
    }

    /// The noise schedule; any sampler but the one computed here is refused.
    pub fn schedule(&mut self) -> NoiseSchedule {
        self.only("_class_name", &["DPMSolverMultistepScheduler".into()]);
        self.only("algorithm_type", &["dpmsolver++".into()]);
        self.only("solver_order", &[2.into()]);
        self.only("solver_type", &["midpoint".into()]);
        self.only("prediction_type", &["epsilon".into()]);
        self.only("timestep_spacing", &["linspace".into()]);
        self.only("final_sigmas_type", &["zero".into()]);
        self.only("beta_schedule", &["linear".into(), "scaled_linear".into()]);
        self.only("steps_offset", &[0.into()]);
        for key in [
            "thresholding",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
            "rescale_betas_zero_snr",
        ] {
            self.only(key, &[false.into()]);
        }
        if self.present("trained_betas").is_some() {
            self.fault("trained_betas", "own betas are not supported");
        }
        let n_faults = self.n_faults();
        let schedule = NoiseSchedule {
            beta_start: self.beta("beta_start", 1e-4),
            beta_end: self.beta("beta_end", 0.02),
            scaled: self.present("beta_schedule").and_then(Value::as_str) == Some("scaled_linear"),
            // With fewer than a request may ask steps for, two steps would be at one timestep.
            n_timesteps: self.count_in(u64::from(MAX_STEPS) + 1..=1 << 20, "num_train_timesteps", Some(1000)),
        };
        if self.n_faults() == n_faults && !schedule.is_usable() {
            self.fault("beta_end", "with it some timestep has no noise, or nothing else");
        }
        schedule
    }

    fn beta(&mut self, key: &str, default: f64) -> f64 {
        let beta = self.number(key, default);
        if beta <= 0.0 || beta >= 1.0 {
            self.fault(key, "a number between 0 and 1 is needed");
        }
        beta
    }
}

/// Numbers are equal by value, whether written `1` or `1.0`.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Keys of `transformer/config.json` that are read or safe to ignore.
pub const DIT_KEYS: &[&str] = &[
    "activation_fn",
    "attention_bias",
    "attention_head_dim",
    "attention_type",
    "caption_channels",
    "cross_attention_dim",
    "dropout",
    "in_channels",
    "interpolation_scale",
    "kv_compress",
    "norm_elementwise_affine",
    "norm_eps",
    "norm_num_groups",
    "norm_type",
    "num_attention_heads",
    "num_embeds_ada_norm",
    "num_layers",
    "out_channels",
    "patch_size",
    "qk_norm",
    "sample_size",
    "upcast_attention",
    "use_additional_conditions",
    "double_self_attention",
    "num_vector_embeds",
    "only_cross_attention",
    "use_linear_projection",
];

/// Keys of `vae/config.json` that are read or safe to ignore.
pub const VAE_KEYS: &[&str] = &[
    "act_fn",
    "block_out_channels",
    "down_block_types",
    "force_upcast",
    "in_channels",
    "latent_channels",
    "latents_mean",
    "latents_std",
    "layers_per_block",
    "mid_block_add_attention",
    "norm_num_groups",
    "out_channels",
    "sample_size",
    "scaling_factor",
    "shift_factor",
    "up_block_types",
    "use_post_quant_conv",
    "use_quant_conv",
];

/// Keys of `text_encoder/config.json` that are read or safe to ignore.
pub const TEXT_KEYS: &[&str] = &[
    "architectures",
    "bos_token_id",
    "classifier_dropout",
    "d_ff",
    "d_kv",
    "d_model",
    "decoder_start_token_id",
    "dense_act_fn",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "feed_forward_proj",
    "initializer_factor",
    "is_decoder",
    "is_encoder_decoder",
    "is_gated_act",
    "layer_norm_epsilon",
    "model_type",
    "num_decoder_layers",
    "num_heads",
    "num_layers",
    "output_past",
    "pad_token_id",
    "relative_attention_max_distance",
    "relative_attention_num_buckets",
    "scale_decoder_outputs",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
];

#[cfg(test)]
mod tests;
