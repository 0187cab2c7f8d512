//! A finished picture on its way to the coordinator, tried until it is durable there or nobody wants it.

use std::time::Duration;

use bytes::Bytes;
use plan::ArtifactKind;
use sha2::{Digest, Sha256};
use tonic::Code;
use tonic::transport::Channel;
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;

use crate::checkpoint::chunks;
use crate::desk::Desk;

/// Hands in a picture's bytes. Nothing if its epoch is over.
pub(crate) async fn hand_in(channel: Channel, desk: &Desk, bytes: Bytes, kind: ArtifactKind) -> Option<v1::Artifact> {
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
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
        })
        .collect();
    let mut client = ClusterServiceClient::new(channel);
    let mut pause = Duration::from_millis(100);
    while !desk.is_cancelled() {
        match client.put_artifact(tokio_stream::iter(parts.clone())).await {
            Ok(_) => return Some(artifact),
            Err(status) if status.code() == Code::FailedPrecondition => return None,
            Err(status) => tracing::warn!(%status, "the picture was not taken yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    None
}
