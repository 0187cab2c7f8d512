//! One part from its assignment to its report, on a thread of its own.

use std::sync::Arc;

use fabric::grpc::Port;
use parallel::{Outcome, RankError, Seat, Start};
use plan::{Assignment, Cause, Exchange, Pace};
use rayon::ThreadPool;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tonic::transport::Channel;
use wire::v1;
use wire::v1::session_request::Message;

use crate::Noise;
use crate::checkpoint;
use crate::desk::Desk;
use crate::hang::HangAt;
use crate::image;
use crate::metadata::{self, Metadata};
use crate::models::{ModelError, Models};
use crate::room::Room;
use crate::upload;

/// What a part is made with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) models: Arc<Models>,
    pub(crate) port: Arc<Port>,
    /// For checkpoints and pictures: a connection of their own, so that heartbeats do not stand in line behind them.
    pub(crate) bulk: Channel,
    pub(crate) pools: Arc<[ThreadPool; 2]>,
    pub(crate) runtime: Handle,
    pub(crate) noise: Option<Noise>,
}

/// Why a part ended without its work.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) cause: Cause,
    pub(crate) message: String,
    /// The rank that was waited for in vain.
    pub(crate) blamed: Option<u32>,
}

impl From<RankError> for Fault {
    fn from(error: RankError) -> Self {
        let blamed = error.blamed().map(|rank| rank.0.into());
        Self { cause: error.cause(), message: error.to_string(), blamed }
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Self {
        match error {
            // Another worker may have it.
            ModelError::Unknown(_) => Self { cause: Cause::Device, message: error.to_string(), blamed: None },
            ModelError::Load(error) => RankError::from(error).into(),
        }
    }
}

/// Does the part and reports how it ended; says nothing of a part that was dropped.
pub(crate) fn run(tools: &Tools, assignment: &Assignment, desk: &Arc<Desk>) {
    let keeping = tools.runtime.spawn({
        let (channel, desk) = (tools.bulk.clone(), Arc::clone(desk));
        async move { checkpoint::keep_rows(channel, &desk).await }
    });
    let ended = work(tools, assignment, desk);
    // What gave the part up from outside is why its rank ended, whatever the rank says.
    let ended = desk.take_fault().map_or(ended, Err);
    match ended {
        _ if desk.is_cancelled() => {}
        Ok(None) => {}
        Ok(Some(message)) => desk.report(message),
        Err(fault) => desk.report(Message::Failed(v1::Failed {
            epoch: assignment.epoch.0,
            cause: wire::convert::cause_of(fault.cause).into(),
            message: fault.message,
            blamed: fault.blamed,
            n_steps_done: desk.n_steps_done() as u32,
        })),
    }
    desk.wait_until_kept();
    keeping.abort();
}

fn work(tools: &Tools, assignment: &Assignment, desk: &Arc<Desk>) -> Result<Option<Message>, Fault> {
    let read = || {
        desk.pulse().beat();
        desk.flow()
    };
    let renderer = tools.models.renderer(&assignment.model, &read)?;
    let spec = renderer.folder().spec();
    let latent = assignment.request.size.latent(spec.vae.factor());
    let place = tools.models.place();
    let fault = |message| Fault { cause: Cause::Device, message, blamed: None };
    let room = Room::check(place, spec, assignment).map_err(fault)?;
    let start = if assignment.n_steps_done == 0 {
        match &tools.noise {
            Some(noise) => {
                let latents = noise.tensor.squeeze(0).map_err(RankError::from)?;
                Start::Checkpoint { latents, clean: None }
            }
            None => Start::Seed,
        }
    } else {
        let fetched = checkpoint::fetch(tools.bulk.clone(), desk, latent, assignment.n_steps_done);
        desk.pulse().aside(|| tools.runtime.block_on(fetched))?
    };
    let peers = assignment.peers.iter().map(|peer| peer.address.clone()).collect();
    let attempt = (assignment.epoch, image_hash(assignment));
    let fabric = tools.port.open_with(desk.secrets.exchange, attempt, assignment.rank, peers);
    let bands = assignment.mesh.bands();
    let exchanges = Exchange::for_bands(
        &spec.dit,
        latent.tokens().n_tokens(),
        bands,
        if place.device().is_cpu() { Pace::CPU } else { Pace::GPU },
    );
    let seat = Seat { renderer: &renderer, assignment, fabric: &*fabric, exchanges: &exchanges, pools: &tools.pools };
    let outcome = seat.run(start, &**desk);
    room.compare(place, assignment);
    place.clear_spares();
    match outcome? {
        Outcome::Stopped { n_steps_done } => {
            let stopped = v1::Stopped { epoch: assignment.epoch.0, n_steps_done: n_steps_done as u32 };
            // Only what is kept can be gone on from.
            Ok(desk.wait_until_kept().then_some(Message::Stopped(stopped)))
        }
        Outcome::Done(None) => Ok(None),
        Outcome::Done(Some(rendered)) => {
            let model = metadata::ModelId {
                name: assignment.model.name.clone(),
                sha256: assignment.model.weights_sha256.clone(),
                digests: tools.models.digests(&assignment.model.name).cloned(),
            };
            let kind = assignment.artifact;
            let latents = tools.noise.as_ref().map(|noise| noise.sha256.clone());
            let numeric_class = place.numeric_class();
            let metadata = Metadata::of(&assignment.request, image::bit_depth(kind), model, latents);
            let metadata = Metadata { numeric_class, ..metadata };
            let bytes = image::encode(&rendered, kind, &metadata).map_err(|error| Fault {
                cause: Cause::Bug,
                message: format!("the picture could not be written: {error:#}"),
                blamed: None,
            })?;
            drop(rendered);
            desk.pulse().beat();
            desk.pass(HangAt::Upload);
            let artifact = upload::hand_in(tools.bulk.clone(), desk, bytes.into(), kind);
            let artifact = desk.pulse().aside(|| tools.runtime.block_on(artifact))?;
            Ok(artifact.map(|artifact| {
                Message::Finished(v1::Finished { epoch: assignment.epoch.0, artifact: Some(artifact) })
            }))
        }
    }
}

/// Tells images apart on the wire.
fn image_hash(assignment: &Assignment) -> u64 {
    let digest = Sha256::digest(assignment.image.to_string());
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}
