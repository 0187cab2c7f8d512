//! Which folders are the same model: those whose pixels are the same, however their files hold it.

use std::fs;
use std::path::Path;

use candle_core::DType;
use model::Identity;
use serde_json::{Value, json};

use crate::desk::{DIT, TEXT, change_tensors, copy_of, open, set, zeros};

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn identity(dir: &Path) -> Identity {
    open(dir).identity().expect("the weights can be read")
}

/// What differs once `change` was made to the reference model `name`; nothing if it is the same model.
fn differs(name: &str, change: impl FnOnce(&Path)) -> Option<String> {
    let dir = copy_of(name);
    let before = identity(dir.path());
    change(dir.path());
    let after = identity(dir.path());
    let differences = before.digests.differences(&after.digests);
    assert_eq!(differences.is_some(), before.sha256 != after.sha256);
    differences
}

fn setting(file: &'static str, changes: Value) -> Option<String> {
    differs("a/model", |dir| set(dir, file, &changes))
}

#[test]
fn every_setting_that_decides_pixels_makes_another_model() {
    for (file, changes) in [
        ("transformer/config.json", json!({"interpolation_scale": 3.0})),
        ("transformer/config.json", json!({"sample_size": 32})),
        ("transformer/config.json", json!({"num_attention_heads": 2, "attention_head_dim": 48})),
        ("vae/config.json", json!({"scaling_factor": 0.0848})),
        ("vae/config.json", json!({"norm_num_groups": 4})),
        ("text_encoder/config.json", json!({"layer_norm_epsilon": 1e-5})),
        ("text_encoder/config.json", json!({"relative_attention_max_distance": 64})),
        ("text_encoder/config.json", json!({"num_heads": 4, "d_kv": 8, "relative_attention_max_distance": 127})),
        ("model_index.json", json!({"_class_name": "PixArtAlphaPipeline"})),
    ] {
        assert_eq!(setting(file, changes.clone()).as_deref(), Some("configuration"), "{changes}");
    }
    for changes in [
        json!({"beta_end": 0.012}),
        json!({"beta_start": 0.00085}),
        json!({"beta_schedule": "scaled_linear"}),
        json!({"num_train_timesteps": 1001}),
    ] {
        let found = setting("scheduler/scheduler_config.json", changes.clone());
        assert_eq!(found.as_deref(), Some("noise schedule"), "{changes}");
    }
}

#[test]
fn a_value_of_any_network_makes_another_model() {
    for (file, tensor) in
        [(DIT, "proj_out.bias"), (VAE, "decoder.conv_out.bias"), (TEXT, "encoder.final_layer_norm.weight")]
    {
        let changed = differs("a/model", |dir| {
            change_tensors(dir, file, |all| {
                let tensor = all.get_mut(tensor).expect("it is there");
                *tensor = tensor.affine(1.0, 1e-3).expect("a tensor");
            });
        });
        assert_eq!(changed.as_deref(), Some("weights"), "{tensor}");
    }
}

#[test]
fn another_tokenizer_makes_another_model() {
    let changed = differs("a/model", |dir| {
        let path = dir.join("tokenizer/spiece.model");
        let mut bytes = fs::read(&path).expect("it is there");
        // A letter of the first piece of text.
        let at = bytes.windows(3).position(|bytes| bytes == "▁".as_bytes()).expect("a piece begins with it");
        bytes[at..at + 3].copy_from_slice(b"xyz");
        fs::write(path, bytes).expect("can be written");
    });
    assert_eq!(changed.as_deref(), Some("tokenizer"));
}

#[test]
fn what_decides_no_pixel_leaves_the_model_as_it_is() {
    // Keys in another order, without spaces, and with values that mean nothing here.
    assert_eq!(setting("transformer/config.json", json!({"dropout": 0.5, "_name_or_path": "x"})), None);
    assert_eq!(setting("transformer/config.json", json!({"interpolation_scale": 1})), None);
    assert_eq!(setting("vae/config.json", json!({"force_upcast": false, "sample_size": 1024})), None);
    assert_eq!(
        setting("scheduler/scheduler_config.json", json!({"lower_order_final": false, "beta_start": null})),
        None
    );
    assert_eq!(setting("model_index.json", json!({"_fresco_natural_size": "256x256"})), None);
    // Tensors that nobody reads, and another type that holds the same values.
    let spare = |dir: &Path| {
        change_tensors(dir, DIT, |all| drop(all.insert("position_ids".into(), zeros(&[1], DType::I64))));
        change_tensors(dir, VAE, |all| all.retain(|name, _| !name.starts_with("encoder.")));
    };
    assert_eq!(differs("a/model", spare), None);
    let widened = |dir: &Path| {
        change_tensors(dir, VAE, |all| {
            all.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(DType::F32).expect("f32"));
        });
    };
    assert_eq!(differs("c/model", widened), None);
    assert_eq!(differs("d/model", widened), None);
    let older = |dir: &Path| {
        change_tensors(dir, VAE, |all| {
            let name = "decoder.mid_block.attentions.0.to_q.weight";
            let tensor = all.remove(name).expect("it is there");
            let tensor = tensor.unsqueeze(2).and_then(|tensor| tensor.unsqueeze(3)).expect("two more axes");
            all.insert(name.replace("to_q", "query"), tensor);
        });
    };
    assert_eq!(differs("a/model", older), None);
}
