//! Fused operations on token rows and pixel rows, channels last, for candle tensors on the CPU.
//!
//! Three promises, each tested as a property: a row's result does not depend on how many rows the call holds,
//! on the number of threads, or on the width of the machine's vectors (machines with fused multiply-add give
//! equal bits; portable code is a class of its own).
//!
//! The one place with `unsafe`: vector instructions, writes of disjoint rows from several threads, file
//! maps, and a setting of the heap. Work is spread over rayon's current pool.

mod attention;
mod buffer;
mod conv;
mod cuda;
mod finite;
mod group_norm;
mod heap;
mod isa;
mod linear;
mod mapped;
mod rows;
mod simd;
mod tile;

pub use attention::attention;
pub use buffer::with_values;
pub use conv::{Conv3x3, Halo, UpConv};
#[cfg(feature = "cuda")]
pub use cuda::device::{architecture, explain, gpu, overwrite};
#[cfg(feature = "cuda")]
pub use cuda::pool::{free_bytes, peak_bytes, restart_peak};
pub use cuda::probe::{Gpu, GpuError, find_gpu};
#[cfg(feature = "cuda")]
pub use cuda::travel::{Arriving, HostValues, Leaving, clear_spares, leave};
pub use finite::{all_finite, all_finite_bf16, is_finite};
pub use group_norm::{ChannelAffine, Moments, affine_of, apply, moments};
pub use heap::return_large_blocks;
pub use isa::{Isa, isa};
pub use linear::{Epilogue, Linear, Mlp};
pub use mapped::MappedFile;
pub use rows::{Compress, layer_norm_modulate};
