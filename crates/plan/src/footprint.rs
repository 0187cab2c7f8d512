//! How much memory a render needs, known before the work starts.
//!
//! Counts the tensors that are alive together at the widest points. Files that are mapped do not count: the system takes
//! their pages back when it is short of memory. 128-bit throughout, because a user may ask for any size at all.

use crate::geometry::ImageSize;
use crate::id::Rank;
use crate::mesh::Mesh;
use crate::request::MAX_TOKENS;
use crate::spec::{DitSpec, ModelSpec, TextSpec, VaeSpec};
use crate::text_home::TextHome;

/// Slabs a decode's widest layer is read in, unless they would be small.
const N_SLABS: u128 = 16;
const LEAST_SLAB_BYTES: u128 = 16 << 20;
/// Of a layer read in few slabs, the share that is there twice while a slab is computed.
const TWICE_SHARE: u128 = 4;

/// What one rank has of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Rows of tokens.
    pub token_rows: usize,
    /// Branches whose tensors are alive at once.
    pub n_branches: usize,
    /// Captions it holds, from the encoder to the end.
    pub n_captions: usize,
    /// Latent rows it decodes.
    pub decode_rows: usize,
}

impl Share {
    /// All of a guided picture on one rank, which takes one branch after the other.
    pub fn whole(spec: &ModelSpec, size: ImageSize) -> Self {
        let latent = size.latent(spec.vae.factor());
        Self { token_rows: latent.tokens().rows, n_branches: 1, n_captions: 2, decode_rows: latent.rows }
    }

    /// What `rank` has; if it has both branches, one waits for tensors while the other computes.
    pub fn of(mesh: &Mesh, rank: Rank, is_guided: bool) -> Self {
        let decoded = mesh.decode_bands().into_iter().filter(|(of, _)| *of == rank);
        let n_branches = mesh.branches(rank, is_guided).len();
        Self {
            token_rows: mesh.band(rank).n_rows(),
            n_branches,
            n_captions: n_branches,
            decode_rows: decoded.map(|(_, band)| band.n_rows()).sum(),
        }
    }
}

/// Bytes a rank's share of a picture needs beside the weights, by what holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// What encoding a prompt takes beside the encoder's weights as they are stored.
    pub encode_bytes: u128,
    /// Captions made ready for every block, which stay until the picture is done.
    pub captions_bytes: u128,
    /// The widest moment of the transformer.
    pub dit_bytes: u128,
    /// The widest moment of the decode, at whose end its layers are gone.
    pub vae_bytes: u128,
    /// Pixels of other ranks, which come while this one decodes; f32 on the CPU.
    pub gathered_bytes: u128,
    /// The finished pixels, which are always f32 on the CPU.
    pub picture_bytes: u128,
}

/// What a process holds beside tensors: its heap, stacks, the tokenizer, scratch of the streaming kernels.
const PROCESS_BYTES: u128 = 20 << 20;
/// Scratch of a GPU's kernels and libraries.
const GPU_SCRATCH_BYTES: u128 = 64 << 20;

impl Footprint {
    /// What `share` of a picture of `size` takes where a value is stored in `value_bytes`.
    pub fn of(spec: &ModelSpec, size: ImageSize, share: Share, value_bytes: u64) -> Self {
        let pixels = u128::from(size.width_px) * u128::from(size.height_px);
        let latent = size.latent(spec.vae.factor());
        let [own, all] = [share.decode_rows, latent.rows].map(|rows| rows as u128 * latent.cols as u128);
        // A slab is read while the one before has just been written.
        let widest_bytes = widest_values(&spec.vae, own) * u128::from(value_bytes);
        let slabs_bytes = 2 * slab_bytes(&spec.vae, own, value_bytes);
        // No slab is less than a latent row.
        let row_bytes = widest_values(&spec.vae, latent.cols as u128) * u128::from(value_bytes);
        let layers = widest_bytes + slabs_bytes.min(widest_bytes / TWICE_SHARE).max(row_bytes.min(widest_bytes));
        Self {
            encode_bytes: encode_values(&spec.text) * size_of::<f32>() as u128,
            captions_bytes: share.n_captions as u128 * caption_values(&spec.dit) * u128::from(value_bytes),
            dit_bytes: dit_values(&spec.dit, spec.vae.factor(), size, share) * u128::from(value_bytes),
            vae_bytes: layers.max(attention_values(&spec.vae, own, all) * u128::from(value_bytes)),
            gathered_bytes: 3 * pixels * size_of::<f32>() as u128 * u128::from(own < all),
            // Planes, the rows they come from, and those in 0..1.
            picture_bytes: 9 * pixels * size_of::<f32>() as u128,
        }
    }

    /// Bytes at the widest moment of all on a CPU, which first encodes, then steps, then decodes: with `networks_bytes` of
    /// transformer and decoder, and `text_bytes` of the encoder's weights as they are stored, which stay in memory or go with
    /// the prompt.
    pub fn on_cpu_bytes(&self, networks_bytes: u64, text_bytes: u64, text_home: TextHome) -> u128 {
        let text_bytes = u128::from(text_bytes);
        let drawn_bytes =
            self.captions_bytes + self.dit_bytes.max(self.vae_bytes + self.gathered_bytes).max(self.picture_bytes);
        let widest_bytes = match text_home {
            TextHome::Files => drawn_bytes.max(text_bytes + self.encode_bytes),
            TextHome::Memory => text_bytes + drawn_bytes.max(self.encode_bytes),
        };
        u128::from(networks_bytes) + widest_bytes + PROCESS_BYTES
    }

    /// The same without the weights, on a device that stores a value in `value_bytes`: 4 on a CPU, less on a GPU.
    pub fn beside_weights_bytes(&self, value_bytes: u64) -> u128 {
        if value_bytes == 4 { self.on_cpu_bytes(0, 0, TextHome::Memory) } else { self.on_gpu_bytes() }
    }

    /// The same of a GPU's memory, beside the weights that are there already; the encoder works on the CPU.
    pub fn on_gpu_bytes(&self) -> u128 {
        self.captions_bytes + self.dit_bytes.max(self.vae_bytes) + GPU_SCRATCH_BYTES
    }
}

/// A layer is widened to f32 while it computes, three times the square of the width at most; beside it hidden rows, scores and
/// sums of all tokens are small.
fn encode_values(spec: &TextSpec) -> u128 {
    let width = spec.width as u128;
    3 * width * width + 16 * MAX_TOKENS as u128 * width
}

/// Keys and values of a caption in every block.
fn caption_values(spec: &DitSpec) -> u128 {
    (2 * spec.depth * MAX_TOKENS * spec.width()) as u128
}

/// A block holds its input, the modulated input, its own keys and values, and queries or the attention's result; beside them
/// what was gathered: all rows with their keys and values. Or, where nothing is gathered, the MLP's hidden rows between what
/// it reads, adds to and gives.
fn dit_values(spec: &DitSpec, factor: usize, size: ImageSize, share: Share) -> u128 {
    let grid = size.latent(factor).tokens();
    let [own, all] = [share.token_rows, grid.rows].map(|rows| rows as u128 * grid.cols as u128);
    share.n_branches as u128 * (5 * own + 3 * all) * spec.width() as u128
}

/// Bytes of a slab of a decode of `cells` latent cells: layers give back what they have read a slab at a time. Few of them, so
/// that each fills a GPU, and little beside the widest layer.
pub fn slab_bytes(spec: &VaeSpec, cells: u128, value_bytes: u64) -> u128 {
    (widest_values(spec, cells) * u128::from(value_bytes) / N_SLABS).max(LEAST_SLAB_BYTES)
}

/// Values of the widest layer: what a layer writes takes the place of what it has read.
fn widest_values(spec: &VaeSpec, cells: u128) -> u128 {
    let top = spec.widths.len() - 1;
    let mut width = spec.widths[top] as u128;
    let mut widest = 0;
    for level in (0..=top).rev() {
        let (pixels, out) = (cells << (2 * (top - level)), spec.widths[level] as u128);
        // What the level before left; then the hidden rows and the shortcut.
        widest = widest.max(pixels * width.max(2 * out));
        width = out;
    }
    widest
}

/// The middle attention holds its input, the normalised input, queries and its result, and keys and values of all rows, on a
/// CPU laid out once more.
fn attention_values(spec: &VaeSpec, own_cells: u128, all_cells: u128) -> u128 {
    let width = spec.widths[spec.widths.len() - 1] as u128;
    (4 * own_cells + 4 * all_cells) * width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::RowRange;

    const GIB: u128 = 1 << 30;
    const LARGE: ImageSize = ImageSize { width_px: 4096, height_px: 4096 };

    fn xl() -> ModelSpec {
        ModelSpec::pixart_sigma_xl2()
    }

    #[test]
    fn a_4k_decode_holds_one_picture_of_256_channels() {
        // What the last level starts with: 256 channels of 4096² pixels.
        let whole = Share::whole(&xl(), LARGE);
        let of = |value_bytes| Footprint::of(&xl(), LARGE, whole, value_bytes);
        assert_eq!(of(4).vae_bytes, 18 * GIB, "16 GiB and two slabs");
        assert_eq!(of(2).vae_bytes, 9 * GIB);
        assert_eq!(of(4).picture_bytes, 9 * 4096 * 4096 * 4);
        assert!(of(2).on_gpu_bytes() < 10 * GIB);
    }

    #[test]
    fn half_of_the_rows_take_half_of_the_decode_and_all_keys() {
        let whole = Share::whole(&xl(), LARGE);
        let half = Share { token_rows: 128, n_branches: 2, n_captions: 2, decode_rows: 256 };
        let [whole, half] = [whole, half].map(|share| Footprint::of(&xl(), LARGE, share, 2));
        assert_eq!(half.vae_bytes, whole.vae_bytes / 2);
        let rows = 256 * 256 * 1152 * 2;
        assert_eq!(whole.dit_bytes, 8 * rows);
        assert_eq!(half.dit_bytes, 2 * rows * 11 / 2, "2.5 + 3, for each branch");
        let captions = 2 * (2 * 28 * 300 * 1152 * 2);
        assert_eq!((whole.captions_bytes, half.captions_bytes), (captions, captions));
    }

    #[test]
    fn partners_have_a_branch_each_and_halve_the_decode() {
        let bands = [(0, 6), (6, 16)].map(|(start, end)| RowRange { start, end });
        let mesh = |n_branch_groups| Mesh::new(n_branch_groups, bands.to_vec(), 16, 1).expect("a mesh");
        let of =
            |n_branch_groups, rank| Share::of(&mesh(n_branch_groups), Rank(rank), n_branch_groups == 2 || rank == 0);
        assert_eq!(of(2, 1), Share { token_rows: 10, n_branches: 1, n_captions: 1, decode_rows: 10 });
        assert_eq!(of(2, 3), of(2, 1));
        assert_eq!(of(1, 0), Share { token_rows: 6, n_branches: 2, n_captions: 2, decode_rows: 12 }, "guided");
        assert_eq!(of(1, 1), Share { token_rows: 10, n_branches: 1, n_captions: 1, decode_rows: 20 }, "not guided");
    }

    #[test]
    fn the_largest_size_that_can_be_asked_does_not_overflow() {
        let size = ImageSize { width_px: u32::MAX - 15, height_px: u32::MAX - 15 };
        let footprint = Footprint::of(&xl(), size, Share::whole(&xl(), size), 4);
        assert!(footprint.on_cpu_bytes(u64::MAX, u64::MAX, TextHome::Memory) > 1 << 70);
    }

    #[test]
    fn an_encoder_that_goes_with_the_prompt_counts_while_it_is_there() {
        // T5-XXL as it is published, in f32, and what draws 512².
        let (networks, text) = (3 << 30, 19 << 30);
        let size = ImageSize { width_px: 512, height_px: 512 };
        let footprint = Footprint::of(&xl(), size, Share::whole(&xl(), size), 4);
        let [goes, stays] =
            [TextHome::Files, TextHome::Memory].map(|home| footprint.on_cpu_bytes(networks, text, home));
        assert!((22 * GIB..23 * GIB).contains(&goes), "{goes}: more than the picture takes");
        assert!((22 * GIB..24 * GIB).contains(&stays) && stays > goes, "{stays}");
        let large = Footprint::of(&xl(), LARGE, Share::whole(&xl(), LARGE), 4);
        let [goes, stays] = [TextHome::Files, TextHome::Memory].map(|home| large.on_cpu_bytes(networks, text, home));
        assert!(stays - goes > 17 * GIB, "a large picture has no use for it: {goes} and {stays}");
    }
}
