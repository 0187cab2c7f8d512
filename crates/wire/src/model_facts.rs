//! What a worker says of its models, as it travels. Read with bounds: a coordinator sums over what it is told.

use std::ops::RangeInclusive;

use plan::{DitSpec, KvCompress, LayerIdx, ModelDigests, ModelFacts, ModelId, ModelSpec, TextSpec, VaeSpec};

use crate::convert::ConvertError;
use crate::v1;

const DEPTHS: RangeInclusive<u32> = 1..=1 << 10;
const WIDTHS: RangeInclusive<u32> = 1..=1 << 20;
const SMALL: RangeInclusive<u32> = 1..=1 << 6;
/// Levels of a decoder: seven make 64 pixels of a cell.
const MOST_LEVELS: usize = 7;

impl From<&ModelFacts> for v1::ModelFacts {
    fn from(facts: &ModelFacts) -> Self {
        Self {
            name: facts.id.name.clone(),
            weights_sha256: facts.id.weights_sha256.clone(),
            spec: Some((&facts.spec).into()),
            digests: (!facts.digests.is_empty()).then(|| (&facts.digests).into()),
        }
    }
}

impl From<&ModelDigests> for v1::ModelDigests {
    fn from(digests: &ModelDigests) -> Self {
        let ModelDigests { weights, configuration, noise_schedule, tokenizer } = digests.clone();
        Self { weights, configuration, noise_schedule, tokenizer }
    }
}

/// Bounded, because a coordinator keeps what it is told.
fn digests(told: &v1::ModelDigests) -> Result<ModelDigests, ConvertError> {
    let digest = |field, text: &String| {
        let is_one = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = text.chars().take(64).collect();
        let fault = ConvertError::Value { field, value, way_out: "a sha256 has 64 hexadecimal digits" };
        is_one.then(|| text.clone()).ok_or(fault)
    };
    Ok(ModelDigests {
        weights: digest("digests.weights", &told.weights)?,
        configuration: digest("digests.configuration", &told.configuration)?,
        noise_schedule: digest("digests.noise_schedule", &told.noise_schedule)?,
        tokenizer: digest("digests.tokenizer", &told.tokenizer)?,
    })
}

impl From<&ModelSpec> for v1::ModelSpec {
    fn from(spec: &ModelSpec) -> Self {
        let ModelSpec { dit, vae, text } = spec;
        let kv_layers = dit.kv_compress.iter().flat_map(|kv| &kv.layers);
        Self {
            dit: Some(v1::DitSpec {
                depth: dit.depth as u32,
                heads: dit.heads as u32,
                head_width: dit.head_width as u32,
                caption_width: dit.caption_width as u32,
                sample_cells: dit.sample_cells as u32,
                interpolation: dit.interpolation,
                kv_ratio: dit.kv_compress.as_ref().map_or(0, |kv| kv.ratio as u32),
                kv_layers: kv_layers.map(|layer| layer.0 as u32).collect(),
            }),
            vae: Some(v1::VaeSpec {
                widths: vae.widths.iter().map(|width| *width as u32).collect(),
                layers_per_block: vae.layers_per_block as u32,
                groups: vae.groups as u32,
                scaling_factor: vae.scaling_factor,
                shift_factor: vae.shift_factor,
                latent_channels: vae.latent_channels as u32,
                has_post_quant_conv: vae.has_post_quant_conv,
                has_mid_attention: vae.has_mid_attention,
            }),
            text: Some(v1::TextSpec {
                width: text.width as u32,
                depth: text.depth as u32,
                vocabulary: text.vocabulary as u32,
            }),
        }
    }
}

/// What placing needs to know of a model.
///
/// # Errors
/// If a network is missing or a width or depth is zero or absurd.
pub fn model_facts(facts: &v1::ModelFacts) -> Result<ModelFacts, ConvertError> {
    let missing = |field| ConvertError::Missing { field };
    let spec = facts.spec.as_ref().ok_or(missing("spec"))?;
    let dit = spec.dit.as_ref().ok_or(missing("dit"))?;
    let vae = spec.vae.as_ref().ok_or(missing("vae"))?;
    let text = spec.text.as_ref().ok_or(missing("text"))?;
    let kv_layers = || -> Result<_, ConvertError> {
        let layers =
            dit.kv_layers.iter().map(|layer| Ok(LayerIdx(bounded("kv_layers", *layer, &(0..=*DEPTHS.end()))?)));
        layers.collect()
    };
    let kv_compress = match dit.kv_ratio {
        0 => None,
        ratio => Some(KvCompress { ratio: bounded("kv_ratio", ratio, &SMALL)?, layers: kv_layers()? }),
    };
    if vae.widths.is_empty() || vae.widths.len() > MOST_LEVELS {
        let (value, way_out) = (format!("{} levels", vae.widths.len()), "a decoder has 1 to 7");
        return Err(ConvertError::Value { field: "widths", value, way_out });
    }
    Ok(ModelFacts {
        id: ModelId { name: facts.name.clone(), weights_sha256: facts.weights_sha256.clone() },
        digests: facts.digests.as_ref().map(digests).transpose()?.unwrap_or_default(),
        spec: ModelSpec {
            dit: DitSpec {
                depth: bounded("dit.depth", dit.depth, &DEPTHS)?,
                heads: bounded("dit.heads", dit.heads, &DEPTHS)?,
                head_width: bounded("dit.head_width", dit.head_width, &DEPTHS)?,
                caption_width: bounded("dit.caption_width", dit.caption_width, &WIDTHS)?,
                sample_cells: bounded("dit.sample_cells", dit.sample_cells, &WIDTHS)?,
                interpolation: finite("dit.interpolation", dit.interpolation)?,
                kv_compress,
            },
            vae: VaeSpec {
                widths: vae
                    .widths
                    .iter()
                    .map(|width| bounded("vae.widths", *width, &WIDTHS))
                    .collect::<Result<_, _>>()?,
                layers_per_block: bounded("vae.layers_per_block", vae.layers_per_block, &DEPTHS)?,
                groups: bounded("vae.groups", vae.groups, &WIDTHS)?,
                scaling_factor: finite("vae.scaling_factor", vae.scaling_factor)?,
                shift_factor: finite("vae.shift_factor", vae.shift_factor)?,
                latent_channels: bounded("vae.latent_channels", vae.latent_channels, &WIDTHS)?,
                has_post_quant_conv: vae.has_post_quant_conv,
                has_mid_attention: vae.has_mid_attention,
            },
            text: TextSpec {
                width: bounded("text.width", text.width, &WIDTHS)?,
                depth: bounded("text.depth", text.depth, &DEPTHS)?,
                vocabulary: bounded("text.vocabulary", text.vocabulary, &(1..=u32::MAX))?,
            },
        },
    })
}

fn bounded(field: &'static str, value: u32, range: &RangeInclusive<u32>) -> Result<usize, ConvertError> {
    let out_of_range =
        || ConvertError::Value { field, value: value.to_string(), way_out: "verify that model's folder" };
    range.contains(&value).then_some(value as usize).ok_or_else(out_of_range)
}

fn finite(field: &'static str, value: f64) -> Result<f64, ConvertError> {
    let not_finite = || ConvertError::Value { field, value: value.to_string(), way_out: "verify that model's folder" };
    value.is_finite().then_some(value).ok_or_else(not_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> ModelFacts {
        let id = ModelId { name: "demo".into(), weights_sha256: "ab".repeat(32) };
        ModelFacts { id, digests: ModelDigests::default(), spec: ModelSpec::pixart_sigma_xl2() }
    }

    #[test]
    fn facts_read_back_as_they_were_sent() {
        let plain = facts();
        let mut compressed = facts();
        let layers = [LayerIdx(14), LayerIdx(27)].into();
        compressed.spec.dit.kv_compress = Some(KvCompress { ratio: 2, layers });
        let mut told = facts();
        let [weights, configuration, noise_schedule, tokenizer] = ["0", "1", "2", "3"].map(|digit| digit.repeat(64));
        told.digests = ModelDigests { weights, configuration, noise_schedule, tokenizer };
        for sent in [plain, compressed, told] {
            assert_eq!(model_facts(&v1::ModelFacts::from(&sent)), Ok(sent));
        }
    }

    #[test]
    fn a_network_that_is_missing_or_absurd_is_refused_by_name() {
        let refusal = |change: fn(&mut v1::ModelSpec)| {
            let mut sent = v1::ModelFacts::from(&facts());
            change(sent.spec.as_mut().expect("was sent"));
            model_facts(&sent).expect_err("makes no sense").to_string()
        };
        assert_eq!(refusal(|spec| spec.vae = None), "`vae` is missing");
        assert_eq!(
            refusal(|spec| spec.dit.as_mut().expect("was sent").depth = 0),
            "`dit.depth` is 0: verify that model's folder"
        );
        assert!(refusal(|spec| spec.vae.as_mut().expect("was sent").widths = vec![8; 40]).contains("40 levels"));
        assert!(refusal(|spec| spec.dit.as_mut().expect("was sent").kv_ratio = 1 << 20).contains("kv_ratio"));
    }
}
