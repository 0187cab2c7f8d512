//! Names of the original repository's tensors, and what they become.

use std::collections::HashMap;

use candle_core::Tensor;

use super::ConvertError;

/// What becomes of a tensor of the original repository.
pub(super) enum Name {
    Is(String),
    /// Equal parts along the first axis, under these names.
    Split(Vec<String>),
    Spare,
    Unknown,
}

pub(super) fn rename(name: &str) -> Name {
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

pub(super) fn split(
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
