//! How fast this machine is: what placing knows of a worker before its first step.

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};
use kernels::{Epilogue, Linear};
use model::Place;

/// Floating-point operations a second in the product most of a step is made of, on `place` and the current pool.
pub(crate) fn flop_per_s(place: &Place) -> Result<f64> {
    const WIDTH: usize = 512;
    const LONG_ENOUGH: Duration = Duration::from_millis(60);
    // A GPU is given more until it is full, or slow enough to be measured.
    const SLOW_ENOUGH: Duration = Duration::from_millis(5);
    let most_rows = if place.device().is_cpu() { 256 } else { 1 << 16 };
    let values = |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect::<Vec<_>>();
    let tensor = |rows: usize| place.take(&Tensor::from_vec(values(rows * WIDTH), (rows, WIDTH), &Device::Cpu)?);
    let linear = Linear::new(&tensor(WIDTH)?, None)?;
    let run = |x: &Tensor| {
        linear.forward(x, Epilogue::None)?;
        place.wait()
    };
    let mut rows = 256;
    let mut x = tensor(rows)?;
    run(&x)?;
    while rows < most_rows {
        let start = Instant::now();
        run(&x)?;
        if start.elapsed() >= SLOW_ENOUGH {
            break;
        }
        rows *= 4;
        x = tensor(rows)?;
        run(&x)?;
    }
    let (start, mut n_runs) = (Instant::now(), 0_u32);
    while n_runs < 3 || start.elapsed() < LONG_ENOUGH {
        run(&x)?;
        n_runs += 1;
    }
    let flop = 2.0 * (rows * WIDTH * WIDTH) as f64 * f64::from(n_runs);
    Ok(flop / start.elapsed().as_secs_f64())
}
