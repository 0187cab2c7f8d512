//! `transformer/config.json`.

use std::collections::BTreeSet;

use plan::{DitSpec, KvCompress, LayerIdx};
use serde_json::Value;

use super::Config;

impl Config<'_> {
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
        for key in ["double_self_attention", "only_cross_attention"] {
            self.only(key, &[false.into()]);
        }
        if self.present("num_vector_embeds").is_some() {
            self.fault("num_vector_embeds", "latents that are no numbers are not supported");
        }
        self.plain_weights();
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
