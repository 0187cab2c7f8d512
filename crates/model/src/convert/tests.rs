//! Checkpoints whose tensors contradict themselves.

use candle_core::Device;

use super::*;

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).expect("a tensor")
}

fn stem() -> HashMap<String, Tensor> {
    let stem = [("pos_embed.proj.weight", [72, 4, 2, 2]), ("caption_projection.linear_1.weight", [72, 64, 1, 1])];
    stem.map(|(name, shape)| (name.to_owned(), zeros(&shape))).into()
}

#[test]
fn a_checkpoint_without_blocks_is_none() {
    let mut renamed = stem();
    assert!(Facts::of(&renamed, None).is_none());
    renamed.insert("transformer_blocks.0.scale_shift_table".into(), zeros(&[6, 72]));
    assert_eq!(Facts::of(&renamed, None).map(|facts| (facts.depth, facts.width)), Some((1, 72)));
}

#[test]
fn compression_of_an_unknown_ratio_is_not_left_out() {
    let mut renamed = stem();
    renamed.insert("transformer_blocks.0.scale_shift_table".into(), zeros(&[6, 72]));
    renamed.insert("transformer_blocks.0.attn1.sr.weight".into(), zeros(&[72, 4]));
    assert!(Facts::of(&renamed, None).is_none());
    renamed.insert("transformer_blocks.0.attn1.sr.weight".into(), zeros(&[72, 1, 2, 2]));
    assert_eq!(Facts::of(&renamed, None).and_then(|facts| facts.kv_compress), Some((2, vec![0])));
}

#[test]
fn a_tensor_that_is_no_equal_parts_is_not_split() {
    let names = ["q", "k", "v"].map(str::to_owned);
    for shape in [&[7, 4][..], &[2, 4], &[]] {
        let mut renamed = HashMap::new();
        split("qkv", &zeros(shape), &names, &mut renamed).expect_err("three equal parts are needed");
        assert!(renamed.is_empty(), "{shape:?}");
    }
}
