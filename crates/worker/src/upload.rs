//! A finished picture on its way to the coordinator, tried until it is durable there or nobody wants it.

use std::sync::Arc;

use bytes::Bytes;
use plan::ArtifactKind;
use sha2::{Digest, Sha256};
use tonic::transport::Channel;
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;

use crate::answer::{Meaning, Tries};
use crate::checkpoint::{chunks, pause, told};
use crate::desk::Desk;
use crate::outgoing::Outgoing;
use crate::part::Fault;

/// Hands in a picture's bytes. Nothing if its epoch is over.
pub(crate) async fn hand_in(
    channel: Channel,
    desk: &Arc<Desk>,
    bytes: Bytes,
    kind: ArtifactKind,
) -> Result<Option<v1::Artifact>, Fault> {
    let artifact = v1::Artifact {
        sha256: Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
        size_bytes: bytes.len() as u64,
        kind: wire::convert::kind_of(kind).into(),
    };
    let parts: Vec<_> = chunks(&bytes)
        .enumerate()
        .map(|(idx, chunk)| v1::PutArtifactRequest {
            epoch: desk.epoch.0,
            artifact: (idx == 0).then(|| artifact.clone()),
            chunk,
            secret: if idx == 0 { desk.secrets.seat.clone() } else { Bytes::new() },
        })
        .collect();
    let mut client = ClusterServiceClient::new(channel);
    let mut tries = Tries::default();
    while !desk.is_over() {
        let handed_in = tokio::select! {
            handed_in = client.put_artifact(Outgoing::new(parts.clone(), desk.pulse())) => handed_in,
            () = desk.until_over() => return Ok(None),
        };
        let status = match handed_in {
            Ok(_) => return Ok(Some(artifact)),
            Err(status) => status,
        };
        match tries.judge(&status) {
            Meaning::Over => return Ok(None),
            Meaning::Again => tracing::warn!(%status, "the picture was not taken yet"),
            Meaning::Never(cause) => {
                let message = format!("the coordinator does not take the picture: {}", told(&status));
                return Err(Fault { cause, message, blamed: None });
            }
        }
        pause(desk, tries.pause()).await;
    }
    Ok(None)
}
