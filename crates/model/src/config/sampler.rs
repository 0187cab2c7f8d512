//! `scheduler/scheduler_config.json`.

use plan::request::MAX_STEPS;
use serde_json::Value;

use super::Config;
use crate::sampler::NoiseSchedule;

impl Config<'_> {
    /// The noise schedule; any sampler but the one computed here is refused.
    pub fn schedule(&mut self) -> NoiseSchedule {
        self.only("_class_name", &["DPMSolverMultistepScheduler".into()]);
        self.only("algorithm_type", &["dpmsolver++".into()]);
        self.only("solver_order", &[2.into()]);
        self.only("solver_type", &["midpoint".into()]);
        self.only("prediction_type", &["epsilon".into()]);
        self.only("timestep_spacing", &["linspace".into()]);
        self.only("final_sigmas_type", &["zero".into()]);
        self.only("beta_schedule", &["linear".into(), "scaled_linear".into()]);
        for key in [
            "thresholding",
            "use_karras_sigmas",
            "use_exponential_sigmas",
            "use_beta_sigmas",
            "use_lu_lambdas",
            "use_flow_sigmas",
            "rescale_betas_zero_snr",
        ] {
            self.only(key, &[false.into()]);
        }
        // The model's learned variance is cut off before the sampler sees it, whatever this says; but it must not
        // ask for the cut itself.
        if let Some("learned" | "learned_range") = self.present("variance_type").and_then(Value::as_str) {
            self.fault("variance_type", "a sampler that uses the learned variance is not supported");
        }
        if self.present("trained_betas").is_some() {
            self.fault("trained_betas", "own betas are not supported");
        }
        let n_faults = self.n_faults();
        let schedule = NoiseSchedule {
            beta_start: self.beta("beta_start", 1e-4),
            beta_end: self.beta("beta_end", 0.02),
            scaled: self.present("beta_schedule").and_then(Value::as_str) == Some("scaled_linear"),
            // With fewer than a request may ask steps for, two steps would be at one timestep.
            n_timesteps: self.count_in(u64::from(MAX_STEPS) + 1..=1 << 20, "num_train_timesteps", Some(1000)),
        };
        if self.n_faults() == n_faults && !schedule.is_usable() {
            self.fault("beta_end", "with it some timestep has no noise, or nothing else");
        } else if self.present("lambda_min_clipped").is_some_and(|least| *least != "-Infinity") {
            // Timesteps noisier than that would be left out.
            let least = self.number("lambda_min_clipped", f64::NEG_INFINITY);
            if schedule.least_lambda() < least {
                self.fault("lambda_min_clipped", "leaving out the noisiest timesteps is not supported");
            }
        }
        schedule
    }

    fn beta(&mut self, key: &str, default: f64) -> f64 {
        let beta = self.number(key, default);
        if beta <= 0.0 || beta >= 1.0 {
            self.fault(key, "a number between 0 and 1 is needed");
        }
        beta
    }
}

/// Keys of `scheduler/scheduler_config.json` that are read or mean nothing for the sampler computed here: which order
/// its last steps have follows from there being no noise after them, and the rest belongs to settings that are refused.
pub const SAMPLER_KEYS: &[&str] = &[
    "algorithm_type",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "lambda_min_clipped",
    "lower_order_final",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "sample_max_value",
    "set_alpha_to_one",
    "skip_prk_steps",
    "solver_order",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_spacing",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];
