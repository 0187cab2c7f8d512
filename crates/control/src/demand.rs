//! How much work is open, in seconds of one worker: what a farm's size is chosen by.
//!
//! Counts seconds and not images, since one of 4096² is some sixteen of 1024².

use std::collections::{BTreeMap, BTreeSet};

use plan::ImageSize;

use crate::control::Control;
use crate::job::{Image, Job, Phase};

/// What an image is taken to cost before the first step of its model was measured.
const ASSUMED_IMAGE_S: f64 = 60.0;
/// What follows the last step, in steps: the decode and the picture's way to its place.
const STEPS_AFTER_LAST: f64 = 1.0;

/// Open work.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Demand {
    /// Seconds one worker would take over all of it.
    pub outstanding_s: f64,
    /// Images that wait.
    pub n_queued: usize,
    /// Images being made.
    pub n_running: usize,
}

impl Demand {
    fn and(self, other: Self) -> Self {
        Self {
            outstanding_s: self.outstanding_s + other.outstanding_s,
            n_queued: self.n_queued + other.n_queued,
            n_running: self.n_running + other.n_running,
        }
    }

    /// What a farm's size is chosen by when a worker is to have `target_s`: the open work, and one worker's share at
    /// least for every image being made, so that nobody at work counts as idle.
    pub fn value_s(&self, target_s: f64) -> f64 {
        self.outstanding_s.max(self.n_running as f64 * target_s)
    }
}

/// What steps cost, as measured, by model.
#[derive(Debug, Default)]
pub(crate) struct Costs(BTreeMap<String, f64>);

impl Costs {
    /// A step at `size` took all ranks together this long.
    pub(crate) fn measured(&mut self, model: &str, size: ImageSize, compute_ms: f64) {
        const WEIGHT: f64 = 0.1;
        let ms_per_megapixel = compute_ms / megapixels(size);
        if ms_per_megapixel.is_finite() && ms_per_megapixel > 0.0 {
            let smoothed = self.0.entry(model.to_owned()).or_insert(ms_per_megapixel);
            *smoothed += WEIGHT * (ms_per_megapixel - *smoothed);
        }
    }

    /// Seconds one worker would take over the rest of an image.
    fn outstanding_s(&self, job: &Job, image: &Image) -> f64 {
        let n_steps = f64::from(job.spec.request.steps) + STEPS_AFTER_LAST;
        let n_left = n_steps - image.n_steps_done as f64;
        match self.0.get(&job.spec.model) {
            Some(ms_per_megapixel) => n_left * ms_per_megapixel * megapixels(job.spec.request.size) / 1e3,
            None => ASSUMED_IMAGE_S * n_left / n_steps,
        }
    }
}

fn megapixels(size: ImageSize) -> f64 {
    f64::from(size.width_px) * f64::from(size.height_px) / 1e6
}

impl Control {
    /// Open work on the models that `is_meant` picks by name.
    pub fn demand(&self, is_meant: impl Fn(&str) -> bool) -> Demand {
        let meant = self.jobs.values().filter(|job| job.is_open() && is_meant(&job.spec.model));
        meant.fold(Demand::default(), |sum, job| sum.and(self.demand_of(job)))
    }

    /// Open work by model, in one pass.
    pub fn demands(&self) -> BTreeMap<&str, Demand> {
        let mut demands: BTreeMap<&str, Demand> = BTreeMap::new();
        for job in self.jobs.values().filter(|job| job.is_open()) {
            let sum = demands.entry(&job.spec.model).or_default();
            *sum = sum.and(self.demand_of(job));
        }
        demands
    }

    /// Names of models that a member offers.
    pub fn models_offered(&self) -> BTreeSet<&str> {
        let models = self.members.values().flat_map(|member| &member.hello.models);
        models.map(|facts| facts.id.name.as_str()).collect()
    }

    fn demand_of(&self, job: &Job) -> Demand {
        let open = job.images.iter().filter(|image| image.is_open());
        let outstanding_s = open.map(|image| self.costs.outstanding_s(job, image)).sum();
        Demand { outstanding_s, n_queued: job.n_in(Phase::Queued), n_running: job.n_in(Phase::Running) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(side_px: u32) -> ImageSize {
        ImageSize::new(side_px, side_px).expect("a multiple of 16")
    }

    #[test]
    fn a_picture_four_times_as_large_costs_four_times_as_much() {
        let mut costs = Costs::default();
        costs.measured("demo", size(512), 1000.0);
        let per_megapixel = costs.0["demo"];
        assert_eq!(per_megapixel * megapixels(size(1024)), 4000.0);
    }

    #[test]
    fn a_measurement_that_makes_no_sense_changes_nothing() {
        let mut costs = Costs::default();
        for compute_ms in [f64::NAN, f64::INFINITY, 0.0, -3.0] {
            costs.measured("demo", size(512), compute_ms);
        }
        assert!(costs.0.is_empty());
    }

    #[test]
    fn an_image_being_made_counts_as_one_worker_at_least() {
        let nearly_done = Demand { outstanding_s: 2.0, n_queued: 0, n_running: 3 };
        assert_eq!(nearly_done.value_s(60.0), 180.0);
        let waiting = Demand { outstanding_s: 900.0, n_queued: 40, n_running: 3 };
        assert_eq!(waiting.value_s(60.0), 900.0);
        assert_eq!(Demand::default().value_s(60.0), 0.0);
    }
}
