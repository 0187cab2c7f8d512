//! Single parts against tables the reference implementations printed: token ids of awkward prompts, noise of
//! many seeds, the sampler's grids and runs. `tools/goldens/make_tables.py` made them.

use candle_core::{Device, Tensor};
use model::sampler::{NoiseSchedule, Sampler};
use plan::Clean;
use serde_json::Value;

fn table(name: &str) -> Value {
    let path = tests::repo_root().join("tests/goldens").join(name);
    let text = std::fs::read_to_string(path).expect("the table is in the repository");
    serde_json::from_str(&text).expect("the table is JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

#[test]
fn awkward_prompts_become_sentencepiece_s_tokens() {
    let dir = tests::repo_root().join("tests/goldens/a/model/tokenizer");
    let tokenizer = model::tokenizer::Tokenizer::open(&dir).expect("the tokenizer opens");
    let mut wrong = Vec::new();
    for row in table("tokens.json").as_array().expect("a list") {
        let prompt = row["prompt"].as_str().expect("a prompt");
        let tokens = tokenizer.encode(&Clean::Basic.apply(prompt)).expect("any text can be encoded");
        let ours: Vec<f64> = tokens.ids.iter().map(|&id| f64::from(id)).collect();
        if ours != numbers(&row["ids"]) {
            wrong.push(format!("{prompt:?}: {ours:?}, not {}", row["ids"]));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn seeds_draw_torch_s_noise() {
    for row in table("noise.json").as_array().expect("a list") {
        let seed = row["seed"].as_u64().expect("a seed");
        let shape = numbers(&row["shape"]);
        let latent = plan::LatentSize { rows: shape[2] as usize, cols: shape[3] as usize };
        let noise = model::noise::initial(seed, latent).and_then(|noise| noise.flatten_all()?.to_vec1::<f32>());
        let noise = noise.expect("noise is drawn");
        let (first, last) = (numbers(&row["first"]), numbers(&row["last"]));
        let pairs = noise.iter().zip(&first).chain(noise.iter().rev().zip(last.iter().rev()));
        let error = pairs.map(|(ours, theirs)| (f64::from(*ours) - theirs).abs()).fold(0.0, f64::max);
        println!("noise of seed {seed}, shape {shape:?}: {error:.2e} of 1e-6");
        assert!(error <= 1e-6, "seed {seed}, shape {shape:?}: error {error:e}");
        let sum: f64 = noise.iter().map(|&value| f64::from(value)).sum();
        let theirs = row["sum"].as_f64().expect("a sum");
        assert!((sum - theirs).abs() <= 1e-6 * noise.len() as f64, "seed {seed}: sum {sum}, not {theirs}");
    }
}

fn published() -> NoiseSchedule {
    NoiseSchedule { beta_start: 1e-4, beta_end: 0.02, scaled: false, n_timesteps: 1000 }
}

/// A grid's values as the table has them: all, or both ends and the sum.
fn check_grid(what: &str, ours: &[f64], table: &Value, tolerance: f64) {
    let near = |ours: f64, theirs: f64| (ours - theirs).abs() <= tolerance * theirs.abs().max(1e-3);
    let all_near = |ours: &[f64], theirs: &[f64]| {
        ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(&ours, &theirs)| near(ours, theirs))
    };
    if table.get("all").is_some() {
        assert!(all_near(ours, &numbers(&table["all"])), "{what}: {ours:?}, not {table}");
        return;
    }
    let (first, last) = (numbers(&table["first"]), numbers(&table["last"]));
    assert!(!first.is_empty() && all_near(&ours[..first.len()], &first), "{what}: begins otherwise than {table}");
    assert!(all_near(&ours[ours.len() - last.len()..], &last), "{what}: ends otherwise than {table}");
    let sum = table["sum"].as_f64().expect("a sum");
    assert!(near(ours.iter().sum(), sum), "{what}: another sum than {table}");
}

#[test]
fn the_sampler_s_grids_are_diffusers() {
    for row in table("sampler.json")["grids"].as_array().expect("a list") {
        let steps = row["steps"].as_u64().expect("steps") as usize;
        let sampler = Sampler::new(&published(), steps);
        let timesteps: Vec<f64> = sampler.timesteps().iter().map(|&t| t as f64).collect();
        check_grid(&format!("timesteps of {steps}"), &timesteps, &row["timesteps"], 0.0);
        check_grid(&format!("sigmas of {steps}"), sampler.ratios(), &row["sigmas"], 2e-6);
    }
}

#[test]
fn the_sampler_takes_diffusers_steps() {
    let table = table("sampler.json");
    let start: Vec<f32> = numbers(&table["start"]).into_iter().map(|value| value as f32).collect();
    for run in table["runs"].as_array().expect("a list") {
        let steps = run["steps"].as_u64().expect("steps") as usize;
        let mut sampler = Sampler::new(&published(), steps);
        let mut x = Tensor::from_slice(&start, start.len(), &Device::Cpu).expect("a tensor");
        for (step, theirs) in run["latents"].as_array().expect("latents").iter().enumerate() {
            let t = sampler.timesteps()[step] as f64;
            let noise = ((&x * 0.3).and_then(|x| x.tanh()).and_then(|x| x + 0.01 * t / 1000.0)).expect("noise");
            (x, _) = sampler.step(step, &x, &noise).expect("a step");
            let (ours, theirs) = (x.to_vec1::<f32>().expect("f32"), numbers(theirs));
            let scale = theirs.iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            let error = ours.iter().zip(&theirs).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            assert!(error <= 1e-5 * scale, "step {step} of {steps}: error {error:e} on values up to {scale}");
        }
    }
}
