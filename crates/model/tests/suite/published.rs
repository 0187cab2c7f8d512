//! Folders with the configs that the published models have: rendered as diffusers renders them, or refused by name.

use std::fs;
use std::path::Path;

use candle_core::{DType, Tensor, safetensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::desk::{DIT, TEXT, Tensors, change_tensors, copy_of, goldens, refused, render, tensors, values, zeros};

const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

fn configs(name: &str) -> Value {
    let text = fs::read_to_string(goldens().join("published/configs.json")).expect("it is there");
    let mut all = Value::Object(model::config::json::parse(&text).expect("is JSON"));
    all["models"][name].take()
}

/// The model `name` as it is published, small.
fn folder(name: &str) -> TempDir {
    let dir = copy_of("a/model");
    let configs = configs(name);
    for part in ["transformer", "vae", "text_encoder"] {
        fs::write(dir.path().join(part).join("config.json"), configs[part].to_string()).expect("can be written");
    }
    // As Python writes it.
    let scheduler = configs["scheduler"].to_string().replace("\"-Infinity\"", "-Infinity");
    fs::write(dir.path().join("scheduler/scheduler_config.json"), scheduler).expect("can be written");
    let index = json!({"_class_name": configs["pipeline"]}).to_string();
    fs::write(dir.path().join("model_index.json"), index).expect("can be written");
    dir
}

/// Puts the tensors of `file` into two shards with the names that `named` gives the shard and the index.
fn shard(dir: &Path, file: &str, named: fn(stem: &str, shard: &str) -> (String, String)) {
    let path = dir.join(file);
    let mut names: Vec<(String, Tensor)> = tensors(&path).into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let stem = file.rsplit('/').next().and_then(|name| name.strip_suffix(".safetensors")).expect("is safetensors");
    let mut map = serde_json::Map::new();
    for (idx, number) in ["00001-of-00002", "00002-of-00002"].iter().enumerate() {
        let (name, _) = named(stem, number);
        let tensors: Tensors = names.iter().skip(idx).step_by(2).cloned().collect();
        map.extend(tensors.keys().map(|tensor| (tensor.clone(), Value::from(name.clone()))));
        safetensors::save(&tensors, path.with_file_name(name)).expect("weights are written");
    }
    let (_, index) = named(stem, "");
    fs::write(path.with_file_name(index), json!({"metadata": {}, "weight_map": map}).to_string()).expect("is written");
    fs::remove_file(path).expect("it was there");
}

fn is_near(ours: &Tensor, golden: &str, limit: f32) {
    let all = tensors(&goldens().join("published/golden.safetensors"));
    let expected = values(&all[golden]);
    let largest = expected.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let off = values(ours).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
    println!("{golden}: {off:.1e} of {limit:.0e}");
    assert!(off <= limit && ours.dims() == all[golden].dims(), "{golden}: off by {off}");
}

#[test]
fn every_published_model_but_one_is_rendered_as_by_diffusers() {
    for name in ["sigma-256", "sigma-512", "sigma-1024", "sigma-2k", "alpha-512"] {
        let dir = folder(name);
        let rendered = render(dir.path());
        is_near(&rendered.latents, &format!("{name}.latents"), 1e-4);
        is_near(&rendered.image, &format!("{name}.image"), 1e-3);
        assert_eq!(crate::desk::open(dir.path()).notes(), Vec::<String>::new());
    }
}

#[test]
fn variants_in_shards_are_rendered_as_by_diffusers() {
    let today: fn(&str, &str) -> (String, String) =
        |stem, shard| (format!("{stem}.fp16-{shard}.safetensors"), format!("{stem}.safetensors.index.fp16.json"));
    let older: fn(&str, &str) -> (String, String) =
        |stem, shard| (format!("{stem}-{shard}.fp16.safetensors"), format!("{stem}.safetensors.fp16.index.json"));
    for (name, named) in [("sigma-1024", today), ("sigma-2k", older), ("alpha-512", today)] {
        let dir = folder(name);
        for file in [DIT, VAE, TEXT] {
            change_tensors(dir.path(), file, |all| {
                all.values_mut().for_each(|tensor| *tensor = tensor.to_dtype(DType::F16).expect("f16"));
            });
            shard(dir.path(), file, named);
        }
        is_near(&render(dir.path()).latents, &format!("{name}.fp16.latents"), 1e-4);
    }
}

#[test]
fn embedders_of_the_picture_s_size_are_refused_whatever_the_config_says() {
    let with_embedders = |conditions: Value| {
        let dir = folder("alpha-1024");
        change_tensors(dir.path(), DIT, |all| {
            for embedder in ["resolution_embedder", "aspect_ratio_embedder"] {
                for (layer, inputs) in [("linear_1", 256), ("linear_2", 32)] {
                    let name = format!("adaln_single.emb.{embedder}.{layer}");
                    all.insert(format!("{name}.weight"), zeros(&[32, inputs], DType::F32));
                    all.insert(format!("{name}.bias"), zeros(&[32], DType::F32));
                }
            }
        });
        crate::desk::set(dir.path(), "transformer/config.json", &json!({"use_additional_conditions": conditions}));
        dir
    };
    for conditions in [Value::Null, json!(false)] {
        refused(with_embedders(conditions).path(), &["transformer", "8 tensors", "PixArt-α"]);
    }
    assert!(crate::desk::faults(with_embedders(json!(true)).path()).iter().any(|fault| fault.contains("PixArt-α")));
}

#[test]
fn an_alpha_model_takes_fewer_tokens_of_a_prompt() {
    let n_tokens = |name: &str| {
        let dir = folder(name);
        let renderer = model::Renderer::load(std::sync::Arc::new(crate::desk::open(dir.path()))).expect("it loads");
        let request = plan::RenderRequest { prompt: "fog ".repeat(400), ..crate::desk::request() };
        let embeds = renderer.embeds(&request, &mut |_| std::ops::ControlFlow::Continue(())).expect("it encodes");
        embeds[0].dim(0).expect("rows")
    };
    assert_eq!((n_tokens("sigma-512"), n_tokens("alpha-512")), (300, 120));
}

#[test]
fn another_pipeline_is_refused() {
    let dir = folder("sigma-512");
    fs::write(dir.path().join("model_index.json"), "{\"_class_name\": \"SanaPipeline\"}").expect("can be written");
    refused(dir.path(), &["model_index.json", "SanaPipeline"]);
}
