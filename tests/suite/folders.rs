//! Model folders in the shapes they are published in: older names, quantised text encoders, a transformer by
//! itself. Whatever the shape, the picture is that of the same weights in the usual one.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor, safetensors};
use model::{ModelFolder, Renderer};
use plan::{Clean, ImageSize, RenderRequest, TextHome};

fn golden(name: &str) -> PathBuf {
    tests::repo_root().join("tests/goldens").join(name)
}

/// A copy of model folder `from` that may be changed.
fn copy_of(from: &Path) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let to = to.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                copy(&entry.path(), &to)?;
            } else {
                std::fs::copy(entry.path(), to)?;
            }
        }
        Ok(())
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    copy(from, dir.path()).expect("the folder is copied");
    dir
}

fn request() -> RenderRequest {
    RenderRequest {
        prompt: "a castle in fog".into(),
        negative: "rain".into(),
        size: ImageSize { width_px: 64, height_px: 48 },
        steps: 2,
        guidance: 3.0,
        seed: 4,
        clean: Clean::Basic,
    }
}

fn render(dir: &Path, base: Option<&Path>) -> Vec<f32> {
    let folder = ModelFolder::open(dir, base).expect("the folder opens");
    let renderer = Renderer::load(Arc::new(folder)).expect("the weights load");
    let rendered = renderer.render(&request(), None, &mut |_| ControlFlow::Continue(())).expect("it renders");
    rendered.image.flatten_all().and_then(|image| image.to_vec1()).expect("f32 on the cpu")
}

fn tensors(path: &Path) -> HashMap<String, Tensor> {
    safetensors::load(path, &Device::Cpu).expect("weights are read")
}

#[test]
fn older_names_of_the_decoder_s_attention_are_understood() {
    let dir = copy_of(&golden("a/model"));
    let path = dir.path().join("vae/diffusion_pytorch_model.safetensors");
    let older = tensors(&path).into_iter().map(|(name, tensor)| {
        let renamed = ["to_q", "to_k", "to_v", "to_out.0"].iter().zip(["query", "key", "value", "proj_attn"]);
        let new = renamed.fold(name.clone(), |name, (new, old)| {
            name.replace(&format!("attentions.0.{new}."), &format!("attentions.0.{old}."))
        });
        // They were written as 1×1 convolutions, too.
        let is_matrix = new != name && tensor.rank() == 2;
        (
            new,
            if is_matrix {
                tensor.unsqueeze(2).and_then(|tensor| tensor.unsqueeze(3)).expect("two more axes")
            } else {
                tensor
            },
        )
    });
    safetensors::save(&older.collect::<HashMap<_, _>>(), &path).expect("weights are written");
    assert_eq!(render(dir.path(), None), render(&golden("a/model"), None));
}

#[test]
fn a_text_encoder_in_gguf_is_read() {
    let dir = copy_of(&golden("a/model"));
    let path = dir.path().join("text_encoder/model.safetensors");
    let quantized: Vec<(String, QTensor)> = tensors(&path)
        .into_iter()
        .map(|(name, tensor)| (name, QTensor::quantize(&tensor, GgmlDType::F32).expect("f32 is a type of GGUF")))
        .collect();
    let listed: Vec<(&str, &QTensor)> = quantized.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut file = std::fs::File::create(dir.path().join("text_encoder/t5.gguf")).expect("a file");
    gguf_file::write(&mut file, &[], &listed).expect("weights are written");
    std::fs::remove_file(path).expect("it was there");
    let (ours, plain) = (render(dir.path(), None), render(&golden("a/model"), None));
    let error = ours.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(error < 1e-3, "the picture is off by {error}");
}

#[test]
fn a_transformer_by_itself_takes_the_rest_from_a_base() {
    for nested in [true, false] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let to = if nested { dir.path().join("transformer") } else { dir.path().to_owned() };
        std::fs::create_dir_all(&to).expect("a folder");
        for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
            std::fs::copy(golden("a/model-kv/transformer").join(name), to.join(name)).expect("a copy");
        }
        let error = ModelFolder::open(dir.path(), None).err().expect("the rest is missing");
        assert!(error.faults.iter().any(|fault| fault.contains("--base")), "{error}");
        let base = golden("a/model");
        assert_eq!(render(dir.path(), Some(&base)), render(&golden("a/model-kv"), None));
    }
}

#[test]
fn every_fault_of_a_folder_is_named_at_once() {
    let dir = copy_of(&golden("a/model"));
    std::fs::remove_file(dir.path().join("vae/config.json")).expect("it was there");
    let path = dir.path().join("transformer/diffusion_pytorch_model.safetensors");
    let mut weights = tensors(&path);
    weights.remove("proj_out.bias").expect("it was there");
    let table = Tensor::zeros((3, 5), candle_core::DType::F32, &Device::Cpu).expect("a tensor");
    weights.insert("scale_shift_table".into(), table);
    safetensors::save(&weights, &path).expect("weights are written");
    let error = ModelFolder::open(dir.path(), None).err().expect("the folder is at fault").to_string();
    for part in
        ["vae/config.json", "`proj_out.bias` is missing", "`scale_shift_table` has shape [3, 5], [2, 96] is needed"]
    {
        assert!(error.contains(part), "{part:?} is not in:\n{error}");
    }
}

#[test]
fn configs_that_ask_for_the_impossible_are_refused_by_key() {
    let spoil = |part: &str, name: &str, from: &str, to: &str| {
        let dir = copy_of(&golden("a/model"));
        let path = dir.path().join(part).join(name);
        let text = std::fs::read_to_string(&path).expect("the config is there");
        assert!(text.contains(from), "{from:?} is not in {name}");
        std::fs::write(&path, text.replace(from, to)).expect("the config is written");
        ModelFolder::open(dir.path(), None).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let check = |part: &str, name: &str, from: &str, to: &str, expected: &str| {
        let faults = spoil(part, name, from, to);
        assert!(faults.contains(expected), "{expected:?} is not in:\n{faults}");
    };
    let (dit, vae, sampler) = ("transformer", "vae", "scheduler");
    check(dit, "config.json", "\"num_layers\": 4", "\"num_layers\": 4000000", "`num_layers` is 4000000");
    check(dit, "config.json", "\"num_attention_heads\": 4", "\"num_attention_heads\": 0", "`num_attention_heads` is 0");
    check(
        dit,
        "config.json",
        "\"interpolation_scale\": 1.0",
        "\"interpolation_scale\": -1",
        "`interpolation_scale` is -1",
    );
    check(dit, "config.json", "\"caption_channels\": 48", "\"caption_channels\": \"x\"", "`caption_channels` is \"x\"");
    check(vae, "config.json", "\"norm_num_groups\": 8", "\"norm_num_groups\": 7", "`block_out_channels`");
    check(vae, "config.json", "\"scaling_factor\": 0.13025", "\"scaling_factor\": 0", "`scaling_factor` is 0");
    check(
        sampler,
        "scheduler_config.json",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerDiscreteScheduler",
    );
    check(sampler, "scheduler_config.json", "\"epsilon\"", "\"v_prediction\"", "`prediction_type`");
    check(vae, "config.json", "{", "[", "vae/config.json is not a JSON object");
}

#[test]
fn a_text_encoder_that_stays_in_memory_encodes_as_one_read_anew() {
    let folder = Arc::new(ModelFolder::open(&golden("a/model"), None).expect("the folder opens"));
    let load = |home| Renderer::load(Arc::clone(&folder)).expect("the weights load").with_text_at(home);
    let encode = |renderer: &Renderer, prompt: String| {
        let embeds = renderer.embeds(&RenderRequest { prompt, ..request() }, &mut |_| ControlFlow::Continue(()));
        let values = |embeds: &Tensor| embeds.flatten_all().and_then(|all| all.to_vec1::<f32>()).expect("f32");
        embeds.expect("it encodes").iter().map(values).collect::<Vec<_>>()
    };
    let stays = load(TextHome::Memory);
    // More prompts than captions are kept, then the first again.
    for idx in (0..20).chain([0]) {
        let prompt = format!("{idx} castles in fog");
        assert!(encode(&stays, prompt.clone()) == encode(&load(TextHome::Files), prompt), "prompt {idx}");
    }
}
