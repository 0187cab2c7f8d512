//! Tensors between ranks: handed over within a process, streamed over gRPC between processes.
//!
//! Carries numbers and knows no meaning: a tag says which tensor it is, and only the sender and the receiver
//! know what it stands for. Blocking, for device threads; async lives behind [`grpc`] alone.
#![forbid(unsafe_code)]

pub mod collective;
pub mod fault;
pub mod grpc;
pub mod local;
mod payload;
mod seat;
mod spares;

use std::sync::Arc;

use bytes::Bytes;
use half::bf16;
use plan::{Epoch, Rank};

/// Which tensor of an epoch this is; packed by the caller, opaque here. One tag is sent once per pair and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// bf16 values in memory of whatever kind: a GPU's are in memory it can write to itself.
pub type Bf16Values = Arc<dyn AsRef<[bf16]> + Send + Sync>;

/// The numbers of one tensor. Cloning shares them; a port keeps a share of large ones it received, to write to the
/// memory again once it has the only one.
#[derive(Clone)]
pub enum Payload {
    /// f32 values.
    F32(Arc<Vec<f32>>),
    /// f64 values.
    F64(Arc<Vec<f64>>),
    /// bf16 values.
    Bf16(Bf16Values),
    /// Anything else.
    Bytes(Bytes),
}

/// Why a tensor did not get through.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FabricError {
    /// The epoch was ended while this waited.
    #[error("epoch {epoch} was aborted")]
    #[allow(missing_docs)]
    Aborted { epoch: Epoch },
    /// A peer is gone.
    #[error("rank {peer} is gone: {reason}")]
    #[allow(missing_docs)]
    PeerGone { peer: Rank, reason: String },
    /// A peer is connected and says nothing.
    #[error("rank {peer} sent nothing for {waited_ms} ms")]
    #[allow(missing_docs)]
    Silent { peer: Rank, waited_ms: u64 },
    /// A message is larger than this fabric takes.
    #[error("a message of {bytes} bytes is larger than the limit of {limit} bytes")]
    #[allow(missing_docs)]
    TooLarge { bytes: u64, limit: u64 },
    /// Another type of numbers came than was expected.
    #[error("rank {peer} sent {found} where {expected} was expected")]
    #[allow(missing_docs)]
    Type { peer: Rank, expected: &'static str, found: &'static str },
}

/// One rank's view of the ranks of one epoch.
pub trait Fabric: Send + Sync {
    /// This rank.
    fn rank(&self) -> Rank;

    /// How many ranks the epoch has.
    fn n_ranks(&self) -> usize;

    /// The epoch every message of this view carries.
    fn epoch(&self) -> Epoch;

    /// Hands a tensor to rank `to`. Returns once it is queued; waits while the link's credit is used up.
    ///
    /// # Errors
    /// If the epoch was aborted or the peer is gone.
    fn send(&self, to: Rank, tag: Tag, payload: Payload) -> Result<(), FabricError>;

    /// The same where it need not wait. False if it would have to: nothing is handed over then.
    ///
    /// # Errors
    /// As [`Self::send`].
    fn try_send(&self, to: Rank, tag: Tag, payload: &Payload) -> Result<bool, FabricError> {
        self.send(to, tag, payload.clone()).map(|()| true)
    }

    /// Waits for the tensor `tag` from rank `from`, in whatever order they arrive.
    ///
    /// # Errors
    /// If the epoch was aborted, the peer is gone, or it was silent beyond the deadline.
    fn recv(&self, from: Rank, tag: Tag) -> Result<Payload, FabricError>;
}
