//! DPM-Solver++(2M), arXiv:2211.01095, Algorithm 2, as diffusers' `DPMSolverMultistepScheduler` runs it:
//! integer timesteps evenly spaced from the noisiest down, and a last step to no noise at all.
//!
//! Element-wise on latents, so any band of rows will do. Tables are f64.

use candle_core::{Result, Tensor};

/// The noise schedule of training.
#[derive(Debug, Clone, PartialEq)]
pub struct NoiseSchedule {
    /// Variance added at the first timestep.
    pub beta_start: f64,
    /// Variance added at the last timestep.
    pub beta_end: f64,
    /// Whether the square root of the variance is linear in the timestep, rather than the variance.
    pub scaled: bool,
    /// Timesteps of training.
    pub n_timesteps: usize,
}

/// A noise level: the latent is `alpha · clean + sigma · noise`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NoisePoint {
    /// Share of the clean latent.
    pub alpha: f64,
    /// Share of the noise.
    pub sigma: f64,
    /// `ln(alpha / sigma)`; infinite without noise.
    pub lambda: f64,
}

impl NoisePoint {
    /// From the ratio of noise to clean latent.
    fn of_ratio(ratio: f64) -> Self {
        let alpha = 1.0 / libm::sqrt(1.0 + ratio * ratio);
        let lambda = if ratio == 0.0 { f64::INFINITY } else { -libm::log(ratio) };
        Self { alpha, sigma: ratio * alpha, lambda }
    }
}

/// The steps of one render, and what the second order remembers between them.
pub struct Sampler {
    timesteps: Vec<usize>,
    ratios: Vec<f64>,
    /// Prediction of the clean latent one step ago.
    before: Option<Tensor>,
}

impl Sampler {
    /// `steps` steps down `schedule`; at least one, at most its timesteps.
    pub fn new(schedule: &NoiseSchedule, steps: usize) -> Self {
        let all = schedule.ratios();
        let last = (schedule.n_timesteps - 1) as f64;
        let spacing = last / steps as f64;
        let timesteps: Vec<usize> = (1..=steps)
            .rev()
            .map(|i| if i == steps { last } else { (i as f64 * spacing).round_ties_even() } as usize)
            .collect();
        let ratios = timesteps.iter().map(|&t| all[t]).chain([0.0]).collect();
        Self { timesteps, ratios, before: None }
    }

    /// Goes on where another sampler left off: `before` is the clean latent its last step predicted.
    pub fn resume(&mut self, before: Tensor) {
        self.before = Some(before);
    }

    /// The model's `t` at each step, noisiest first.
    pub fn timesteps(&self) -> &[usize] {
        &self.timesteps
    }

    /// Ratio of noise to clean latent before each step, and 0 after the last.
    pub fn ratios(&self) -> &[f64] {
        &self.ratios
    }

    /// Takes step `step`: from `latent` and the model's prediction of the noise in it to the next latent and
    /// the prediction of the clean one.
    ///
    /// Steps are taken in order, each once. All tensors have one shape, f32.
    ///
    /// # Errors
    /// If the tensors differ in shape or type.
    pub fn step(&mut self, step: usize, latent: &Tensor, noise: &Tensor) -> Result<(Tensor, Tensor)> {
        let [from, to] = [step, step + 1].map(|idx| NoisePoint::of_ratio(self.ratios[idx]));
        let clean = ((latent - (noise * from.sigma)?)? / from.alpha)?;
        let next = if to.sigma == 0.0 {
            // The limit of the first-order update, in which infinities would meet.
            clean.clone()
        } else {
            let drawn = match &self.before {
                None => clean.clone(),
                Some(before) => {
                    let earlier = NoisePoint::of_ratio(self.ratios[step - 1]);
                    let r = (from.lambda - earlier.lambda) / (to.lambda - from.lambda);
                    (&clean + ((&clean - before)? * (0.5 / r))?)?
                }
            };
            update(latent, &drawn, from, to)?
        };
        self.before = Some(clean.clone());
        Ok((next, clean))
    }
}

/// One update of `latent`, from noise level `from` to `to`, towards `drawn`, the extrapolated clean latent:
/// `x' = (σ'/σ)·x − α'·(e^{−h} − 1)·D` with `h = λ' − λ`.
fn update(latent: &Tensor, drawn: &Tensor, from: NoisePoint, to: NoisePoint) -> Result<Tensor> {
    let h = to.lambda - from.lambda;
    let carried = (latent * (to.sigma / from.sigma))?;
    let drawn = (drawn * (to.alpha * libm::expm1(-h)))?; // expm1 keeps its digits when h is small
    carried - drawn
}

impl NoiseSchedule {
    /// Whether every timestep is a noise level that can be computed with: some noise, some picture.
    pub(crate) fn is_usable(&self) -> bool {
        self.ratios().iter().all(|ratio| ratio.is_finite() && *ratio > 0.0)
    }

    /// `ln(alpha / sigma)` at the noisiest timestep.
    pub(crate) fn least_lambda(&self) -> f64 {
        self.ratios().into_iter().map(|ratio| NoisePoint::of_ratio(ratio).lambda).fold(f64::INFINITY, f64::min)
    }

    /// Ratio of noise to clean latent at each timestep, with the reference's f32 roundings on the way.
    fn ratios(&self) -> Vec<f64> {
        let ends = [self.beta_start, self.beta_end].map(|beta| if self.scaled { libm::sqrt(beta) } else { beta });
        let [start, end] = ends.map(|end| end as f32);
        let last = self.n_timesteps - 1;
        let spacing = (end - start) / last as f32;
        let mut kept = 1f64;
        (0..self.n_timesteps)
            .map(|t| {
                // As torch.linspace: from both ends towards the middle.
                let even = if t < self.n_timesteps / 2 {
                    start + spacing * t as f32
                } else {
                    end - spacing * (last - t) as f32
                };
                let beta = if self.scaled { even * even } else { even };
                kept *= f64::from(1.0 - beta);
                let kept = f64::from(kept as f32);
                libm::sqrt((1.0 - kept) / kept)
            })
            .collect()
    }
}
