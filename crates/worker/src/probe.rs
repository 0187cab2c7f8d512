//! How fast this machine is: what placing knows of a worker before its first step.

use std::time::{Duration, Instant};

use candle_core::{Device, Result, Tensor};
use kernels::{Epilogue, Linear};

/// Floating-point operations a second in the product most of a step is made of, on the current pool.
pub(crate) fn flop_per_s() -> Result<f64> {
    const ROWS: usize = 256;
    const WIDTH: usize = 512;
    const LONG_ENOUGH: Duration = Duration::from_millis(60);
    let values = |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect::<Vec<_>>();
    let linear = Linear::new(&Tensor::from_vec(values(WIDTH * WIDTH), (WIDTH, WIDTH), &Device::Cpu)?, None)?;
    let x = Tensor::from_vec(values(ROWS * WIDTH), (ROWS, WIDTH), &Device::Cpu)?;
    linear.forward(&x, Epilogue::None)?;
    let (start, mut n_runs) = (Instant::now(), 0_u32);
    while n_runs < 3 || start.elapsed() < LONG_ENOUGH {
        linear.forward(&x, Epilogue::None)?;
        n_runs += 1;
    }
    let flop = 2.0 * (ROWS * WIDTH * WIDTH) as f64 * f64::from(n_runs);
    Ok(flop / start.elapsed().as_secs_f64())
}
