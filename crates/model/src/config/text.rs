//! `text_encoder/config.json`.

use plan::TextSpec;
use serde_json::Value;

use super::Config;

impl Config<'_> {
    /// The text encoder's facts, and its config completed by T5's defaults for candle to read.
    pub fn text(&mut self) -> (TextSpec, Value) {
        // Left out, it means a layer without gate.
        if self.present("feed_forward_proj") != Some(&"gated-gelu".into()) {
            self.fault("feed_forward_proj", "only \"gated-gelu\" is supported");
        }
        // Two names of one function; it goes before the one that `feed_forward_proj` names.
        self.only("dense_act_fn", &["gelu_new".into(), "gelu_pytorch_tanh".into()]);
        self.only("is_gated_act", &[true.into()]);
        self.only("model_type", &["t5".into()]);
        self.plain_weights();
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
        let epsilon = self.number("layer_norm_epsilon", 1e-6);
        if epsilon <= 0.0 {
            self.fault("layer_norm_epsilon", "a number above 0 is needed");
        }
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
}

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
