//! One worker's share of one image, and why a share may end early.

use crate::digests::ModelDigests;
use crate::id::{Epoch, ImageId, Rank, WorkerId};
use crate::mesh::Mesh;
use crate::request::RenderRequest;
use crate::spec::ModelSpec;
use serde::{Deserialize, Serialize};

/// What the finished picture is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum ArtifactKind {
    /// PNG, 8 bits a channel.
    #[default]
    Png8,
    /// PNG, 16 bits a channel.
    Png16,
    /// Safetensors: `latents`, `image`, `embeds`.
    Safetensors,
}

/// A model by name and content: two workers may share an image only if both are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId {
    /// Name users ask for.
    pub name: String,
    /// sha256 over all that decides pixels, weights and settings, in hexadecimal.
    pub weights_sha256: String,
}

/// What placing needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFacts {
    /// Which model.
    pub id: ModelId,
    /// What its sha256 is made of, if the worker told.
    pub digests: ModelDigests,
    /// Depths and widths of its networks.
    pub spec: ModelSpec,
}

impl ModelFacts {
    /// Token rows that compression keeps together, 1 without it.
    pub fn kv_ratio(&self) -> usize {
        self.spec.dit.kv_compress.as_ref().map_or(1, |kv| kv.ratio)
    }

    /// Pixels per latent cell.
    pub fn vae_factor(&self) -> usize {
        self.spec.vae.factor()
    }
}

/// A seat's worker and where its peers reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who sits there.
    pub worker: WorkerId,
    /// Address of its exchange port.
    pub address: String,
}

/// One rank's part in one attempt at an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// Number of the attempt.
    pub epoch: Epoch,
    /// Which image.
    pub image: ImageId,
    /// What to draw; its seed is the image's own.
    pub request: RenderRequest,
    /// With which weights.
    pub model: ModelId,
    /// What to write.
    pub artifact: ArtifactKind,
    /// Who does what.
    pub mesh: Mesh,
    /// The seat of whoever reads this.
    pub rank: Rank,
    /// Every seat's worker, in order of ranks.
    pub peers: Vec<Peer>,
    /// Steps that are done: the checkpoint to go on from is the one behind the last of them. 0 starts anew.
    pub n_steps_done: usize,
}

/// Why a rank gave up; decides whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The request or the weights: no other worker would fare better.
    Input,
    /// This device or its memory.
    Device,
    /// A value that is not finite: tried once elsewhere, then final.
    NotFinite,
    /// Another rank went silent or away.
    Peer,
    /// A defect of ours.
    Bug,
}
