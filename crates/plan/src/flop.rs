//! How much arithmetic a step and a decode are: sums of products, two operations a product; all else is left out.

use crate::geometry::LatentSize;
use crate::id::LayerIdx;
use crate::spec::{DitSpec, VaeSpec};

/// Tokens of the caption a block attends to.
pub const CAPTION_TOKENS: usize = 300;
/// Taps of a convolution, and of one of an enlarged picture as it is computed: the nine fall on four pixels.
const TAPS: f64 = 9.0;
const ENLARGING_TAPS: f64 = 4.0;

/// A transformer block whose `tokens` attend to `keys`.
pub fn block(tokens: usize, keys: usize, width: usize) -> f64 {
    let (tokens, seen, width) = (tokens as f64, (keys + CAPTION_TOKENS) as f64, width as f64);
    // Eight projections' worth in attention and MLP, two in cross-attention, and the two attentions.
    28.0 * tokens * width * width + 4.0 * tokens * seen * width
}

/// A forward of all blocks: one branch of a step.
pub fn forward(spec: &DitSpec, latent: LatentSize) -> f64 {
    let grid = latent.tokens();
    let of_layer = |layer: usize| {
        let keys = grid.compressed(spec.kv_ratio(LayerIdx(layer)));
        block(grid.rows * grid.cols, keys.rows * keys.cols, spec.width())
    };
    (0..spec.depth).map(of_layer).sum()
}

/// A decode, as it is computed here.
pub fn decode(spec: &VaeSpec, latent: LatentSize) -> f64 {
    convolutions(spec, latent, ENLARGING_TAPS) + mid_attention(spec, latent)
}

fn convolutions(spec: &VaeSpec, latent: LatentSize, enlarging_taps: f64) -> f64 {
    let mut pixels = (latent.rows * latent.cols) as f64;
    let products =
        |taps: f64, pixels: f64, inputs: usize, outputs: usize| 2.0 * taps * pixels * inputs as f64 * outputs as f64;
    let coarsest = spec.widths.last().copied().unwrap_or(0);
    let mut flop = products(1.0, pixels, spec.latent_channels, spec.latent_channels)
        + products(TAPS, pixels, spec.latent_channels, coarsest)
        + 4.0 * products(TAPS, pixels, coarsest, coarsest);
    let mut width = coarsest;
    for (level, &outputs) in spec.widths.iter().enumerate().rev() {
        for _ in 0..=spec.layers_per_block {
            flop += products(TAPS, pixels, width, outputs) + products(TAPS, pixels, outputs, outputs);
            if width != outputs {
                flop += products(1.0, pixels, width, outputs);
            }
            width = outputs;
        }
        if level > 0 {
            pixels *= 4.0;
            flop += products(enlarging_taps, pixels, width, width);
        }
    }
    flop + products(TAPS, pixels, width, 3)
}

/// The middle block's attention of every cell to every other, and its four projections.
fn mid_attention(spec: &VaeSpec, latent: LatentSize) -> f64 {
    let (cells, width) = ((latent.rows * latent.cols) as f64, spec.widths.last().copied().unwrap_or(0) as f64);
    if spec.has_mid_attention { 4.0 * cells * cells * width + 8.0 * cells * width * width } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use crate::spec::KvCompress;

    use super::*;

    const LATENT_4K: LatentSize = LatentSize { rows: 512, cols: 512 };

    #[track_caller]
    fn near(tera: f64, flop: f64) {
        assert!((flop / 1e12 - tera).abs() < 0.06 * tera.max(1.0).log10().max(1.0), "{} and not {tera}", flop / 1e12);
    }

    #[test]
    fn a_4k_decode_is_158_tflop_of_convolutions_and_141_of_attention() {
        let spec = VaeSpec::sdxl_family(&[128, 256, 512, 512], 2, 32);
        near(158.2, convolutions(&spec, LATENT_4K, TAPS));
        near(141.2, mid_attention(&spec, LATENT_4K));
        // Three enlargements, 44.5 TFLOP, with four taps in place of nine.
        near(158.2 - 44.5 * 5.0 / 9.0 + 141.2, decode(&spec, LATENT_4K));
    }

    #[test]
    fn a_4k_forward_is_625_tflop_and_417_with_half_of_it_compressed_by_two() {
        let spec = |ratio: usize, layers: std::ops::Range<usize>| DitSpec {
            depth: 28,
            heads: 16,
            head_width: 72,
            caption_width: 4096,
            sample_cells: 128,
            interpolation: 2.0,
            kv_compress: Some(KvCompress { ratio, layers: layers.map(LayerIdx).collect() }),
        };
        near(624.9, forward(&spec(1, 0..0), LATENT_4K));
        near(417.1, forward(&spec(2, 14..28), LATENT_4K));
        near(105.4, forward(&spec(4, 0..28), LATENT_4K));
    }
}
