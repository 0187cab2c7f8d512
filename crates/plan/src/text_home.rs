//! Where the text encoder is between prompts, chosen by the memory there is.
//!
//! It is the largest network and works for a moment a picture, on the CPU, and on rank 0 alone: the other ranks of an image
//! get its captions and never load it.

use crate::footprint::{Footprint, Share};
use crate::geometry::ImageSize;
use crate::spec::ModelSpec;

/// Where the text encoder is while no prompt is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextHome {
    /// In its files, read anew for each new prompt.
    #[default]
    Files,
    /// In memory.
    Memory,
}

impl TextHome {
    /// In memory if `text_bytes` of it leave enough of `free_bytes` for the other networks, `placed_bytes` of this memory, and
    /// for a picture twice as wide and high as `size`, if `has_pictures`: a GPU has memory of its own.
    pub fn choose(
        spec: &ModelSpec,
        size: ImageSize,
        text_bytes: u64,
        free_bytes: u64,
        placed_bytes: u64,
        has_pictures: bool,
    ) -> Self {
        let double = |side_px: u32| side_px.saturating_mul(2);
        let size = ImageSize { width_px: double(size.width_px), height_px: double(size.height_px) };
        let picture = Footprint::of(spec, size, Share::whole(spec, size), size_of::<f32>() as u64);
        let others = if has_pictures { picture.on_cpu_bytes(placed_bytes) } else { picture.picture_bytes };
        if u128::from(text_bytes) + others <= u128::from(free_bytes) { Self::Memory } else { Self::Files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::footprint::tests::xl;

    const GIB: u64 = 1 << 30;
    const SIZE: ImageSize = ImageSize { width_px: 1024, height_px: 1024 };

    #[test]
    fn an_encoder_stays_where_networks_and_a_large_picture_fit_beside_it() {
        // T5-XXL in bf16; transformer and decoder in f32; 4 GiB of features of 2048² and the picture.
        let choose = |free_bytes| TextHome::choose(&xl(), SIZE, 9 * GIB, free_bytes, 3 * GIB, true);
        assert_eq!(choose(15 * GIB), TextHome::Files);
        assert_eq!(choose(17 * GIB), TextHome::Memory);
    }

    #[test]
    fn beside_a_gpu_only_the_finished_picture_needs_room() {
        let choose = |free_bytes| TextHome::choose(&xl(), SIZE, 9 * GIB, free_bytes, 0, false);
        assert_eq!(choose(9 * GIB), TextHome::Files);
        assert_eq!(choose(10 * GIB), TextHome::Memory);
    }
}
