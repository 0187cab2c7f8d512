//! Original PixArt checkpoints (`.pth`) to a model folder's `transformer/`.
//!
//! The pickle is read by candle, which understands tensors and nothing else: no code in it runs. What the
//! tensors do not tell (how many heads) comes from the caller or a base folder.

use std::collections::HashMap;
use std::path::Path;

use candle_core::pickle::PthTensors;
use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::config;

/// Head width of every published PixArt model.
const USUAL_HEAD_WIDTH: usize = 72;

/// Facts a checkpoint's tensors do not tell.
#[derive(Debug, Default)]
pub struct ConvertOptions<'a> {
    /// Attention heads.
    pub heads: Option<usize>,
    /// Latent side the position code is based on.
    pub sample_size: Option<usize>,
    /// Divisor of the position coordinates.
    pub interpolation: Option<f64>,
    /// A model folder whose `transformer/config.json` fills the rest.
    pub base: Option<&'a Path>,
}

/// What was found and written.
#[derive(Debug, serde::Serialize)]
pub struct Converted {
    /// Tensors written.
    pub n_tensors: usize,
    /// Blocks.
    pub depth: usize,
    /// Attention heads, if known.
    pub heads: Option<usize>,
    /// Channels of a token.
    pub width: usize,
    /// Ratio and layers of compressed keys and values.
    pub kv_compress: Option<(usize, Vec<usize>)>,
    /// Tensors inference does not use.
    pub dropped: Vec<String>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Why a checkpoint cannot be converted, as one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConvertError(pub String);

/// Converts `checkpoint` to `out_dir/transformer/{config.json,diffusion_pytorch_model.safetensors}`.
///
/// # Errors
/// If the file is no checkpoint, holds tensors of another model, or the folder cannot be written.
pub fn convert(checkpoint: &Path, out_dir: &Path, options: &ConvertOptions<'_>) -> Result<Converted, ConvertError> {
    let tensors = read(checkpoint)?;
    let (mut renamed, mut dropped, mut unknown) = (HashMap::new(), Vec::new(), Vec::new());
    for (name, tensor) in &tensors {
        match rename(name) {
            Name::Is(new) => drop(renamed.insert(new, tensor.clone())),
            Name::Split(new) => split(name, tensor, &new, &mut renamed)?,
            Name::Spare => dropped.push(name.clone()),
            Name::Unknown => unknown.push(name.clone()),
        }
    }
    if !unknown.is_empty() {
        unknown.sort();
        let listed = unknown.join(", ");
        return Err(ConvertError(format!("{}: tensors of another model: {listed}", checkpoint.display())));
    }
    dropped.sort();
    let facts = Facts::of(&renamed, tensors.get("pos_embed"))
        .ok_or_else(|| ConvertError(format!("{}: not a PixArt checkpoint", checkpoint.display())))?;
    let mut notes = Vec::new();
    let config = facts.config(options, &mut notes)?;
    write(out_dir, &config, &renamed)?;
    Ok(Converted {
        n_tensors: renamed.len(),
        depth: facts.depth,
        heads: config.get("num_attention_heads").and_then(Value::as_u64).map(|heads| heads as usize),
        width: facts.width,
        kv_compress: facts.kv_compress,
        dropped,
        notes,
    })
}

/// All tensors of a checkpoint, under `state_dict` where they usually are, or at the top.
fn read(path: &Path) -> Result<HashMap<String, Tensor>, ConvertError> {
    let fail = |what: String| ConvertError(format!("{}: {what}", path.display()));
    if !path.is_file() {
        return Err(fail("no such file".into()));
    }
    let open = |key| PthTensors::new(path, key).ok().filter(|file| !file.tensor_infos().is_empty());
    let file = open(Some("state_dict"))
        .or_else(|| open(None))
        .ok_or_else(|| fail("not a PyTorch checkpoint with tensors at its top or under `state_dict`".into()))?;
    let mut tensors = HashMap::new();
    for name in file.tensor_infos().keys() {
        let tensor = file.get(name).map_err(|error| fail(format!("tensor `{name}`: {error}")))?;
        tensors.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    Ok(tensors)
}

/// What becomes of a tensor of the original repository.
enum Name {
    Is(String),
    /// Equal parts along the first axis, under these names.
    Split(Vec<String>),
    Spare,
    Unknown,
}

fn rename(name: &str) -> Name {
    if matches!(name, "pos_embed" | "y_embedder.y_embedding") {
        return Name::Spare;
    }
    if name == "final_layer.scale_shift_table" {
        return Name::Is("scale_shift_table".into());
    }
    let Some((layer, end)) = name.rsplit_once('.') else { return Name::Unknown };
    let is = |new: &str| Name::Is(format!("{new}.{end}"));
    match layer {
        "x_embedder.proj" => is("pos_embed.proj"),
        "y_embedder.y_proj.fc1" => is("caption_projection.linear_1"),
        "y_embedder.y_proj.fc2" => is("caption_projection.linear_2"),
        "t_embedder.mlp.0" => is("adaln_single.emb.timestep_embedder.linear_1"),
        "t_embedder.mlp.2" => is("adaln_single.emb.timestep_embedder.linear_2"),
        "t_block.1" => is("adaln_single.linear"),
        "final_layer.linear" => is("proj_out"),
        _ => rename_in_block(layer, end),
    }
}

fn rename_in_block(layer: &str, end: &str) -> Name {
    let mut parts = layer.splitn(3, '.');
    let (Some("blocks"), Some(Ok(idx))) = (parts.next(), parts.next().map(str::parse::<usize>)) else {
        return Name::Unknown;
    };
    let block = format!("transformer_blocks.{idx}");
    let is = |new: &str| Name::Is(format!("{block}.{new}.{end}"));
    let split = |new: &[&str]| Name::Split(new.iter().map(|new| format!("{block}.{new}.{end}")).collect());
    match parts.next() {
        None if end == "scale_shift_table" => Name::Is(format!("{block}.{end}")),
        Some("attn.qkv") => split(&["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
        Some("attn.proj") => is("attn1.to_out.0"),
        Some("attn.sr") => is("attn1.sr"),
        Some("attn.norm") => is("attn1.sr_norm"),
        Some("cross_attn.q_linear") => is("attn2.to_q"),
        Some("cross_attn.kv_linear") => split(&["attn2.to_k", "attn2.to_v"]),
        Some("cross_attn.proj") => is("attn2.to_out.0"),
        Some("mlp.fc1") => is("ff.net.0.proj"),
        Some("mlp.fc2") => is("ff.net.2"),
        _ => Name::Unknown,
    }
}

fn split(
    name: &str,
    tensor: &Tensor,
    new: &[String],
    renamed: &mut HashMap<String, Tensor>,
) -> Result<(), ConvertError> {
    let fail = |error: candle_core::Error| ConvertError(format!("tensor `{name}`: {error}"));
    if !tensor.dim(0).map_err(fail)?.is_multiple_of(new.len()) {
        return Err(ConvertError(format!(
            "tensor `{name}`: shape {:?} is not {} equal parts",
            tensor.dims(),
            new.len()
        )));
    }
    for (part, new) in tensor.chunk(new.len(), 0).map_err(fail)?.iter().zip(new) {
        renamed.insert(new.clone(), part.contiguous().map_err(fail)?);
    }
    Ok(())
}

/// What the tensors tell.
struct Facts {
    depth: usize,
    width: usize,
    caption_width: usize,
    kv_compress: Option<(usize, Vec<usize>)>,
    sample_size: Option<usize>,
    interpolation: Option<f64>,
}

impl Facts {
    fn of(renamed: &HashMap<String, Tensor>, places: Option<&Tensor>) -> Option<Self> {
        let width = renamed.get("pos_embed.proj.weight")?.dim(0).ok()?;
        let caption_width = renamed.get("caption_projection.linear_1.weight")?.dim(1).ok()?;
        let block = |idx: usize, tensor: &str| renamed.get(&format!("transformer_blocks.{idx}.{tensor}"));
        let depth = (0..).take_while(|&idx| block(idx, "scale_shift_table").is_some()).count();
        if depth == 0 {
            return None;
        }
        let compressed = |idx: &usize| block(*idx, "attn1.sr.weight").is_some();
        let layers: Vec<usize> = (0..depth).filter(compressed).collect();
        let ratio = match layers.first() {
            Some(&idx) => Some(block(idx, "attn1.sr.weight")?.dim(3).ok()?),
            None => None,
        };
        // The position code is a table over the square grid trained on: its length gives the side, and the
        // first sine of the second token, sin(1 / interpolation), the divisor.
        let side = places.and_then(|places| places.dim(1).ok()).map(usize::isqrt);
        let first_sine = places.and_then(|places| {
            let places = places.to_dtype(DType::F64).ok()?;
            places.flatten_all().ok()?.get(width).ok()?.to_scalar::<f64>().ok()
        });
        let divisor = first_sine.filter(|sine| *sine > 0.0).map(|sine| 1.0 / libm::asin(sine));
        Some(Self {
            depth,
            width,
            caption_width,
            kv_compress: ratio.map(|ratio| (ratio, layers)),
            sample_size: side.map(|side| 2 * side),
            interpolation: divisor.filter(|divisor| *divisor > 0.7).map(|divisor| (divisor * 1000.0).round() / 1000.0),
        })
    }

    fn config(
        &self,
        options: &ConvertOptions<'_>,
        notes: &mut Vec<String>,
    ) -> Result<serde_json::Map<String, Value>, ConvertError> {
        let base = match options.base {
            Some(base) => {
                let path = base.join("transformer").join("config.json");
                let fail = |what: String| ConvertError(format!("{}: {what}", path.display()));
                let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
                config::parse(&text).map_err(fail)?
            }
            None => serde_json::Map::new(),
        };
        let of_base = |key: &str| base.get(key).and_then(Value::as_f64);
        let usual = self.width.is_multiple_of(USUAL_HEAD_WIDTH).then_some(self.width / USUAL_HEAD_WIDTH);
        let heads = options.heads.or(of_base("num_attention_heads").map(|heads| heads as usize)).or(usual);
        let mut config = serde_json::Map::new();
        let mut set = |key: &str, value: Value| drop(config.insert(key.into(), value));
        set("_class_name", json!("PixArtTransformer2DModel"));
        match heads {
            Some(heads) if heads > 0 && self.width.is_multiple_of(heads) => {
                set("num_attention_heads", json!(heads));
                set("attention_head_dim", json!(self.width / heads));
            }
            Some(heads) => {
                return Err(ConvertError(format!("{heads} heads do not divide {} channels: give --heads", self.width)));
            }
            None => notes.push(format!(
                "the number of heads is not known ({} channels): render with --base, or convert again with --heads",
                self.width
            )),
        }
        set("num_layers", json!(self.depth));
        set("caption_channels", json!(self.caption_width));
        set("cross_attention_dim", json!(self.width));
        for (key, value) in [
            ("in_channels", json!(4)),
            ("out_channels", json!(8)),
            ("patch_size", json!(2)),
            ("norm_type", json!("ada_norm_single")),
            ("norm_elementwise_affine", json!(false)),
            ("norm_eps", json!(1e-6)),
            ("activation_fn", json!("gelu-approximate")),
            ("attention_bias", json!(true)),
            ("use_additional_conditions", json!(false)),
        ] {
            set(key, value);
        }
        let sample_size = options.sample_size.or(of_base("sample_size").map(|size| size as usize)).or(self.sample_size);
        let interpolation = options.interpolation.or(of_base("interpolation_scale")).or(self.interpolation);
        match sample_size {
            Some(size) => set("sample_size", json!(size)),
            None => notes.push("the sample size is not known, 128 will be taken: give --sample-size".into()),
        }
        if let Some(interpolation) = interpolation {
            set("interpolation_scale", json!(interpolation));
        }
        if let Some((ratio, layers)) = &self.kv_compress {
            set("kv_compress", json!({"scale_factor": ratio, "layers": layers, "sampling": "conv"}));
        }
        Ok(config)
    }
}

fn write(
    out_dir: &Path,
    config: &serde_json::Map<String, Value>,
    tensors: &HashMap<String, Tensor>,
) -> Result<(), ConvertError> {
    let dir = out_dir.join("transformer");
    let fail = |path: &Path, error: &dyn std::fmt::Display| ConvertError(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(&dir).map_err(|error| fail(&dir, &error))?;
    let weights = dir.join("diffusion_pytorch_model.safetensors");
    let partial = dir.join("diffusion_pytorch_model.safetensors.fresco-tmp");
    candle_core::safetensors::save(tensors, &partial).and_then(|()| Ok(std::fs::rename(&partial, &weights)?)).map_err(
        |error| {
            // Nothing half-written stays behind; that it may not exist at all is fine.
            let _ = std::fs::remove_file(&partial);
            fail(&weights, &error)
        },
    )?;
    let path = dir.join("config.json");
    let text = serde_json::to_string_pretty(config).map_err(|error| fail(&path, &error))?;
    std::fs::write(&path, text + "\n").map_err(|error| fail(&path, &error))
}

#[cfg(test)]
mod tests;
