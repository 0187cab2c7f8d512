//! Whether a picture fits in memory.
//!
//! The need is `plan::Footprint`'s, what there is `machine`'s; this file compares both.

use machine::Memory;
use model::ModelFolder;
use plan::{Footprint, ImageSize, ModelSpec, Share, TextHome};

/// Refuses a picture of `folder`'s model, its encoder read for the prompt, that needs more than there is.
pub(crate) fn check(memory: &Memory, folder: &ModelFolder, size: ImageSize) -> Result<(), String> {
    fits(memory, folder.spec(), size, (folder.placed_bytes(), folder.text_bytes()))
}

fn fits(memory: &Memory, spec: &ModelSpec, size: ImageSize, (networks, text): (u64, u64)) -> Result<(), String> {
    let footprint = Footprint::of(spec, size, Share::whole(spec, size), size_of::<f32>() as u64);
    let need_bytes = footprint.on_cpu_bytes(networks, text, TextHome::Files);
    tracing::debug!(%size, counted_mib = %(need_bytes >> 20), "memory that the picture needs at its widest");
    let checked = memory.check(need_bytes);
    checked.map_err(|shortage| format!("{size} needs {shortage}: choose a smaller --size or free memory"))
}

#[cfg(test)]
mod tests {
    use plan::{DitSpec, TextSpec, VaeSpec};

    use super::*;

    fn check(size: ImageSize, available_bytes: u64) -> Result<(), String> {
        let spec = ModelSpec {
            dit: DitSpec {
                depth: 2,
                heads: 2,
                head_width: 8,
                caption_width: 16,
                sample_cells: 16,
                interpolation: 1.0,
                kv_compress: None,
            },
            vae: VaeSpec {
                widths: vec![16, 32, 64, 64],
                layers_per_block: 1,
                groups: 8,
                scaling_factor: 1.0,
                shift_factor: 0.0,
                latent_channels: 4,
                has_post_quant_conv: true,
                has_mid_attention: true,
            },
            text: TextSpec { width: 16, depth: 1, vocabulary: 100 },
        };
        fits(&Memory { total_bytes: 1 << 40, available_bytes, limit: None }, &spec, size, (1 << 30, 1 << 20))
    }

    #[test]
    fn a_picture_that_does_not_fit_is_refused_with_the_need_and_what_there_is() {
        let size = ImageSize { width_px: 1024, height_px: 1024 };
        assert_eq!(check(size, 16 << 30), Ok(()));
        let message = check(size, 1 << 30).expect_err("must be refused");
        assert!(message.starts_with("1024x1024 needs 1."), "{message}");
        assert!(message.contains("1.0 GiB is available"), "{message}");
    }

    #[test]
    fn the_largest_size_is_refused_too() {
        let size = ImageSize { width_px: u32::MAX - 15, height_px: u32::MAX - 15 };
        assert!(check(size, u64::MAX).is_err());
    }
}
