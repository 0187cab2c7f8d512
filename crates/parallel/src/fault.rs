//! Why a rank gave up, and what that means for trying again.

use fabric::FabricError;
use model::{ForwardError, RenderError};
use plan::program::Tag;
use plan::{Cause, Rank, StepIdx};

use crate::link::{Link, LinkFault};

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
    /// Arithmetic failed, as when memory is short; or what a seam reported of the link.
    #[error("{}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
    /// Arithmetic failed, and the link had nothing to do with it.
    #[error("{0}")]
    Arithmetic(String),
}

impl RankError {
    /// What decides whether the image is tried again.
    pub fn cause(&self) -> Cause {
        match self {
            Self::Fabric(FabricError::TooLarge { .. } | FabricError::Type { .. }) => Cause::Bug,
            Self::Fabric(_) | Self::Cancelled => Cause::Peer,
            Self::NotFinite { .. } | Self::DecodeNotFinite { .. } => Cause::NotFinite,
            Self::Render(RenderError::NotFinite { .. } | RenderError::DecodeNotFinite { .. }) => Cause::NotFinite,
            // Another worker may have the memory, or weights that are whole.
            Self::Render(RenderError::Folder(_) | RenderError::Tensor(_)) => Cause::Device,
            Self::Render(_) => Cause::Input,
            Self::Assignment(_) => Cause::Bug,
            Self::Tensor(_) | Self::Arithmetic(_) => Cause::Device,
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
    fn of_link(fault: LinkFault, rank: Rank) -> Self {
        let in_step = |step, tensor: String| Self::NotFinite { step, rank, tensor };
        match fault {
            LinkFault::Fabric(error) => Self::Fabric(error),
            LinkFault::Cancelled => Self::Cancelled,
            LinkFault::NotFinite(tag) => match tag {
                Tag::Block(step, layer, ..) => in_step(step, format!("transformer_blocks.{layer}.attn1")),
                Tag::Prediction(step) | Tag::Agree(step) => in_step(step, "proj_out".into()),
                Tag::Caption(_) => in_step(StepIdx(0), "text_encoder".into()),
                Tag::Decode(_) | Tag::Pixels | Tag::Latents => Self::DecodeNotFinite { rank, tensor: "decoder".into() },
            },
        }
    }

    /// The error as it is when it happens: once others have been told to give up, the link is at fault too.
    pub(crate) fn settled(self, link: &Link<'_>) -> Self {
        match (self, link.fault()) {
            (Self::Tensor(_), Some(fault)) => Self::of_link(fault, link.rank()),
            (Self::Tensor(error), None) => Self::Arithmetic(first_line(&error)),
            (error, _) => error,
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

#[cfg(test)]
mod tests {
    use fabric::{Fabric, Payload};

    use super::*;

    /// A fabric whose epoch is over.
    struct Aborted;

    impl Fabric for Aborted {
        fn rank(&self) -> Rank {
            Rank(1)
        }

        fn n_ranks(&self) -> usize {
            2
        }

        fn epoch(&self) -> plan::Epoch {
            plan::Epoch(7)
        }

        fn send(&self, _to: Rank, _tag: fabric::Tag, _payload: Payload) -> Result<(), FabricError> {
            Err(FabricError::Aborted { epoch: self.epoch() })
        }

        fn recv(&self, _from: Rank, _tag: fabric::Tag) -> Result<Payload, FabricError> {
            Err(FabricError::Aborted { epoch: self.epoch() })
        }
    }

    fn broken() -> RankError {
        RankError::Tensor(candle_core::Error::Msg("out of memory".into()))
    }

    #[test]
    fn what_broke_first_is_told_though_the_link_was_given_up_because_of_it() {
        let link = Link::new(&Aborted);
        let first = broken().settled(&link);
        assert!(link.recv_f32(Rank(0), Tag::Pixels).is_err(), "the others were told");
        let told = first.settled(&link);
        assert_eq!((told.cause(), told.to_string().as_str()), (Cause::Device, "out of memory"));
        // What breaks behind it is the link's doing.
        assert_eq!(broken().settled(&link).cause(), Cause::Peer);
    }

    #[test]
    fn a_worker_that_cannot_hold_a_model_is_at_fault_and_not_the_request() {
        let memory = RenderError::Tensor(candle_core::Error::Msg("out of memory".into()));
        assert_eq!(RankError::from(memory).cause(), Cause::Device);
        assert_eq!(RankError::from(RenderError::Prompt("no such word".into())).cause(), Cause::Input);
    }
}
