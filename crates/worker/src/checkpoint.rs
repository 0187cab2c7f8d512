//! Checkpoints to and from the coordinator: rows behind a step up, the whole latent down.
//!
//! Bytes are f32 values, little-endian, latent then clean latent, under one CRC-32C.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use candle_core::{Device, Tensor};
use parallel::{Start, StepRows};
use plan::{Epoch, LatentSize};
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::{checksum, v1};

use crate::desk::Desk;

/// Bytes of one message.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// Before a call is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends the rows of a part as they come, until it is cancelled.
pub(crate) async fn keep_rows(channel: Channel, desk: &Desk) {
    let mut client = ClusterServiceClient::new(channel);
    while let Some(rows) = desk.next_rows().await {
        let parts = parts_of(desk, &rows);
        loop {
            match client.put_checkpoint(tokio_stream::iter(parts.clone())).await {
                Ok(_) => break,
                // The epoch is over; whoever ended it says so on the session.
                Err(status) if status.code() == Code::FailedPrecondition => break,
                Err(status) => tracing::debug!(%status, "the rows were not taken"),
            }
            tokio::time::sleep(PAUSE).await;
            if desk.is_cancelled() || desk.has_newer_rows() {
                break;
            }
        }
    }
}

fn parts_of(desk: &Desk, rows: &StepRows) -> Vec<v1::PutCheckpointRequest> {
    let mut bytes = BytesMut::with_capacity(4 * (rows.latents.len() + rows.clean.len()));
    rows.latents.iter().chain(&rows.clean).for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    let bytes = bytes.freeze();
    let mut parts: Vec<_> =
        chunks(&bytes).map(|chunk| v1::PutCheckpointRequest { chunk, ..v1::PutCheckpointRequest::default() }).collect();
    if let Some(last) = parts.last_mut() {
        last.crc32c = checksum::crc32c(&bytes);
    }
    if let Some(first) = parts.first_mut() {
        first.epoch = desk.epoch.0;
        first.rank = desk.rank.0.into();
        first.n_steps_done = rows.n_steps_done as u32;
        first.first_row = rows.band.start as u32;
        first.n_rows = rows.band.n_rows() as u32;
    }
    parts
}

/// The bytes in pieces of one message, sharing their memory; one empty piece if there are none.
pub(crate) fn chunks(bytes: &Bytes) -> impl Iterator<Item = Bytes> + '_ {
    let n = bytes.len().div_ceil(CHUNK_BYTES).max(1);
    (0..n).map(|idx| bytes.slice(idx * CHUNK_BYTES..((idx + 1) * CHUNK_BYTES).min(bytes.len())))
}

/// Fetches the checkpoint `epoch` begins with.
pub(crate) async fn fetch(channel: Channel, epoch: Epoch, latent: LatentSize) -> Result<Start, Status> {
    let mut client = ClusterServiceClient::new(channel);
    let mut parts = client.get_checkpoint(v1::GetCheckpointRequest { epoch: epoch.0 }).await?.into_inner();
    let n_values = 4 * latent.rows * latent.cols;
    let (mut bytes, mut expected_crc) = (BytesMut::with_capacity(8 * n_values), 0);
    while let Some(part) = parts.message().await? {
        bytes.extend_from_slice(&part.chunk);
        expected_crc = part.crc32c;
        if bytes.len() > 8 * n_values {
            return Err(Status::data_loss(format!("a checkpoint of more than {} bytes", 8 * n_values)));
        }
    }
    if bytes.len() != 8 * n_values || checksum::crc32c(&bytes) != expected_crc {
        return Err(Status::data_loss(format!("a checkpoint of {} bytes is damaged", bytes.len())));
    }
    let tensor = |bytes: &[u8]| {
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Tensor::from_vec(values, (4, latent.rows, latent.cols), &Device::Cpu)
            .map_err(|error| Status::internal(error.to_string()))
    };
    Ok(Start::Checkpoint { latents: tensor(&bytes[..4 * n_values])?, clean: Some(tensor(&bytes[4 * n_values..])?) })
}
