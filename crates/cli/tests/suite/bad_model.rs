//! Model folders with faults: each is named with its part, all at once, before any work.

use std::fs;
use std::path::Path;

use crate::desk::{Desk, Entry, safetensors_file, tensors};

const DIT_WEIGHTS: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Spoils a copy of the demo model; rendering with it must be refused in `n_lines` lines that hold `parts`.
fn check(spoil: impl FnOnce(&Path), n_lines: usize, parts: &[&str]) {
    let desk = Desk::new();
    let model = desk.demo_copy();
    spoil(&model);
    let model = model.to_str().expect("the path is text");
    desk.render(&["--model", model]).refused_in_lines(1, n_lines, &[parts, &[model]].concat());
    assert_eq!(desk.files(), Vec::<String>::new());

    let run = desk.fresco(&["model", "verify", model, "--json"]);
    let faults = run.json()["faults"].as_array().map(Vec::len);
    assert_eq!((run.code, faults), (Some(1), Some(n_lines)), "{run:?}");
}

fn change(file: &Path, change: impl Fn(&mut Entry)) {
    let mut entries = tensors(&fs::read(file).expect("the file can be read"));
    entries.iter_mut().for_each(change);
    fs::write(file, safetensors_file(&entries)).expect("the file can be written");
}

fn remove(path: &Path) {
    fs::remove_file(path).expect("the file can be removed");
}

#[test]
fn missing_files_are_named() {
    check(|model| remove(&model.join("vae/config.json")), 1, &["vae/config.json"]);
    check(|model| remove(&model.join(DIT_WEIGHTS)), 1, &["transformer", ".safetensors"]);
    check(|model| remove(&model.join("tokenizer/tokenizer.json")), 1, &["tokenizer.json"]);
    check(|model| fs::remove_dir_all(model.join("scheduler")).expect("can be removed"), 1, &["scheduler", "--base"]);
}

#[test]
fn an_empty_folder_is_refused_with_all_it_lacks() {
    let empty = |model: &Path| {
        fs::remove_dir_all(model).and_then(|()| fs::create_dir(model)).expect("can be emptied");
    };
    check(empty, 5, &["transformer", "vae", "text_encoder", "tokenizer", "scheduler"]);
}

#[test]
fn truncated_weights_are_named() {
    let truncate = |model: &Path| {
        let file = model.join(DIT_WEIGHTS);
        let bytes = fs::read(&file).expect("the file can be read");
        fs::write(file, &bytes[..bytes.len() / 2]).expect("the file can be written");
    };
    check(truncate, 1, &[DIT_WEIGHTS, "truncated"]);
}

#[test]
fn tensors_of_a_wrong_shape_are_all_named_at_once() {
    let halve = |model: &Path| {
        change(&model.join(DIT_WEIGHTS), |entry| {
            if ["proj_out.bias", "scale_shift_table"].contains(&entry.name.as_str()) {
                entry.shape[0] /= 2;
                entry.bytes.truncate(entry.bytes.len() / 2);
            }
        });
    };
    check(halve, 2, &["`proj_out.bias` has shape [16], [32] is needed", "`scale_shift_table` has shape [1, "]);
}

#[test]
fn a_missing_tensor_is_named() {
    let rename = |model: &Path| {
        change(&model.join(DIT_WEIGHTS), |entry| {
            if entry.name == "proj_out.bias" {
                entry.name = "proj_in.bias".into();
            }
        });
    };
    check(rename, 1, &["`proj_out.bias` is missing"]);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let spoil = |model: &Path| {
        change(&model.join(DIT_WEIGHTS), |entry| {
            if entry.name == "proj_out.bias" {
                // A NaN in half precision.
                entry.bytes[2..4].copy_from_slice(&[0, 0x7e]);
            }
        });
    };
    check(spoil, 1, &["transformer", "`proj_out.bias` holds NaN at element 1"]);
}

#[test]
fn a_pickle_in_place_of_weights_is_not_loaded() {
    let beside = |model: &Path| {
        remove(&model.join(DIT_WEIGHTS));
        fs::write(model.join("transformer/diffusion_pytorch_model.bin"), b"PK\x03\x04").expect("can be written");
    };
    check(beside, 1, &["transformer/diffusion_pytorch_model.bin", "pickle"]);
    let disguised = |model: &Path| fs::write(model.join(DIT_WEIGHTS), b"\x80\x02}q\x00.").expect("can be written");
    check(disguised, 1, &[DIT_WEIGHTS, "pickle"]);
}

#[test]
fn an_unknown_sampler_is_refused() {
    let rename = |model: &Path| {
        let file = model.join("scheduler/scheduler_config.json");
        let text = fs::read_to_string(&file).expect("the file can be read");
        fs::write(file, text.replace("DPMSolverMultistepScheduler", "EulerDiscreteScheduler")).expect("can be written");
    };
    check(rename, 1, &["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]);
}

#[test]
fn a_config_that_is_no_json_is_named() {
    check(|model| fs::write(model.join("vae/config.json"), "{").expect("can be written"), 1, &["vae/config.json"]);
}

#[test]
fn a_text_encoder_that_cannot_be_read_is_named_before_a_worker_joins() {
    let desk = Desk::new();
    let model = desk.demo_copy();
    remove(&model.join("text_encoder/model.safetensors"));
    fs::write(model.join("text_encoder/t5.gguf"), "x\n").expect("can be written");
    let model = model.to_str().expect("the path is text");
    let parts = ["text_encoder/t5.gguf: is no GGUF file (2 bytes)", model];
    desk.render(&["--model", model]).refused(1, &parts);
    desk.fresco(&["worker", "--model", model, "--coordinator", "http://127.0.0.1:9"]).refused(1, &parts);
    assert_eq!(desk.fresco(&["model", "verify", model]).code, Some(1));
}

#[test]
fn what_is_not_used_and_changes_nothing_is_told_in_one_line() {
    let desk = Desk::new();
    let model = desk.demo_copy();
    let config = model.join("transformer/config.json");
    let text = fs::read_to_string(&config).expect("can be read").replacen('{', "{\"flavour\": 1,", 1);
    fs::write(config, text).expect("can be written");
    let model = model.to_str().expect("the path is text");
    let told = format!("warning: model {model}: transformer: 1 setting that is not used: `flavour`");
    for run in [desk.render(&["--model", model]), desk.fresco(&["model", "verify", model])] {
        assert_eq!((run.code, run.said()), (Some(0), vec![told.as_str()]), "{run:?}");
    }
}

#[test]
fn scales_beside_the_weights_are_refused() {
    let scale = |model: &Path| {
        let file = model.join(DIT_WEIGHTS);
        let mut entries = tensors(&fs::read(&file).expect("the file can be read"));
        let (name, bytes) = ("transformer_blocks.0.ff.net.2.weight_scale".into(), 8_f32.to_le_bytes().to_vec());
        entries.push(Entry { name, dtype: safetensors::Dtype::F32, shape: vec![], bytes });
        fs::write(file, safetensors_file(&entries)).expect("the file can be written");
    };
    check(scale, 1, &["transformer_blocks.0.ff.net.2.weight_scale", "stored scaled"]);
}
