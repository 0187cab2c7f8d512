//! What tests of this crate begin with: the demo model, and assignments of small pictures.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fabric::grpc::{Port, Secret};
use plan::{
    ArtifactKind, Assignment, Clean, Epoch, ImageId, ImageIdx, ImageSize, JobId, Mesh, ModelId, Peer, Rank,
    RenderRequest, RowRange, WorkerId,
};

use crate::desk::Secrets;
use crate::models::Models;
use crate::open_models;

pub(crate) fn demo() -> Arc<Models> {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    open_models(&[(demo, None)], &model::Place::default(), &machine::Memory::UNKNOWN, 1).expect("the demo is sound")
}

pub(crate) fn model_of(models: &Models) -> ModelId {
    models.facts().next().expect("it is one").id.clone()
}

/// A guided picture of so many pixels a side.
pub(crate) fn request(side_px: u32, steps: u32) -> RenderRequest {
    RenderRequest {
        prompt: "a calm sea at dawn".into(),
        negative: String::new(),
        size: ImageSize::new(side_px, side_px).expect("a size"),
        steps,
        guidance: 4.5,
        seed: 1,
        clean: Clean::Basic,
    }
}

/// The mesh of one rank. A token is 16 pixels high.
pub(crate) fn alone(request: &RenderRequest) -> Mesh {
    let rows = request.size.height_px as usize / 16;
    Mesh::new(1, vec![RowRange { start: 0, end: rows }], rows, 1).expect("a mesh")
}

pub(crate) fn peer_at(port: &Port) -> Peer {
    Peer { worker: WorkerId("any".into()), address: port.address().to_owned() }
}

pub(crate) fn assignment(
    models: &Models,
    request: &RenderRequest,
    (epoch, mesh, rank): (Epoch, Mesh, Rank),
    peers: Vec<Peer>,
) -> Assignment {
    Assignment {
        epoch,
        image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
        request: request.clone(),
        model: model_of(models),
        artifact: ArtifactKind::Png8,
        mesh,
        rank,
        peers,
        n_steps_done: 0,
    }
}

pub(crate) fn no_secrets() -> Secrets {
    Secrets { seat: Bytes::new(), exchange: Secret::NONE }
}
