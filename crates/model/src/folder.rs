//! A model folder in the diffusers layout: its configs read, its weight files opened, every tensor checked
//! against what the configs call for. All faults are found before anything is refused.
//!
//! Leaves out the values of the weights, except for the search for values that are not finite and for what tells
//! models apart (`folder/identity.rs`).

use std::path::Path;
use std::sync::Arc;

use plan::{ImageSize, ModelSpec};

use crate::config::{Config, DIT_KEYS, SAMPLER_KEYS, TEXT_KEYS, VAE_KEYS};
use crate::place::Place;
use crate::sampler::NoiseSchedule;
use crate::text::TextWeights;
use crate::text::gguf::Gguf;
use crate::tokenizer::Tokenizer;
use crate::weights::{Manifest, OnRead, Weights, file_name};
use crate::{dit, text, vae};

mod check;
mod identity;
mod part;
mod places;
mod unused;

pub use identity::Identity;
pub use part::Part;
use places::Places;

/// Folders of the networks, whose values can be checked.
const DIT: &str = "transformer";
const VAE: &str = "vae";
const TEXT: &str = "text_encoder";
const TOKENIZER: &str = "tokenizer";
const SAMPLER: &str = "scheduler";

/// A model folder, opened.
pub struct ModelFolder {
    name: String,
    spec: ModelSpec,
    pub(crate) dit: Weights,
    pub(crate) vae: Weights,
    pub(crate) text: TextWeights,
    pub(crate) text_config: serde_json::Value,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) schedule: NoiseSchedule,
    parts: Vec<Part>,
    natural_size: ImageSize,
}

/// Why a model folder cannot be used: every fault found.
#[derive(Debug, thiserror::Error)]
#[error("{}", .faults.join("\n"))]
pub struct FolderError {
    /// One line each.
    pub faults: Vec<String>,
}

impl ModelFolder {
    /// Opens `dir`; parts it lacks are taken from `base`.
    ///
    /// # Errors
    /// Every missing file, tensor and shape at fault, and every config value that is not supported.
    pub fn open(dir: &Path, base: Option<&Path>) -> Result<Self, FolderError> {
        let mut faults = Vec::new();
        let places = Places { dir, base };
        let folder = Self::collect(&places, &mut faults);
        match folder {
            Some(folder) if faults.is_empty() => Ok(folder),
            _ => Err(FolderError { faults }),
        }
    }

    /// For networks that compute on `place`.
    #[must_use]
    pub fn on(self, place: &Place) -> Self {
        Self { dit: self.dit.on(place.clone()), vae: self.vae.on(place.clone()), ..self }
    }

    /// Memory its networks take where they compute, the text encoder's not counted: it runs on the CPU.
    pub fn placed_bytes(&self) -> u64 {
        self.dit.placed_bytes() + self.vae.placed_bytes()
    }

    /// Where the networks compute.
    pub fn place(&self) -> &Place {
        self.dit.place()
    }

    fn collect(places: &Places<'_>, faults: &mut Vec<String>) -> Option<Self> {
        if !places.dir.is_dir() {
            faults
                .push(format!("{} is not a folder: give a model folder in the diffusers layout", places.dir.display()));
            return None;
        }
        let index = places.index(faults);
        let mut parts = Vec::new();
        let dit = places.config(DIT, faults).and_then(|mut values| {
            places.complete(&mut values);
            let mut config = Config::new(DIT, values, faults);
            let unknown = config.unknown_keys(DIT_KEYS);
            let n_faults = config.n_faults();
            let spec = config.dit();
            // Shapes that follow from a faulty config would only repeat its fault.
            let wanted = (config.n_faults() == n_faults).then(|| single_names(dit::manifest(&spec)));
            Some((spec, weights(places, DIT, wanted, unknown, is_spare_dit, &mut parts, faults)?))
        });
        let vae = places.config(VAE, faults).and_then(|values| {
            let mut config = Config::new(VAE, values, faults);
            let unknown = config.unknown_keys(VAE_KEYS);
            let n_faults = config.n_faults();
            let spec = config.vae();
            let wanted = (config.n_faults() == n_faults).then(|| vae::manifest(&spec));
            Some((spec, weights(places, VAE, wanted, unknown, is_spare_vae, &mut parts, faults)?))
        });
        let text = places.config(TEXT, faults).and_then(|values| {
            let mut config = Config::new(TEXT, values, faults);
            let unknown = config.unknown_keys(TEXT_KEYS);
            let n_faults = config.n_faults();
            let (spec, complete) = config.text();
            let wanted = (config.n_faults() == n_faults).then(|| text::manifest(&spec, &complete));
            Some((spec, complete, text_weights(places, wanted, unknown, &mut parts, faults)?))
        });
        let tokenizer = places.part(TOKENIZER, faults).and_then(|dir| match Tokenizer::open(&dir) {
            Ok(tokenizer) => {
                parts.push(Part::of_files(TOKENIZER, vec![part::tokenizer_file(&dir)]));
                Some(tokenizer.limited_to(index.most_tokens()))
            }
            Err(fault) => {
                faults.push(fault);
                None
            }
        });
        let schedule = places.config(SAMPLER, faults).map(|values| {
            let mut config = Config::new(SAMPLER, values, faults);
            let unknown_config_keys = config.unknown_keys(SAMPLER_KEYS);
            if !unknown_config_keys.is_empty() {
                parts.push(Part { unknown_config_keys, ..Part::of_files(SAMPLER, Vec::new()) });
            }
            config.schedule()
        });

        let ((dit_spec, dit), (vae_spec, vae)) = (dit?, vae?);
        let (text_spec, text_config, text) = text?;
        let tokenizer = tokenizer?;
        let spec = ModelSpec { dit: dit_spec, vae: vae_spec, text: text_spec };
        check_together(&spec, &tokenizer, faults);
        let natural_size = index.natural_size(&spec, faults)?;
        let name = places::name(places.dir);
        Some(Self { name, spec, dit, vae, text, text_config, tokenizer, schedule: schedule?, parts, natural_size })
    }

    /// Facts of all networks.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// What the user calls it: the last component of the path as given, or a downloaded repository's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The noise schedule of training.
    pub fn schedule(&self) -> &NoiseSchedule {
        &self.schedule
    }

    /// The size of picture the model is at its best with: what `_fresco_natural_size` in `model_index.json` says,
    /// or else the square its position code is based on.
    pub fn natural_size(&self) -> ImageSize {
        self.natural_size
    }

    /// What the folder holds.
    pub fn parts(&self) -> Vec<Part> {
        self.parts.clone()
    }

    /// What the folder holds and nothing here reads, though it does not change a picture: a line a part.
    pub fn notes(&self) -> Vec<String> {
        self.parts.iter().filter_map(Part::note).collect()
    }

    /// Bytes of the weights a render keeps in memory: networks in f32, the text encoder as stored.
    pub fn weights_bytes(&self) -> u64 {
        let tokenizer = self.parts.iter().filter(|part| part.name == TOKENIZER).map(|part| part.bytes).sum::<u64>();
        4 * (self.dit.n_values() + self.vae.n_values()) + self.text_bytes() + tokenizer
    }

    /// What of that is the text encoder's.
    pub fn text_bytes(&self) -> u64 {
        part::text_bytes(&self.text)
    }

    /// Reads every tensor. `read` is told of each and may break off.
    ///
    /// # Errors
    /// All tensors that hold a NaN or an infinity; or that `read` broke off.
    pub fn check_finite(&self, read: &OnRead<'_>) -> Result<(), FolderError> {
        let mut faults = Vec::new();
        let mut search = |part: &str, weights: &Weights| match weights.not_finite(read) {
            Ok(found) => faults.extend(found.into_iter().map(|fault| format!("{part}: {fault}"))),
            Err(error) => faults.push(format!("{part}: {error}")),
        };
        search(DIT, &self.dit);
        search(VAE, &self.vae);
        if let TextWeights::Safetensors(weights) = &self.text {
            search(TEXT, weights);
        }
        if faults.is_empty() { Ok(()) } else { Err(FolderError { faults }) }
    }
}

fn single_names(manifest: Vec<(String, Vec<usize>)>) -> Manifest {
    manifest.into_iter().map(|(name, shape)| (vec![name], shape)).collect()
}

/// Tensors that published transformers hold and inference does not use.
fn is_spare_dit(name: &str) -> bool {
    name == "pos_embed.pos_embed" || name.starts_with("caption_projection.y_embedding")
}

/// The encoder's half of the VAE.
fn is_spare_vae(name: &str) -> bool {
    name.starts_with("encoder.") || name.starts_with("quant_conv.")
}

fn is_spare_text(name: &str) -> bool {
    name.starts_with("decoder.") || name == "lm_head.weight"
}

/// Of llama.cpp's names and of candle's.
fn is_spare_gguf(name: &str) -> bool {
    name.starts_with("dec.") || name == "output.weight" || is_spare_text(name)
}

/// The weights of `part`, checked against what is `wanted`; with nothing wanted, because its config is at fault, only
/// the files are looked at.
fn weights(
    places: &Places<'_>,
    part: &str,
    wanted: Option<Manifest>,
    unknown_config_keys: Vec<String>,
    is_spare: fn(&str) -> bool,
    parts: &mut Vec<Part>,
    faults: &mut Vec<String>,
) -> Option<Weights> {
    let dir = places.part(part, faults)?;
    let opened = Weights::open_for(&dir, part, wanted.as_ref().unwrap_or(&Manifest::new()));
    let weights = opened.map_err(|found| faults.extend(found)).ok()?;
    let wanted = wanted?;
    let n_faults = faults.len();
    check::check(part, &weights, &wanted, faults);
    // What is left over of another network says nothing.
    let is_this_network = faults.len() == n_faults;
    let unknown_tensors = if is_this_network { unused::sort(part, &weights, is_spare, faults) } else { Vec::new() };
    parts.push(Part { unknown_config_keys, unknown_tensors, ..Part::of_weights(part, &weights) });
    Some(weights)
}

fn text_weights(
    places: &Places<'_>,
    wanted: Option<Manifest>,
    unknown_config_keys: Vec<String>,
    parts: &mut Vec<Part>,
    faults: &mut Vec<String>,
) -> Option<TextWeights> {
    let dir = places.part(TEXT, faults)?;
    let Some(path) = Places::gguf(&dir, faults) else {
        let weights = weights(places, TEXT, wanted, unknown_config_keys, is_spare_text, parts, faults)?;
        return Some(TextWeights::Safetensors(Arc::new(weights)));
    };
    let opened = Gguf::open(&path, wanted.as_ref().unwrap_or(&Manifest::new())).map_err(|found| {
        let file = file_name(&path);
        faults.extend(found.into_iter().map(|fault| format!("{TEXT}/{file}: {fault}")));
    });
    let (gguf, _) = (opened.ok()?, wanted?);
    let unknown_tensors = gguf.unused().iter().filter(|name| !is_spare_gguf(name)).cloned().collect();
    parts.push(Part { unknown_config_keys, unknown_tensors, ..Part::of_gguf(TEXT, &gguf) });
    Some(TextWeights::Gguf(Arc::new(gguf)))
}

/// What one part calls for of another.
fn check_together(spec: &ModelSpec, tokenizer: &Tokenizer, faults: &mut Vec<String>) {
    if spec.dit.caption_width != spec.text.width {
        faults.push(format!(
            "{TEXT}: encodes tokens to {} channels, but the transformer's `caption_channels` is {}",
            spec.text.width, spec.dit.caption_width
        ));
    }
    if tokenizer.vocabulary() > spec.text.vocabulary {
        faults.push(format!(
            "{TOKENIZER}: has {} pieces, but the text encoder knows {}",
            tokenizer.vocabulary(),
            spec.text.vocabulary
        ));
    }
}

#[cfg(test)]
mod tests;
