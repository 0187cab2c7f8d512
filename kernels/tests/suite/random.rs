//! Seeded values and tensors: a failing test names its seed, and the seed brings the failure back.

use candle_core::{Device, Tensor};

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Between −1 and 1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub(crate) fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.value()).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("the shape fits")
    }

    pub(crate) fn vector(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    /// `n` cut into parts, each a multiple of `unit` but for the last.
    pub(crate) fn cuts(&mut self, n: usize, unit: usize) -> Vec<(usize, usize)> {
        let mut cuts = Vec::new();
        let mut first = 0;
        while first < n {
            let most = (n - first).div_ceil(unit);
            // Single rows are where libraries change their way, so they are drawn often.
            let len = if self.below(3) == 0 { 1 } else { 1 + self.below(most) };
            let len = (len * unit).min(n - first);
            cuts.push((first, len));
            first += len;
        }
        cuts
    }
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).expect("f32 on the cpu");
    values.into_iter().map(f32::to_bits).collect()
}
