//! The initial noise: what `torch.randn` draws in f32 from a CPU generator of the same seed, so that a seed
//! means the same picture as in other programs.
//!
//! PyTorch fills whole tensors of 16 or more values by MT19937 and the Box–Muller transform in runs of sixteen
//! (`aten/src/ATen/native/cpu/DistributionTemplates.h`). Every rank draws all of it and keeps its rows.

use candle_core::{Device, Result, Tensor};
use plan::LatentSize;

/// Noise for one latent, `[1, 4, rows, cols]` f32.
///
/// # Errors
/// If the tensor cannot be made.
pub fn initial(seed: u64, latent: LatentSize) -> Result<Tensor> {
    const CHANNELS: usize = 4;
    let values = randn(seed, CHANNELS * latent.rows * latent.cols);
    Tensor::from_vec(values, (1, CHANNELS, latent.rows, latent.cols), &Device::Cpu)
}

/// Values transformed together: eight radii, eight angles.
const RUN: usize = 16;

/// `len` normal values, 16 or more.
pub(crate) fn randn(seed: u64, len: usize) -> Vec<f32> {
    let mut generator = Mt19937::new(seed as u32);
    let mut values: Vec<f32> = (0..len).map(|_| generator.uniform()).collect();
    let whole = len - len % RUN;
    values[..whole].chunks_exact_mut(RUN).for_each(box_muller);
    if whole < len && len >= RUN {
        // What does not fill a run is drawn anew, with the values before it, as one run.
        let tail = &mut values[len - RUN..];
        tail.fill_with(|| generator.uniform());
        box_muller(tail);
    }
    values
}

/// Rounds to f32 where the reference does: at radius 5 the last bit of the angle is worth 1e-6.
fn box_muller(run: &mut [f32]) {
    let (first, second) = run.split_at_mut(RUN / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * libm::log(f64::from(1.0 - *a)) as f32).sqrt();
        let angle = f64::from(std::f32::consts::TAU * *b);
        (*a, *b) = (radius * libm::cos(angle) as f32, radius * libm::sin(angle) as f32);
    }
}

/// The Mersenne Twister of Matsumoto and Nishimura (1998), 32 bits.
struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = [seed; Self::N];
        for i in 1..Self::N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    fn refill(&mut self) {
        for i in 0..Self::N {
            let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
            let twist = if mixed & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ (mixed >> 1) ^ twist;
        }
        self.next = 0;
    }

    fn draw(&mut self) -> u32 {
        if self.next == Self::N {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// From 0 up to, not including, 1: the low 24 bits.
    fn uniform(&mut self) -> f32 {
        (self.draw() & 0x00ff_ffff) as f32 / 16_777_216.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.draw()).last();
        assert_eq!(last, Some(4_123_659_995)); // the 10,000th value, as C++'s standard states it
    }
}
