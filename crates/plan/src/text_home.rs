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

/// The host's memory as a worker finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// What may be filled.
    pub free_bytes: u64,
    /// What transformer and decoder will fill of it: nothing if they lie in a GPU's memory.
    pub placed_bytes: u64,
    /// Whether pictures are computed in it, too.
    pub is_computed_in: bool,
    /// Pictures that are made at once.
    pub n_pictures: u16,
}

impl TextHome {
    /// In memory if `text_bytes` leave enough for the other networks and for pictures twice as wide and high as `size`.
    pub fn choose(spec: &ModelSpec, size: ImageSize, text_bytes: u64, memory: HostMemory) -> Self {
        let double = |side_px: u32| side_px.saturating_mul(2);
        let size = ImageSize { width_px: double(size.width_px), height_px: double(size.height_px) };
        let picture = Footprint::of(spec, size, Share::whole(spec, size), size_of::<f32>() as u64);
        let in_memory = picture.on_cpu_bytes(0, 0, Self::Memory);
        let of_picture = if memory.is_computed_in { in_memory } else { picture.picture_bytes + picture.encode_bytes };
        let others = u128::from(memory.placed_bytes) + of_picture * u128::from(memory.n_pictures);
        if u128::from(text_bytes) + others <= u128::from(memory.free_bytes) { Self::Memory } else { Self::Files }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const SIZE: ImageSize = ImageSize { width_px: 1024, height_px: 1024 };

    #[test]
    fn an_encoder_stays_where_networks_and_a_large_picture_fit_beside_it() {
        // T5-XXL in bf16; transformer and decoder in f32; 4 GiB of features of 2048² and the picture.
        let choose = |gib: u64, n_pictures| {
            let memory = HostMemory { free_bytes: gib * GIB, placed_bytes: 3 * GIB, is_computed_in: true, n_pictures };
            TextHome::choose(&ModelSpec::pixart_sigma_xl2(), SIZE, 9 * GIB, memory)
        };
        assert_eq!(choose(16, 1), TextHome::Files);
        assert_eq!(choose(17, 1), TextHome::Memory);
        assert_eq!(choose(17, 2), TextHome::Files);
        assert_eq!(choose(22, 2), TextHome::Memory);
    }

    #[test]
    fn beside_a_gpu_only_the_finished_picture_needs_room() {
        let choose = |gib: u64| {
            let memory = HostMemory { free_bytes: gib * GIB, placed_bytes: 0, is_computed_in: false, n_pictures: 1 };
            TextHome::choose(&ModelSpec::pixart_sigma_xl2(), SIZE, 9 * GIB, memory)
        };
        assert_eq!(choose(9), TextHome::Files);
        assert_eq!(choose(10), TextHome::Memory);
    }
}
