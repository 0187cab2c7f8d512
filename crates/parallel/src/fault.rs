//! Why a rank gave up, and what that means for trying again.

use fabric::FabricError;
use model::{ForwardError, RenderError};
use plan::program::Tag;
use plan::{Cause, Rank, StepIdx};

use crate::link::LinkFault;

/// Why a rank's program ended early.
#[derive(Debug, thiserror::Error)]
pub enum RankError {
    /// Another rank did not send, or the epoch was aborted.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// A value stopped being finite in a step.
    #[error("step {step}, rank {rank}: the output of `{tensor}` holds a value that is not finite")]
    #[allow(missing_docs)]
    NotFinite { step: StepIdx, rank: Rank, tensor: String },
    /// A value stopped being finite in the decode.
    #[error("decode, rank {rank}: the output of `{tensor}` holds a value that is not finite")]
    #[allow(missing_docs)]
    DecodeNotFinite { rank: Rank, tensor: String },
    /// The request or the weights.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The assignment makes no sense for this model.
    #[error("{0}")]
    Assignment(String),
    /// Whoever watches broke off.
    #[error("cancelled")]
    Cancelled,
    /// Arithmetic failed, as when memory is short.
    #[error("{}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

impl RankError {
    /// What decides whether the image is tried again.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Fabric(FabricError::TooLarge { .. } | FabricError::Type { .. }) => Cause::Bug,
            Self::Fabric(_) | Self::Cancelled => Cause::Peer,
            Self::NotFinite { .. } | Self::DecodeNotFinite { .. } => Cause::NotFinite,
            Self::Render(RenderError::NotFinite { .. } | RenderError::DecodeNotFinite { .. }) => Cause::NotFinite,
            Self::Render(_) => Cause::Input,
            Self::Assignment(_) => Cause::Bug,
            Self::Tensor(_) => Cause::Device,
        }
    }

    /// The rank this one waited for in vain.
    pub fn blamed(&self) -> Option<Rank> {
        match self {
            Self::Fabric(FabricError::PeerGone { peer, .. } | FabricError::Silent { peer, .. }) => Some(*peer),
            _ => None,
        }
    }

    /// What kept a tensor of `rank` from the others, or theirs from it.
    pub(crate) fn of_link(fault: LinkFault, rank: Rank) -> Self {
        let in_step = |step, tensor: String| Self::NotFinite { step, rank, tensor };
        match fault {
            LinkFault::Fabric(error) => Self::Fabric(error),
            LinkFault::NotFinite(tag) => match tag {
                Tag::Block(step, layer, ..) => in_step(step, format!("transformer_blocks.{layer}.attn1")),
                Tag::Prediction(step) | Tag::Agree(step) => in_step(step, "proj_out".into()),
                Tag::Caption(_) => in_step(StepIdx(0), "text_encoder".into()),
                Tag::Decode(_) | Tag::Pixels | Tag::Latents => Self::DecodeNotFinite { rank, tensor: "decoder".into() },
            },
        }
    }

    /// An error of a forward pass in `step`, or of the decode.
    pub(crate) fn of_forward(error: ForwardError, step: Option<StepIdx>, rank: Rank) -> Self {
        match (error, step) {
            (ForwardError::NotFinite { tensor }, Some(step)) => Self::NotFinite { step, rank, tensor },
            (ForwardError::NotFinite { tensor }, None) => Self::DecodeNotFinite { rank, tensor },
            (ForwardError::Cancelled, _) => Self::Cancelled,
            (ForwardError::Tensor(error), _) => Self::Tensor(error),
        }
    }
}

/// What `error` says, without the trace of calls candle may have put behind it.
fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
