//! `vae/config.json`.

use plan::{DitSpec, VaeSpec};
use serde_json::Value;

use super::Config;

impl Config<'_> {
    /// The decoder's facts.
    pub fn vae(&mut self) -> VaeSpec {
        self.only("_class_name", &["AutoencoderKL".into()]);
        self.only("act_fn", &["silu".into()]);
        self.only("out_channels", &[3.into()]);
        self.plain_weights();
        let blocks = self.present("up_block_types").cloned();
        if blocks.is_some_and(|blocks| blocks != Value::from(vec!["UpDecoderBlock2D"; 4])) {
            self.fault("up_block_types", "only four of \"UpDecoderBlock2D\" are supported");
        }
        self.only("latent_channels", &[DitSpec::IN_CHANNELS.into()]);
        // The reference passes over it, and a VAE that has one expects it.
        self.only("shift_factor", &[0.into()]);
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
}

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
