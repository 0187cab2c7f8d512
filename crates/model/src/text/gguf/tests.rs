//! Headers that are whole, cut at every byte, and damaged.

use super::*;

/// A file with one f32 tensor `[2, 3]` named `name`, and two entries before it.
fn file(name: &str) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut file = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &1_u64.to_le_bytes(), &2_u64.to_le_bytes()].concat();
    file.extend([text("general.alignment"), 4_u32.to_le_bytes().to_vec(), 64_u32.to_le_bytes().to_vec()].concat());
    file.extend([text("names"), 9_u32.to_le_bytes().to_vec(), 8_u32.to_le_bytes().to_vec()].concat());
    file.extend([2_u64.to_le_bytes().to_vec(), text("a"), text("b")].concat());
    file.extend([text(name), 2_u32.to_le_bytes().to_vec()].concat());
    file.extend([3_u64, 2].map(u64::to_le_bytes).concat());
    file.extend([0_u32.to_le_bytes().to_vec(), 0_u64.to_le_bytes().to_vec()].concat());
    file.resize(file.len().next_multiple_of(64), 0);
    file.extend([0.0_f32, 1.0, 2.0, 3.0, 4.0, 5.0].map(f32::to_le_bytes).concat());
    file
}

#[test]
fn a_whole_header_is_read() {
    let entries = read_header(&file("x")).expect("it is whole");
    assert_eq!((entries.len(), &entries[0].name[..], &entries[0].shape[..]), (1, "x", &[2, 3][..]));
    assert_eq!(entries[0].to - entries[0].from, 24);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let whole = file("x");
    for len in 0..whole.len() {
        read_header(&whole[..len]).map(|_| ()).expect_err("a part of a file is none");
    }
}

#[test]
fn damage_is_refused_or_harmless() {
    let whole = file("x");
    for at in 0..whole.len() {
        for value in [0, 1, 9, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            if let Err(fault) = read_header(&damaged) {
                assert!(!fault.contains('\n'), "{fault}");
            }
        }
    }
}

#[test]
fn all_tensors_of_llama_cpp_have_a_name_here() {
    let blocks = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_o", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
    let config = serde_json::json!({"num_heads": 2, "d_kv": 4, "d_ff": 8, "relative_attention_num_buckets": 32});
    let spec = plan::TextSpec { width: 4, depth: 2, vocabulary: 9 };
    let names: std::collections::BTreeSet<String> = crate::text::manifest(&spec, &config)
        .iter()
        .map(|(names, _)| llama_name(&names[0]).expect("each has one"))
        .collect();
    let of_blocks = (0..2).flat_map(|idx| blocks.map(|layer| format!("enc.blk.{idx}.{layer}.weight")));
    let others = ["token_embd.weight", "enc.output_norm.weight", "enc.blk.0.attn_rel_b.weight"].map(str::to_owned);
    assert_eq!(names, of_blocks.chain(others).collect());
}
