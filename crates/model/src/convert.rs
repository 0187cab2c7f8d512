//! Original PixArt checkpoints (`.pth`, or `.safetensors` with the same names) to a model folder's `transformer/`.
//!
//! The pickle is read by candle, which understands tensors and nothing else: no code in it runs. What the
//! tensors do not tell (how many heads) comes from the caller or a base folder.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Tensor};
use plan::{DitSpec, KvCompress, LayerIdx};
use serde_json::{Value, json};

use crate::config;
use crate::dit;
use crate::listed::{counted, listed};
use crate::weights::squeezed;

mod names;
mod read;

use names::{Name, rename, split};

/// Head width of every published PixArt model.
const USUAL_HEAD_WIDTH: usize = 72;

/// Blocks a checkpoint may have; each is a dozen names to look for.
const MOST_BLOCKS: usize = 1 << 10;

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
    let mut notes = Vec::new();
    let fail = |what: String| ConvertError(format!("{}: {what}", checkpoint.display()));
    let tensors = read::read(checkpoint, &mut notes)?;
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
        return Err(fail(why_unknown(&unknown)));
    }
    dropped.sort();
    let facts = Facts::of(&renamed, tensors.get("pos_embed")).ok_or_else(|| fail("not a PixArt checkpoint".into()))?;
    facts.check_complete(&renamed).map_err(fail)?;
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

/// What names that mean nothing here tell of the file.
fn why_unknown(names: &[String]) -> String {
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    if any("transformer_blocks.") {
        return "has the names of diffusers already: put it into a folder `transformer` with its config.json".into();
    }
    if any("csize_embedder.") || any("ar_embedder.") {
        let listed = listed(names);
        return format!("embeds the picture's size as PixArt-α does, which is not supported ({listed})");
    }
    format!("{} of another model: {}", counted(names.len(), "tensor"), listed(names))
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
        let block_idx =
            |name: &String| name.strip_prefix("transformer_blocks.")?.split('.').next()?.parse::<usize>().ok();
        let depth = renamed.keys().filter_map(block_idx).max()? + 1;
        if depth > MOST_BLOCKS {
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

    /// Passes if everything a model of these facts needs is there, of the right shape and a type that can be rendered
    /// from.
    fn check_complete(&self, renamed: &HashMap<String, Tensor>) -> Result<(), String> {
        let kv_compress = self.kv_compress.as_ref().map(|(ratio, layers)| KvCompress {
            ratio: *ratio,
            layers: layers.iter().map(|layer| LayerIdx(*layer)).collect(),
        });
        // How the width falls into heads changes no shape.
        let (heads, head_width) = (1, self.width);
        let (depth, caption_width) = (self.depth, self.caption_width);
        let spec =
            DitSpec { depth, heads, head_width, caption_width, sample_cells: 2, interpolation: 1.0, kv_compress };
        let (mut missing, mut misshapen, mut unreadable) = (Vec::new(), Vec::new(), Vec::new());
        for (name, shape) in dit::manifest(&spec) {
            match renamed.get(&name) {
                None => missing.push(name),
                Some(tensor) if squeezed(tensor.dims()) != squeezed(&shape) => misshapen.push(name),
                Some(tensor) if !matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16) => {
                    unreadable.push(format!("{name} ({:?})", tensor.dtype()));
                }
                Some(_) => {}
            }
        }
        let faults = [
            ("missing", missing),
            ("of a shape that does not fit the others", misshapen),
            ("of a type that cannot be rendered from: f32, f16 or bf16 is needed", unreadable),
        ];
        match faults.into_iter().find(|(_, names)| !names.is_empty()) {
            Some((what, names)) => {
                let (n, is) = (names.len(), if names.len() == 1 { "is" } else { "are" });
                Err(format!("{} {is} {what} ({}), under diffusers' names", counted(n, "tensor"), listed(names)))
            }
            None => Ok(()),
        }
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
                config::json::parse(&text).map_err(fail)?
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
