//! The vocabulary and all arithmetic of fresco: requests, geometry, facts about a model, memory.
//!
//! Pure: nothing here touches a tensor, a file, a clock or a socket, so that both sides of the wire
//! and the planner may call it thousands of times. It imports nothing of ours.
#![forbid(unsafe_code)]

pub mod assignment;
pub mod digests;
pub mod exchange;
pub mod flop;
pub mod footprint;
pub mod geometry;
pub mod id;
pub mod mesh;
pub mod program;
pub mod request;
pub mod spec;
pub mod text_home;

pub use assignment::{ArtifactKind, Assignment, Cause, ModelFacts, ModelId, Peer};
pub use digests::ModelDigests;
pub use exchange::{Exchange, Pace};
pub use footprint::{Footprint, Share, slab_bytes};
pub use geometry::{ImageSize, LatentSize, RowRange, TokenGrid};
pub use id::{Epoch, ImageId, ImageIdx, JobId, LayerIdx, Millis, Rank, StepIdx, WorkerId};
pub use mesh::{Branch, Choice, Mesh, MeshError};
pub use request::{Clean, RenderRequest, RequestError};
pub use spec::{DitSpec, KvCompress, ModelSpec, TextSpec, VaeSpec};
pub use text_home::{HostMemory, TextHome};
