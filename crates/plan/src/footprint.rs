//! How much memory a render needs, known before the work starts.
//!
//! Counts the tensors that are alive together at the widest points; scratch of the streaming kernels
//! is a fixed allowance. 128-bit throughout, because a user may ask for any size at all.

use crate::geometry::ImageSize;
use crate::spec::{DitSpec, ModelSpec, VaeSpec};

/// Bytes a render needs, by what holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights of transformer and decoder, as f32.
    pub weights_bytes: u128,
    /// The widest moment of the transformer.
    pub dit_bytes: u128,
    /// The widest moment of the decode.
    pub vae_bytes: u128,
}

/// Scratch of kernels, code, tokenizer.
const ALLOWANCE_BYTES: u128 = 64 << 20;
const F32_BYTES: u128 = 4;

impl Footprint {
    /// What rendering a picture of `size` takes, in f32.
    pub fn of(spec: &ModelSpec, size: ImageSize, weights_bytes: u64) -> Self {
        Self {
            weights_bytes: u128::from(weights_bytes),
            dit_bytes: dit_bytes(&spec.dit, spec.vae.factor(), size),
            vae_bytes: vae_bytes(&spec.vae, size),
        }
    }

    /// Bytes at the widest moment of all: the transformer and the decoder run one after the other.
    pub fn peak_bytes(&self) -> u128 {
        self.weights_bytes + self.dit_bytes.max(self.vae_bytes) + ALLOWANCE_BYTES
    }
}

/// A block holds its input, the modulated input, q, k, v, the attention's result and its output at once;
/// heads of k and v are laid out once more for attention.
fn dit_bytes(spec: &DitSpec, factor: usize, size: ImageSize) -> u128 {
    let grid = size.latent(factor).tokens();
    let tokens = grid.rows as u128 * grid.cols as u128;
    9 * tokens * spec.width() as u128 * F32_BYTES
}

/// Layers of the decode give back what they have read while they compute, but for a slab of it.
fn vae_bytes(spec: &VaeSpec, size: ImageSize) -> u128 {
    let pixels = u128::from(size.width_px) * u128::from(size.height_px);
    let at_level = |level: usize| pixels >> (2 * level);
    let mut peak = 0;
    let top = spec.widths.len() - 1;
    let mut width = spec.widths[top] as u128;
    // The middle attention holds its input, q, k, v, the laid-out heads and the result.
    peak = peak.max(7 * at_level(top) * width);
    for level in (0..=top).rev() {
        let out = spec.widths[level] as u128;
        peak = peak.max(at_level(level) * (width + out));
        if level > 0 {
            peak = peak.max(at_level(level) * out + at_level(level - 1) * out);
        }
        width = out;
    }
    // The finished picture: planes of f32 beside the rows they come from.
    (peak + 6 * pixels) * F32_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sdxl() -> VaeSpec {
        VaeSpec::sdxl_family(&[128, 256, 512, 512], 2, 32)
    }

    #[test]
    fn a_4k_decode_peaks_where_the_last_level_starts() {
        // up3.resnet0: 256 channels in, 128 out, at 4096² (16 + 8 GiB), and the picture.
        let bytes = vae_bytes(&sdxl(), ImageSize { width_px: 4096, height_px: 4096 });
        assert_eq!(bytes, (24 << 30) + 6 * 4096 * 4096 * 4);
    }

    #[test]
    fn the_largest_size_that_can_be_asked_does_not_overflow() {
        let size = ImageSize { width_px: u32::MAX - 15, height_px: u32::MAX - 15 };
        assert!(vae_bytes(&sdxl(), size) > 1 << 70);
    }
}
