//! A model folder in the diffusers layout: its configs read, its weight files opened, every tensor checked
//! against what the configs call for. All faults are found before anything is refused.
//!
//! Leaves out the values of the weights, except for the search for values that are not finite.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use plan::{ImageSize, ModelSpec, TextSpec};
use sha2::{Digest, Sha256};

use crate::config::{self, Config, DIT_KEYS, TEXT_KEYS, VAE_KEYS};
use crate::place::Place;
use crate::sampler::NoiseSchedule;
use crate::text::TextWeights;
use crate::tokenizer::Tokenizer;
use crate::weights::{OnRead, Weights, file_name, is_readable};
use crate::{dit, vae};

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

/// One part of the folder, as `inspect` shows it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Part {
    /// Name of its folder.
    pub name: String,
    /// Weight files, or the tokenizer's.
    pub files: Vec<PathBuf>,
    /// Tensors in the files.
    pub n_tensors: usize,
    /// Values in all tensors.
    pub n_parameters: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Types of the tensors.
    pub dtypes: Vec<String>,
    /// Keys of the config that mean nothing to us.
    pub unknown_config_keys: Vec<String>,
    /// Tensors nothing here uses.
    pub unknown_tensors: Vec<String>,
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
        let mut parts = Vec::new();
        let dit = places.config(DIT, faults).and_then(|mut values| {
            places.complete(&mut values);
            let mut config = Config::new(DIT, values, faults);
            let unknown = config.unknown_keys(DIT_KEYS);
            let n_faults = config.n_faults();
            let spec = config.dit();
            // Shapes that follow from a faulty config would only repeat its fault.
            let wanted = if config.n_faults() == n_faults { single_names(dit::manifest(&spec)) } else { Vec::new() };
            Some((spec, places.weights(DIT, &wanted, unknown, is_spare_dit, &mut parts, faults)?))
        });
        let vae = places.config(VAE, faults).and_then(|values| {
            let mut config = Config::new(VAE, values, faults);
            let unknown = config.unknown_keys(VAE_KEYS);
            let n_faults = config.n_faults();
            let spec = config.vae();
            let wanted = if config.n_faults() == n_faults { vae::manifest(&spec) } else { Vec::new() };
            Some((spec, places.weights(VAE, &wanted, unknown, is_spare_vae, &mut parts, faults)?))
        });
        let text = places.config(TEXT, faults).and_then(|values| {
            let mut config = Config::new(TEXT, values, faults);
            let unknown = config.unknown_keys(TEXT_KEYS);
            let n_faults = config.n_faults();
            let (spec, complete) = config.text();
            let wanted = if config.n_faults() == n_faults { text_manifest(&spec, &complete) } else { Vec::new() };
            Some((spec, complete, places.text_weights(&wanted, unknown, &mut parts, faults)?))
        });
        let tokenizer = places.part(TOKENIZER, faults).and_then(|dir| match Tokenizer::open(&dir) {
            Ok(tokenizer) => {
                parts.push(Part::of_files(TOKENIZER, vec![tokenizer_file(&dir)]));
                Some(tokenizer)
            }
            Err(fault) => {
                faults.push(fault);
                None
            }
        });
        let schedule = places.config(SAMPLER, faults).map(|values| Config::new(SAMPLER, values, faults).schedule());

        let ((dit_spec, dit), (vae_spec, vae)) = (dit?, vae?);
        let (text_spec, text_config, text) = text?;
        let tokenizer = tokenizer?;
        let spec = ModelSpec { dit: dit_spec, vae: vae_spec, text: text_spec };
        check_together(&spec, &tokenizer, faults);
        let natural_size = places.natural_size(&spec, faults)?;
        let name = places.dir.canonicalize().as_deref().map_or_else(|_| file_name(places.dir), file_name);
        Some(Self { name, spec, dit, vae, text, text_config, tokenizer, schedule: schedule?, parts, natural_size })
    }

    /// Facts of all networks.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The last component of the folder's path.
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

    /// Bytes of the weights a render keeps in memory: networks in f32, the text encoder as stored.
    pub fn weights_bytes(&self) -> u64 {
        let bytes = |part: &Part| match part.name.as_str() {
            DIT | VAE => 4 * part.n_parameters,
            _ => part.bytes,
        };
        self.parts.iter().map(bytes).sum()
    }

    /// What of that is the text encoder's.
    pub fn text_bytes(&self) -> u64 {
        self.parts.iter().filter(|part| part.name == TEXT).map(|part| part.bytes).sum()
    }

    /// sha256 over the names, types, shapes and values of all tensors, of transformer, decoder and text encoder in
    /// this order.
    ///
    /// # Errors
    /// If a quantised text encoder, which is hashed as a file, cannot be read.
    pub fn weights_sha256(&self) -> std::io::Result<String> {
        let mut hash = Sha256::new();
        self.dit.hash(&mut hash);
        self.vae.hash(&mut hash);
        match &self.text {
            TextWeights::Safetensors(weights) => weights.hash(&mut hash),
            TextWeights::Gguf(path) => {
                std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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

impl Part {
    fn of_files(name: &str, files: Vec<PathBuf>) -> Self {
        let bytes = files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        Self {
            name: name.into(),
            files,
            n_tensors: 0,
            n_parameters: 0,
            bytes,
            dtypes: Vec::new(),
            unknown_config_keys: Vec::new(),
            unknown_tensors: Vec::new(),
        }
    }
}

/// Tensors of a network: the names one may have, and its shape.
type Manifest = Vec<(Vec<String>, Vec<usize>)>;

fn single_names(manifest: Vec<(String, Vec<usize>)>) -> Manifest {
    manifest.into_iter().map(|(name, shape)| (vec![name], shape)).collect()
}

/// Tensors that published transformers hold and inference does not use.
fn is_spare_dit(name: &str) -> bool {
    name == "pos_embed.pos_embed" || name.starts_with("caption_projection.y_embedding")
}

/// The encoder's half of the VAE.
fn is_spare_vae(name: &str) -> bool {
    name.starts_with("encoder.") || name.starts_with("quant_conv.") || name.starts_with("post_quant_conv.")
}

fn is_spare_text(name: &str) -> bool {
    name.starts_with("decoder.") || name == "lm_head.weight" || name == "encoder.embed_tokens.weight"
}

/// Where the folder's parts are looked for.
struct Places<'a> {
    dir: &'a Path,
    base: Option<&'a Path>,
}

impl Places<'_> {
    /// The folder of `part`: in the model folder, or in the base.
    fn part(&self, part: &str, faults: &mut Vec<String>) -> Option<PathBuf> {
        // A transformer published by itself may lie at the top.
        let bare = part == DIT && !self.dir.join(DIT).is_dir() && self.dir.join("config.json").is_file();
        let own = if bare { self.dir.to_owned() } else { self.dir.join(part) };
        let found = [Some(own), self.base.map(|base| base.join(part))].into_iter().flatten().find(|dir| dir.is_dir());
        if found.is_none() {
            let hint = if self.base.is_none() { ": add it, or name a folder that has it with --base" } else { "" };
            faults.push(format!("{part}: there is no such folder in {}{hint}", self.dir.display()));
        }
        found
    }

    fn config(&self, part: &str, faults: &mut Vec<String>) -> Option<serde_json::Map<String, serde_json::Value>> {
        let name = if part == SAMPLER { "scheduler_config.json" } else { "config.json" };
        let path = self.part(part, faults)?.join(name);
        let parsed = std::fs::read_to_string(&path)
            .map_err(|error| format!("is missing or unreadable ({error})"))
            .and_then(|text| config::parse(&text));
        parsed.map_err(|fault| faults.push(format!("{part}/{name} {fault}"))).ok()
    }

    fn natural_size(&self, spec: &ModelSpec, faults: &mut Vec<String>) -> Option<ImageSize> {
        let text = std::fs::read_to_string(self.dir.join("model_index.json")).unwrap_or_default();
        let index = config::parse(&text).unwrap_or_default();
        let Some(size) = index.get("_fresco_natural_size") else {
            let side_px = (spec.dit.sample_cells * spec.vae.factor()) as u32;
            let side_px = (side_px / ImageSize::MULTIPLE_PX).max(1) * ImageSize::MULTIPLE_PX;
            return ImageSize::new(side_px, side_px).ok();
        };
        let parsed = size.as_str().unwrap_or_default().parse::<ImageSize>();
        parsed.map_err(|fault| faults.push(format!("model_index.json: `_fresco_natural_size` is {size}: {fault}"))).ok()
    }

    /// Fills what a converted transformer's config could not know from the base's.
    fn complete(&self, values: &mut serde_json::Map<String, serde_json::Value>) {
        let Some(base) = self.base else { return };
        let text = std::fs::read_to_string(base.join(DIT).join("config.json")).unwrap_or_default();
        for (key, value) in config::parse(&text).unwrap_or_default() {
            // Which layers compress belongs to the weights at hand, never to the base.
            if key != "kv_compress" {
                values.entry(key).or_insert(value);
            }
        }
    }

    /// The weights of `part`, checked against `wanted`.
    fn weights(
        &self,
        part: &str,
        wanted: &Manifest,
        unknown_config_keys: Vec<String>,
        is_spare: fn(&str) -> bool,
        parts: &mut Vec<Part>,
        faults: &mut Vec<String>,
    ) -> Option<Weights> {
        let weights = match Weights::open(&self.part(part, faults)?, part) {
            Ok(weights) => weights,
            Err(found) => {
                faults.extend(found);
                return None;
            }
        };
        check_tensors(part, &weights, wanted, faults);
        let known: std::collections::BTreeSet<&String> = wanted.iter().flat_map(|(names, _)| names).collect();
        let headers: Vec<_> = weights.names().filter_map(|name| weights.header(name)).collect();
        let mut dtypes: Vec<String> =
            headers.iter().map(|header| format!("{:?}", header.dtype).to_lowercase()).collect();
        dtypes.sort();
        dtypes.dedup();
        parts.push(Part {
            n_tensors: headers.len(),
            n_parameters: headers.iter().map(|header| header.shape.iter().product::<usize>() as u64).sum(),
            dtypes,
            unknown_config_keys,
            unknown_tensors: weights
                .names()
                .filter(|name| !known.contains(&(*name).to_owned()) && !is_spare(name))
                .map(str::to_owned)
                .collect(),
            ..Part::of_files(part, weights.paths())
        });
        Some(weights)
    }

    fn text_weights(
        &self,
        wanted: &Manifest,
        unknown_config_keys: Vec<String>,
        parts: &mut Vec<Part>,
        faults: &mut Vec<String>,
    ) -> Option<TextWeights> {
        let dir = self.part(TEXT, faults)?;
        let files = std::fs::read_dir(&dir).map_err(|error| faults.push(format!("{TEXT}: {}: {error}", dir.display())));
        let files = files.ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let (mut plain, mut quantized) = (false, None);
        for path in files {
            match path.extension().and_then(|ending| ending.to_str()) {
                Some("safetensors") => plain = true,
                Some("gguf") => quantized = Some(path),
                _ => {}
            }
        }
        match quantized {
            Some(path) if !plain => {
                parts.push(Part {
                    unknown_config_keys,
                    dtypes: vec!["gguf".into()],
                    ..Part::of_files(TEXT, vec![path.clone()])
                });
                Some(TextWeights::Gguf(path))
            }
            _ => {
                let weights = self.weights(TEXT, wanted, unknown_config_keys, is_spare_text, parts, faults)?;
                Some(TextWeights::Safetensors(Arc::new(weights)))
            }
        }
    }
}

/// Names every tensor of `wanted` that is missing or has another shape.
fn check_tensors(part: &str, weights: &Weights, wanted: &Manifest, faults: &mut Vec<String>) {
    for (names, shape) in wanted {
        let Some(header) = names.iter().find_map(|name| weights.header(name)) else {
            faults.push(format!("{part}: tensor `{}` is missing, shape {shape:?}", names[0]));
            continue;
        };
        if !is_readable(header.dtype) {
            let dtype = header.dtype;
            faults.push(format!("{part}: tensor `{}` is of type {dtype:?}: f32, f16 or bf16 is needed", names[0]));
        }
        // 1×1 convolutions and linear layers are the same weights under two shapes.
        let squeezed = |shape: &[usize]| {
            let end = shape.iter().rposition(|&side| side != 1).map_or(1, |last| last.max(1) + 1);
            shape[..end.min(shape.len())].to_vec()
        };
        if squeezed(&header.shape) != squeezed(shape) {
            faults.push(format!("{part}: tensor `{}` has shape {:?}, {shape:?} is needed", names[0], header.shape));
        }
    }
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

fn tokenizer_file(dir: &Path) -> PathBuf {
    let json = dir.join("tokenizer.json");
    if json.is_file() { json } else { dir.join("spiece.model") }
}

fn text_manifest(spec: &TextSpec, config: &serde_json::Value) -> Manifest {
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

#[cfg(test)]
mod tests;
