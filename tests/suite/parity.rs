//! Renders of small models with random weights, against what the reference implementations computed for them.
//!
//! Every folder of `tests/goldens` is a case; `FRESCO_GOLDENS` may name a folder of further ones, made by
//! `tools/goldens/make_goldens.py`. Limits are those of the project's promise, never widened to pass.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use model::{ModelFolder, Progress, Renderer};
use plan::{Clean, ImageSize, RenderRequest};

/// A folder of reference values.
struct Case {
    dir: PathBuf,
    request: RenderRequest,
    golden: std::collections::HashMap<String, Tensor>,
}

impl Case {
    fn open(dir: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(dir.join("cases.json"))?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        let number = |key: &str| json[key].as_u64().with_context(|| format!("`{key}` in cases.json"));
        let text = |key: &str| json[key].as_str().map(str::to_owned).with_context(|| format!("`{key}` in cases.json"));
        let request = RenderRequest {
            prompt: text("prompt")?,
            negative: text("negative")?,
            size: ImageSize::new(number("width")? as u32, number("height")? as u32)?,
            steps: number("steps")? as u32,
            guidance: json["guidance"].as_f64().context("`guidance` in cases.json")?,
            seed: number("noise_seed")?,
            clean: Clean::Basic,
        };
        let golden = candle_core::safetensors::load(dir.join("golden.safetensors"), &Device::Cpu)?;
        Ok(Self { dir: dir.to_owned(), request, golden })
    }

    fn golden(&self, name: &str) -> Result<&Tensor> {
        self.golden.get(name).with_context(|| format!("no reference value {name}"))
    }
}

fn cases() -> Result<Vec<Case>> {
    let mut roots = vec![tests::repo_root().join("tests/goldens")];
    roots.extend(std::env::var_os("FRESCO_GOLDENS").map(PathBuf::from));
    let mut dirs = Vec::new();
    for root in roots {
        for entry in std::fs::read_dir(&root).with_context(|| format!("read {}", root.display()))? {
            let dir = entry?.path();
            if dir.join("cases.json").is_file() {
                dirs.push(dir);
            }
        }
    }
    dirs.sort();
    ensure!(dirs.len() >= 4, "reference values are missing: {dirs:?}");
    dirs.iter().map(|dir| Case::open(dir).with_context(|| format!("open {}", dir.display()))).collect()
}

/// Largest difference over the largest reference value.
fn relative_error(ours: &Tensor, golden: &Tensor) -> Result<f64> {
    ensure!(ours.dims() == golden.dims(), "shape {:?}, the reference has {:?}", ours.dims(), golden.dims());
    let flat = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.flatten_all();
    let error = (flat(ours)? - flat(golden)?)?.abs()?.max(0)?.to_scalar::<f64>()?;
    Ok(error / flat(golden)?.abs()?.max(0)?.to_scalar::<f64>()?)
}

/// Fails if `ours` is further from the reference value than `limit`; prints how far it is.
fn near(case: &Case, name: &str, ours: &Tensor, golden: &Tensor, limit: f64) -> Result<()> {
    let error = relative_error(ours, golden).with_context(|| name.to_owned())?;
    println!("{} {name}: {error:.2e} of {limit:.0e}", case.dir.display());
    ensure!(error <= limit, "{name}: error {error:.2e} is over {limit:.0e}");
    Ok(())
}

fn check_model(case: &Case, folder: &str, tag: &str) -> Result<()> {
    let place = crate::gpu::place();
    // Sums on a GPU run in other orders than the reference's.
    let forward_limit = if place.device().is_cpu() { 2e-5 } else { 1e-4 };
    let folder = Arc::new(ModelFolder::open(&case.dir.join(folder), None)?.on(&place));
    let renderer = Renderer::load(folder.clone())?;
    let noise = model::noise::initial(case.request.seed, case.request.size.latent(8))?;
    let start = case.golden("initial_latents")?;
    let error = (&noise - start)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    ensure!(error <= 1e-6, "initial noise: error {error:e} is over 1e-6");

    for t in [949, 0] {
        let name = format!("{tag}.forward_t{t}");
        near(case, &name, &renderer.forward_once(&case.request, start, t)?, case.golden(&name)?, forward_limit)?;
    }
    let mut steps = Vec::new();
    let rendered = renderer.render(&case.request, Some(start), &mut |progress| {
        if let Progress::Step { latents, .. } = progress {
            steps.push(latents.clone());
        }
        ControlFlow::Continue(())
    })?;
    ensure!(steps.len() == case.request.steps as usize, "{} steps were reported", steps.len());
    for (step, latents) in steps.iter().enumerate() {
        let name = format!("{tag}.latents_step{step}");
        near(case, &name, latents, case.golden(&name)?, 1e-4)?;
    }
    near(case, "final latents", &rendered.latents, case.golden(&format!("{tag}.final_latents"))?, 1e-4)?;
    let image = case.golden(&format!("{tag}.image"))?;
    let error = (&rendered.image - image)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?;
    println!("{} {tag}.image: {error:.2e} of 1e-3", case.dir.display());
    ensure!(error <= 1e-3, "image: error {error:e} is over 1e-3");
    ensure!(levels_apart(&rendered.image, image)? <= 1, "image: more than one level of 255 apart");

    // The reference encodes padding too; the rows of real tokens are the ones that count.
    let n_tokens = rendered.embeds.dim(1)?;
    let embeds = case.golden("text_embeds")?.narrow(1, 0, n_tokens)?;
    near(case, "text embeds", &rendered.embeds, &embeds, 2e-5)?;
    Ok(())
}

/// Largest difference once both are rounded to eight bits, half to even as in the reference.
fn levels_apart(a: &Tensor, b: &Tensor) -> Result<i32> {
    let levels = |tensor: &Tensor| -> Result<Vec<i32>> {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Ok(values.into_iter().map(|value| (value * 255.0).round_ties_even() as i32).collect())
    };
    Ok(levels(a)?.iter().zip(levels(b)?).map(|(a, b)| (a - b).abs()).max().unwrap_or(0))
}

fn check_all(check: impl Fn(&Case) -> Result<()>) {
    let mut failures = Vec::new();
    for case in cases().expect("reference values can be read") {
        if let Err(error) = check(&case) {
            failures.push(format!("{}: {error:#}", case.dir.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn plain_models_compute_what_the_reference_computes() {
    check_all(|case| check_model(case, "model", "plain"));
}

#[test]
fn models_with_compressed_keys_and_values_compute_what_the_reference_computes() {
    check_all(|case| check_model(case, "model-kv", "kv"));
}

#[test]
fn prompts_become_the_reference_s_tokens() {
    check_all(|case| {
        let tokenizer =
            model::tokenizer::Tokenizer::open(&case.dir.join("model/tokenizer")).map_err(anyhow::Error::msg)?;
        let prompts = [("token", &case.request.prompt), ("negative", &case.request.negative)];
        for (name, prompt) in prompts {
            let tokens = tokenizer.encode(&case.request.clean.apply(prompt)).map_err(anyhow::Error::msg)?;
            let ids = case.golden(&format!("{name}_ids"))?.flatten_all()?.to_vec1::<i64>()?;
            let mask = case.golden(&format!("{name}_mask"))?.flatten_all()?.to_vec1::<i64>()?;
            let mut ours: Vec<i64> = tokens.ids.iter().map(|&id| i64::from(id)).collect();
            ensure!(mask.iter().sum::<i64>() as usize == ours.len(), "{name} mask of {prompt:?}");
            ours.resize(ids.len(), 0);
            ensure!(ours == ids, "{name} ids of {prompt:?}");
        }
        Ok(())
    });
}

#[test]
fn an_original_checkpoint_converted_renders_the_same_values() {
    let mut n_converted = 0;
    for case in cases().expect("reference values can be read") {
        let checkpoint = case.dir.join("original.pth");
        if !checkpoint.is_file() {
            continue;
        }
        let out = tempfile::tempdir().expect("a temporary folder");
        let options = model::convert::ConvertOptions { base: Some(&case.dir.join("model")), ..Default::default() };
        let converted = model::convert::convert(&checkpoint, out.path(), &options).expect("the checkpoint converts");
        assert!(converted.kv_compress.is_some(), "compression is found by its tensors");
        let render = |dir: &Path, base: Option<&Path>| {
            let folder = Arc::new(ModelFolder::open(dir, base).expect("the folder opens"));
            let renderer = Renderer::load(folder).expect("the weights load");
            let rendered = renderer.render(&case.request, None, &mut |_| ControlFlow::Continue(()));
            rendered.expect("it renders").image.flatten_all().and_then(|image| image.to_vec1::<f32>()).expect("f32")
        };
        let base = case.dir.join("model");
        let hash = |dir: &Path, base: Option<&Path>| {
            let folder = ModelFolder::open(dir, base).expect("the folder opens");
            folder.identity().expect("the weights are read").sha256
        };
        assert_eq!(hash(out.path(), Some(&base)), hash(&case.dir.join("model-kv"), None));
        assert_eq!(render(out.path(), Some(&base)), render(&case.dir.join("model-kv"), None));
        n_converted += 1;
    }
    assert!(n_converted > 0, "no original checkpoint among the reference values");
}
