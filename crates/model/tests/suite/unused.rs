//! What a folder holds and nobody reads: refused where it would change the picture, told of where it does not.

use std::fs;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::desk::{DIT, TEXT, change_tensors, copy_of, open, refused, render, set, tensors, values, zeros};

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// A copy of the reference model with one f32 more in its transformer for each of `names`.
fn with(names: &[&str]) -> tempfile::TempDir {
    let dir = copy_of("a/model");
    change_tensors(dir.path(), DIT, |all| {
        all.extend(names.iter().map(|name| ((*name).to_owned(), zeros(&[1], DType::F32))));
    });
    dir
}

#[test]
fn tensors_that_would_change_their_layer_are_refused_by_kind() {
    for (end, kind) in [
        ("ff.net.2.weight_scale", "quantised or stored scaled"),
        ("ff.net.2.scale_weight", "quantised or stored scaled"),
        ("attn1.to_q.weight.absmax", "quantised or stored scaled"),
        ("attn1.to_q.weight.quant_state.bitsandbytes__nf4", "quantised or stored scaled"),
        ("attn1.to_q.smooth_orig", "quantised or stored scaled"),
        ("attn1.to_q.lora_A.weight", "adapter"),
        ("attn1.to_k.lora_down", "adapter"),
        ("attn1.sr.weight", "kv_compress"),
        ("attn1.norm_q.weight", "not known"),
        ("norm1.weight", "not known"),
    ] {
        refused(with(&[&format!("transformer_blocks.1.{end}")]).path(), &["transformer: 1 tensor ", kind, end]);
    }
    refused(with(&["scaled_fp8"]).path(), &["quantised"]);
    let many: Vec<String> = (0..4).map(|idx| format!("transformer_blocks.{idx}.attn1.to_q.weight_scale")).collect();
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(with(&names).path(), &["transformer: 4 tensors", "and 1 more"]);
}

#[test]
fn tensors_beside_the_layers_are_told_of_in_one_line() {
    let fewer = copy_of("a/model");
    set(fewer.path(), "transformer/config.json", &json!({"num_layers": 3, "flavour": 1}));
    let notes = open(fewer.path()).notes();
    assert_eq!(notes.len(), 1, "{notes:?}");
    for part in
        ["transformer: 21 tensors that are not used: `transformer_blocks.3.", "and 18 more", "1 setting", "`flavour`"]
    {
        assert!(notes[0].contains(part), "{part}: {notes:?}");
    }
    assert!(!values(&render(fewer.path()).image).is_empty());
    assert_eq!(open(copy_of("a/model").path()).notes(), Vec::<String>::new());
}

#[test]
fn only_what_is_used_is_looked_at() {
    let dir = copy_of("a/model");
    change_tensors(dir.path(), DIT, |all| {
        all.insert("position_ids".into(), zeros(&[1], DType::I64));
        all.insert("table".into(), zeros(&[1], DType::F64));
    });
    change_tensors(dir.path(), VAE, |all| {
        let nan = Tensor::new(&[f32::NAN], &Device::Cpu).expect("a tensor");
        all.insert("encoder.conv_in.bias".into(), nan);
    });
    assert_eq!(values(&render(dir.path()).image), values(&render(copy_of("a/model").path()).image));
}

#[test]
fn faults_that_all_tensors_share_are_one_line() {
    let dir = copy_of("a/model");
    change_tensors(dir.path(), DIT, |all| {
        all.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(DType::F64).expect("f64"));
    });
    refused(dir.path(), &["transformer: ", "are of type F64", "more"]);
    let dir = copy_of("a/model");
    change_tensors(dir.path(), DIT, |all| {
        *all = all.drain().map(|(name, tensor)| (format!("transformer.{name}"), tensor)).collect();
    });
    refused(dir.path(), &["are missing", "begin with `transformer.`"]);
}

/// Puts the text encoder's weights into a GGUF file, named by `rename`.
fn to_gguf(dir: &Path, rename: fn(&str) -> String) {
    let path = dir.join(TEXT);
    let mut all: Vec<(String, QTensor)> = tensors(&path)
        .into_iter()
        .map(|(name, tensor)| (rename(&name), QTensor::quantize(&tensor, GgmlDType::F32).expect("f32 is one")))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let listed: Vec<(&str, &QTensor)> = all.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = fs::File::create(dir.join("text_encoder/t5.gguf")).expect("a file");
    gguf_file::write(&mut file, &[], &listed).expect("weights are written");
    fs::remove_file(path).expect("it was there");
}

fn llama_name(name: &str) -> String {
    let renamed = name.replace("encoder.block.", "enc.blk.").replace("encoder.final_layer_norm", "enc.output_norm");
    [
        ("shared.weight", "token_embd.weight"),
        ("layer.0.layer_norm", "attn_norm"),
        ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
        ("layer.0.SelfAttention.", "attn_"),
        ("layer.1.layer_norm", "ffn_norm"),
        ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
        ("layer.1.DenseReluDense.wi_1", "ffn_up"),
        ("layer.1.DenseReluDense.wo", "ffn_down"),
    ]
    .into_iter()
    .fold(renamed, |name, (from, to)| name.replace(from, to))
}

#[test]
fn a_gguf_file_is_read_under_the_names_of_llama_cpp_too() {
    let (candle, llama) = (copy_of("a/model"), copy_of("a/model"));
    to_gguf(candle.path(), str::to_owned);
    to_gguf(llama.path(), llama_name);
    assert_eq!(values(&render(candle.path()).image), values(&render(llama.path()).image));
    let sha256 = |dir: &Path| open(dir).identity().expect("can be read").sha256;
    assert_eq!(sha256(candle.path()), sha256(llama.path()));
}

#[test]
fn a_gguf_file_that_is_none_is_refused_when_the_folder_is_opened() {
    let of = |bytes: &[u8]| {
        let dir = copy_of("a/model");
        fs::remove_file(dir.path().join(TEXT)).expect("it was there");
        fs::write(dir.path().join("text_encoder/t5.gguf"), bytes).expect("can be written");
        dir
    };
    for bytes in [b"".as_slice(), b"x\n", b"GGUF", b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"] {
        refused(of(bytes).path(), &["text_encoder/t5.gguf: "]);
    }
    let whole = copy_of("a/model");
    to_gguf(whole.path(), str::to_owned);
    let bytes = fs::read(whole.path().join("text_encoder/t5.gguf")).expect("it is there");
    refused(of(&bytes[..bytes.len() - 100]).path(), &["text_encoder/t5.gguf: ", "cut short"]);
    let strange = copy_of("a/model");
    to_gguf(strange.path(), |name| format!("x.{name}"));
    refused(strange.path(), &["text_encoder/t5.gguf: ", "are missing", "such as `x."]);
}

#[test]
fn what_python_writes_for_numbers_is_read_anywhere() {
    let dir = copy_of("a/model");
    let path = dir.path().join("scheduler/scheduler_config.json");
    let text = fs::read_to_string(&path).expect("it is there");
    fs::write(&path, format!("\u{feff}{}", text.replace("\": -Infinity", "\":-Infinity"))).expect("can be written");
    assert_eq!(crate::desk::faults(dir.path()), Vec::<String>::new());
    set(dir.path(), "vae/config.json", &json!({"scaling_factor": Value::from("NaN")}));
    refused(dir.path(), &["`scaling_factor`", "NaN"]);
}
