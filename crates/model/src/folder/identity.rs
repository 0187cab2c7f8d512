//! What makes a model the one it is: everything that decides pixels, and nothing of how files hold it.
//!
//! Shards, variants that hold the same values, the order of keys and tensors that nobody reads leave it as it is.

use std::fmt::Write;

use plan::ModelDigests;
use sha2::{Digest, Sha256};

use super::ModelFolder;
use crate::text::TextWeights;

/// sha256 of a model, and of the parts of it that are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Over all parts, in hexadecimal.
    pub sha256: String,
    /// Of each part.
    pub digests: ModelDigests,
}

impl ModelFolder {
    /// Reads all weights and tells what this model is.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn identity(&self) -> candle_core::Result<Identity> {
        let mut weights = Sha256::new();
        self.dit.hash(&mut weights)?;
        self.vae.hash(&mut weights)?;
        match &self.text {
            TextWeights::Safetensors(text) => text.hash(&mut weights)?,
            TextWeights::Gguf(text) => text.hash(&mut weights),
        }
        let digests = ModelDigests {
            weights: hex(&weights.finalize()),
            configuration: hex(&Sha256::digest(self.configuration())),
            noise_schedule: hex(&Sha256::digest(self.noise_schedule())),
            tokenizer: hex(&self.tokenizer.digest()),
        };
        let mut all = Sha256::new();
        for (name, digest) in digests.parts() {
            all.update(format!("{name} {digest}\n"));
        }
        Ok(Identity { sha256: hex(&all.finalize()), digests })
    }

    /// The networks' settings that decide pixels, a line each. Those that only shapes of tensors follow from are in the
    /// weights.
    fn configuration(&self) -> String {
        let (dit, vae) = (&self.spec.dit, &self.spec.vae);
        let mut lines = String::new();
        let mut line = |key: &str, value: String| {
            // A string takes all that is written to it.
            let _ = writeln!(lines, "{key} {value}");
        };
        line("transformer heads", dit.heads.to_string());
        line("transformer base tokens", dit.base_tokens().to_string());
        line("transformer interpolation", (dit.interpolation as f32).to_string());
        let layers = (0..dit.depth).map(|layer| dit.kv_ratio(plan::LayerIdx(layer)).to_string());
        line("transformer compression", layers.collect::<Vec<_>>().join(" "));
        line("vae groups", vae.groups.to_string());
        line("vae scaling", vae.scaling_factor.to_string());
        line("vae shift", vae.shift_factor.to_string());
        line("caption tokens", self.tokenizer.most_tokens().to_string());
        for key in ["num_heads", "relative_attention_max_distance", "layer_norm_epsilon"] {
            let value = self.text_config.get(key).and_then(serde_json::Value::as_f64).unwrap_or_default();
            line(&format!("text encoder {key}"), value.to_string());
        }
        lines
    }

    /// The sampler's noise levels.
    fn noise_schedule(&self) -> String {
        let schedule = &self.schedule;
        format!(
            "dpmsolver++ 2M\nbeta {} {} {}\ntimesteps {}\n",
            schedule.beta_start, schedule.beta_end, schedule.scaled, schedule.n_timesteps
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
