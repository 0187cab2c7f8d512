//! The mathematics of PixArt-Σ (arXiv:2403.04692): text encoder, diffusion transformer, VAE decoder, sampler,
//! noise, and the files their weights come from.
//!
//! Knows no rank, no network and no clock. Where a split picture needs more than its own rows, it asks one of
//! the two traits in [`seam`].
#![forbid(unsafe_code)]

pub mod class;
pub mod config;
pub mod convert;
pub mod dit;
pub mod finite;
pub mod folder;
mod listed;
pub mod noise;
pub mod place;
pub mod render;
pub mod sampler;
pub mod seam;
pub mod text;
pub mod tokenizer;
pub mod vae;
pub mod weights;

pub use class::numeric_class;
pub use finite::ForwardError;
pub use folder::{FolderError, Identity, ModelFolder};
pub use place::Place;
pub use render::{Progress, RenderError, Rendered, Renderer};
