//! `fresco model`: the demo model looked into and checked, an original checkpoint converted and rendered.

use crate::desk::{Desk, models, repo, values};

#[test]
fn inspect_shows_all_parts() {
    let desk = Desk::new();
    let run = desk.fresco(&["model", "inspect", "demo"]).quiet();
    for part in ["transformer: ", "vae: ", "text_encoder: ", "tokenizer: ", "10 blocks, 2 heads of width 72"] {
        assert!(run.stdout.contains(part), "no `{part}` in {run:?}");
    }
    let path = models().join("demo").display().to_string();
    let json = desk.fresco(&["model", "inspect", &path, "--json"]).quiet().json();
    assert_eq!((&json["name"], &json["path"]), (&"demo".into(), &path.into()));
    assert_eq!(json["spec"]["transformer"]["kv_compress"]["scale_factor"], 2);
    assert_eq!(json["parts"].as_array().map(Vec::len), Some(4));
}

#[test]
fn settings_and_tensors_that_mean_nothing_are_listed() {
    let desk = Desk::new();
    let model = desk.demo_copy();
    let config = model.join("transformer/config.json");
    let text = std::fs::read_to_string(&config).expect("can be read").replacen('{', "{\"flavour\": 1,", 1);
    std::fs::write(config, text).expect("can be written");
    let run = desk.fresco(&["model", "inspect", model.to_str().expect("is text")]).quiet();
    assert!(run.stdout.contains("settings that are not understood: flavour"), "{run:?}");
}

#[test]
fn the_demo_model_is_sound() {
    let desk = Desk::new();
    let run = desk.fresco(&["model", "verify", "demo"]).quiet();
    assert!(run.stdout.contains("sound") && run.stdout.contains("sha256 "), "{run:?}");
    let json = desk.fresco(&["model", "verify", "demo", "--json"]).quiet().json();
    assert_eq!((&json["ok"], &json["faults"]), (&true.into(), &serde_json::json!([])));
    desk.fresco(&["model", "verify", "nowhere"]).refused(3, &["`nowhere`"]);
}

#[test]
fn an_original_checkpoint_is_converted_and_draws_the_same_picture() {
    let desk = Desk::new();
    let golden = repo().join("tests/goldens/a");
    let (checkpoint, base) = (golden.join("original.pth"), golden.join("model-kv"));
    let (checkpoint, base) = (checkpoint.to_str().expect("is text"), base.to_str().expect("is text"));
    let convert = ["model", "convert", checkpoint, "converted", "--base", base];
    let run = desk.fresco(&convert).quiet();
    assert!(run.stdout.contains("converted/transformer: "), "{run:?}");
    desk.fresco(&convert).refused(2, &["converted/transformer/config.json exists", "--force"]);
    desk.fresco(&[&convert[..], &["--force"]].concat()).quiet();

    desk.render(&["--model", "./converted", "--base", base, "--out", "a.safetensors"]).quiet();
    desk.render(&["--model", base, "--out", "b.safetensors"]).quiet();
    assert_eq!(values(&desk.read("a.safetensors"), "image"), values(&desk.read("b.safetensors"), "image"));
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let desk = Desk::new();
    desk.write("text.pth", "text");
    desk.fresco(&["model", "convert", "text.pth", "out"]).refused(1, &["text.pth"]);
    desk.fresco(&["model", "convert", "nowhere.pth", "out"]).refused(3, &["nowhere.pth"]);
    desk.fresco(&["model", "convert", "text.pth", "out", "--heads", "0"]).refused(2, &["'0'", "--heads"]);
    let scale = ["model", "convert", "text.pth", "out", "--interpolation-scale", "0"];
    desk.fresco(&scale).refused(2, &["'0'", "--interpolation-scale"]);
    assert_eq!(desk.files(), ["text.pth"]);
}

#[test]
fn a_checkpoint_is_read_from_safetensors_and_not_converted_unless_it_is_whole() {
    let desk = Desk::new();
    let golden = repo().join("tests/goldens/a");
    let base = golden.join("model-kv");
    let base = base.to_str().expect("is text");
    let original = candle_core::pickle::read_all_with_key(golden.join("original.pth"), Some("state_dict"));
    let original: std::collections::HashMap<String, candle_core::Tensor> =
        original.expect("is a checkpoint").into_iter().collect();
    let double = |tensor: &candle_core::Tensor| tensor.to_dtype(candle_core::DType::F64).expect("f64");
    let renamed: std::collections::HashMap<String, candle_core::Tensor> =
        original.iter().map(|(name, tensor)| (format!("module.{name}"), double(tensor))).collect();
    candle_core::safetensors::save(&renamed, desk.path("original.safetensors")).expect("can be written");
    desk.fresco(&["model", "convert", "original.safetensors", "converted", "--base", base]).quiet();
    desk.render(&["--model", "./converted", "--base", base, "--out", "a.safetensors"]).quiet();
    desk.render(&["--model", base, "--out", "b.safetensors"]).quiet();
    assert_eq!(values(&desk.read("a.safetensors"), "image"), values(&desk.read("b.safetensors"), "image"));

    let mut part = original;
    part.remove("blocks.1.mlp.fc1.bias").expect("it was there");
    candle_core::safetensors::save(&part, desk.path("part.safetensors")).expect("can be written");
    let run = desk.fresco(&["model", "convert", "part.safetensors", "part", "--base", base]);
    run.refused(1, &["part.safetensors: 1 tensor is missing", "transformer_blocks.1.ff.net.0.proj.bias"]);
    desk.write("old.pth", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.");
    desk.fresco(&["model", "convert", "old.pth", "part"]).refused(1, &["old.pth", "torch.save of before 2020"]);
    assert!(!desk.path("part").exists());
}
