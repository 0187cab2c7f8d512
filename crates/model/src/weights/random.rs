//! Weights of given shapes with random values, for benchmarks and tests: neither speed nor exactness under
//! splitting depends on what a network has learned.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::noise::randn;

/// Writes `model.safetensors` in `dir` with the tensors of `manifest` (names and shapes), the same for the same
/// `seed`: matrices scaled to keep the size of what they multiply, vectors of norms near one, biases small.
///
/// # Errors
/// If the file cannot be written.
pub fn write(dir: &Path, manifest: &[(String, Vec<usize>)], seed: u64) -> candle_core::Result<()> {
    // XL/2 has 600 million values: each tensor has a seed of its own, so threads share them.
    let one = |(idx, (name, shape)): (usize, &(String, Vec<usize>))| {
        let len: usize = shape.iter().product();
        let fan_in: usize = shape.iter().skip(1).product();
        let is_norm = shape.len() == 1 && name.contains("norm") && name.ends_with("weight");
        let (mean, scale) = match shape.len() {
            1 if is_norm => (1.0, 0.2),
            1 => (0.0, 0.1),
            _ => (0.0, 1.0 / (fan_in as f32).sqrt()),
        };
        // The generator needs sixteen values at least.
        let mut values = randn(seed.wrapping_mul(1_000_003).wrapping_add(idx as u64), len.max(16));
        values.truncate(len);
        values.iter_mut().for_each(|value| *value = mean + scale * *value);
        Ok((name.clone(), Tensor::from_vec(values, shape.as_slice(), &Device::Cpu)?))
    };
    let tensors = manifest.par_iter().enumerate().map(one).collect::<candle_core::Result<HashMap<_, _>>>()?;
    candle_core::safetensors::save(&tensors, dir.join("model.safetensors"))
}
