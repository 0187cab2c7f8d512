//! Tensors that nothing here reads: those that would change the picture are refused, the others are told of.
//!
//! What lies in a layer that is used was put there to be used. What lies elsewhere (more blocks than the config names,
//! buffers at the top) is passed over by the reference, too.

use std::collections::BTreeSet;

use crate::listed::{counted, listed};
use crate::weights::Weights;

/// A kind of tensor that changes what its layer computes.
struct Kind {
    is_one: fn(&str) -> bool,
    what: &'static str,
}

/// The first that fits names the fault.
const KINDS: [Kind; 4] = [
    Kind {
        is_one: |name| ["resolution_embedder.", "aspect_ratio_embedder."].iter().any(|layer| name.contains(layer)),
        what: "embed the picture's size as PixArt-α does, which is not supported",
    },
    Kind {
        is_one: |name| name.contains(".attn1.sr"),
        what: "compress keys and values, but `kv_compress` in the config does not name their blocks",
    },
    Kind {
        is_one: is_of_quantised,
        what: "belong to weights that are quantised or stored scaled, which is not supported: use those they were made from",
    },
    Kind { is_one: is_of_adapter, what: "belong to an adapter, which is not applied: merge it into the weights" },
];

fn is_of_quantised(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let parts =
        ["absmax", "quant", "qweight", "qzeros", "zero_point", "smooth", "scaled_fp8", "weight_format", "g_idx"];
    let is_scale = last.contains("scale") && !last.starts_with("scale_shift_table");
    is_scale || last == "SCB" || parts.iter().any(|part| last.contains(part)) || name.contains(".quant_state.")
}

fn is_of_adapter(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["lora", "hada_w", "lokr_", "dora", "oft_", "ia3", "adapter"].iter().any(|part| name.contains(part))
}

/// Sorts the unused tensors of `part` into faults, a line for each kind, and names to tell of. `is_spare` are those
/// that every published file has and nobody needs for rendering.
pub(super) fn sort(part: &str, weights: &Weights, is_spare: fn(&str) -> bool, faults: &mut Vec<String>) -> Vec<String> {
    let used: BTreeSet<&str> = weights.names().map(layer).collect();
    let (mut by_kind, mut inside, mut told) = (vec![Vec::new(); KINDS.len()], Vec::new(), Vec::new());
    for name in weights.unused().tensors.iter().filter(|name| !is_spare(name)) {
        let layer = layer(name);
        if is_numbered(layer) && !used.contains(layer) && used.iter().any(|used| stem(used) == stem(layer)) {
            // One block more than the config names.
            told.push(name.clone());
        } else if let Some(idx) = KINDS.iter().position(|kind| (kind.is_one)(name)) {
            by_kind[idx].push(name);
        } else if used.contains(layer) && !is_buffer(name) {
            inside.push(name);
        } else {
            told.push(name.clone());
        }
    }
    let kinds = KINDS.iter().map(|kind| kind.what).zip(by_kind);
    for (what, names) in kinds.chain([("lie in layers that are used, and what they are for is not known", inside)]) {
        if !names.is_empty() {
            faults.push(format!("{part}: {} {what} ({})", counted(names.len(), "tensor"), listed(names)));
        }
    }
    told
}

/// Numbers that follow from the config, kept with the weights by some versions.
fn is_buffer(name: &str) -> bool {
    ["position_ids", "inv_freq", "num_batches_tracked"].iter().any(|end| name.ends_with(end))
}

/// The layer a tensor lies in: its name up to the first number, or its first part.
fn layer(name: &str) -> &str {
    let parts: Vec<&str> = name.split('.').collect();
    let n_parts = parts.iter().position(|part| part.parse::<u32>().is_ok()).map_or(1, |at| at + 1);
    let len: usize = parts[..n_parts].iter().map(|part| part.len() + 1).sum();
    &name[..len - 1]
}

fn is_numbered(layer: &str) -> bool {
    layer.ends_with(|c: char| c.is_ascii_digit()) && layer.contains('.')
}

/// A numbered layer without its number.
fn stem(layer: &str) -> &str {
    layer.rsplit_once('.').map_or(layer, |(stem, _)| stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_ends_with_its_number() {
        assert_eq!(layer("transformer_blocks.12.attn1.to_q.weight"), "transformer_blocks.12");
        assert_eq!(layer("encoder.block.0.layer.1.layer_norm.weight"), "encoder.block.0");
        assert_eq!(layer("proj_out.bias"), "proj_out");
        assert_eq!(layer("position_ids"), "position_ids");
    }

    #[test]
    fn what_scales_weights_is_known_by_its_name() {
        for end in [
            "weight_scale",
            "scale_weight",
            "input_scale",
            "weight_scale_inv",
            "weight.absmax",
            "SCB",
            "wscales",
            "weight.quant_map",
            "weight.quant_state.bitsandbytes__nf4",
            "weight_zero_point",
            "smooth_orig",
            "qweight",
        ] {
            assert!(is_of_quantised(&format!("transformer_blocks.0.ff.net.2.{end}")), "{end}");
        }
        assert!(is_of_quantised("scaled_fp8"));
        assert!(!is_of_quantised("transformer_blocks.0.scale_shift_table"));
        assert!(is_of_adapter("transformer_blocks.0.attn1.to_q.lora_A.default.weight"));
        assert!(is_of_adapter("lora_unet_blocks_0.hada_w1_a"));
    }
}
