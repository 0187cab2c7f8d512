//! What a device does at most: how fast it copies its memory, and how fast it multiplies matrices.

use anyhow::Result;
use model::Place;

use super::{Measurement, copy, linear, noise_on};

/// A device's two limits, as measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roofline {
    /// Of products of large matrices.
    pub(crate) flop_per_s: f64,
    /// Read and written in a copy.
    pub(crate) bytes_per_s: f64,
}

impl Roofline {
    /// Measures `place`.
    pub(crate) fn of(place: &Place) -> Result<Self> {
        const RUNS: usize = 5;
        let is_cpu = place.device().is_cpu();
        let copy_bytes: usize = if is_cpu { 256 << 20 } else { 1 << 30 };
        let copied = copy(place, copy_bytes, RUNS)?;
        let rate = |measured: Measurement| measured.flop / measured.median();
        let (rows, inputs) = if is_cpu { (1024, 1152) } else { (1 << 14, 4096) };
        let ours = rate(linear(place, rows, inputs, inputs, RUNS)?);
        // A GPU's own library is the measure of what it can do; a CPU's would be slower than ours.
        let theirs = if is_cpu { 0.0 } else { of_library(place, RUNS).map_or(0.0, rate) };
        // Every byte is read once and written once.
        Ok(Self { flop_per_s: ours.max(theirs), bytes_per_s: 2.0 * copy_bytes as f64 / copied.median() })
    }
}

fn of_library(place: &Place, runs: usize) -> Result<Measurement> {
    const SIDE: usize = 8192;
    let matrix = noise_on(place, &[SIDE, SIDE])?;
    let other = matrix.t()?;
    Measurement::of(place, runs, 2.0 * (SIDE as f64).powi(3), || Ok(matrix.matmul(&other).map(drop)?))
}
