//! Checkpoints to and from the coordinator: rows behind a step up, the whole latent down.
//!
//! Bytes are f32 values, little-endian, latent then clean latent, under one CRC-32C.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use candle_core::{Device, Tensor};
use parallel::{Pulse, Start, StepRows};
use plan::{Cause, LatentSize};
use tonic::Status;
use tonic::transport::Channel;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::{checksum, v1};

use crate::answer::{Meaning, Tries};
use crate::desk::Desk;
use crate::outgoing::Outgoing;
use crate::part::Fault;

/// Bytes of one message.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Sends the rows of a part as they come, until it is over. Rows that are never taken end the part.
pub(crate) async fn keep_rows(channel: Channel, desk: &Desk) {
    let mut client = ClusterServiceClient::new(channel);
    let mut tries = Tries::default();
    while let Some(rows) = desk.next_rows().await {
        let parts = parts_of(desk, &rows);
        loop {
            match client.put_checkpoint(Outgoing::new(parts.clone(), desk.pulse())).await {
                Ok(_) => {
                    tries.taken();
                    break;
                }
                Err(status) => match tries.judge(&status) {
                    Meaning::Again => tracing::debug!(%status, "the rows were not taken"),
                    Meaning::Over => break,
                    Meaning::Never(cause) => {
                        let n_steps_done = rows.n_steps_done;
                        let message =
                            format!("the coordinator does not take the rows of step {n_steps_done}: {}", told(&status));
                        desk.give_up_with(Fault { cause, message, blamed: None });
                        return;
                    }
                },
            }
            pause(desk, tries.pause()).await;
            if desk.is_over() || desk.has_newer_rows() {
                break;
            }
        }
    }
}

/// Waits for a while, or until the part is over.
pub(crate) async fn pause(desk: &Desk, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = desk.until_over() => {}
    }
}

/// A status as people read it.
pub(crate) fn told(status: &Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
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
        first.secret = desk.secrets.seat.clone();
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

/// Fetches the checkpoint a part begins with, `n_steps_done` steps on. Asks until the coordinator is there or the part is
/// over.
pub(crate) async fn fetch(
    channel: Channel,
    desk: &Desk,
    latent: LatentSize,
    n_steps_done: usize,
) -> Result<Start, Fault> {
    let fault = |cause, why: String| Fault {
        cause,
        message: format!("the checkpoint behind step {n_steps_done} did not come: {why}"),
        blamed: None,
    };
    let mut tries = Tries::default();
    loop {
        let fetched = tokio::select! {
            fetched = fetch_once(channel.clone(), desk, latent) => fetched,
            () = desk.until_over() => return Err(fault(Cause::Peer, "the part is over".into())),
        };
        let status = match fetched {
            Ok(start) => return Ok(start),
            Err(status) => status,
        };
        match tries.judge(&status) {
            // The coordinator has lost it, or what came is damaged: its failures count, so that this ends.
            _ if status.code() == tonic::Code::DataLoss => return Err(fault(Cause::Peer, status.message().to_owned())),
            Meaning::Again => tracing::debug!(%status, "the checkpoint did not come"),
            Meaning::Over => return Err(fault(Cause::Peer, status.message().to_owned())),
            Meaning::Never(cause) => return Err(fault(cause, told(&status))),
        }
        pause(desk, tries.pause()).await;
    }
}

async fn fetch_once(channel: Channel, desk: &Desk, latent: LatentSize) -> Result<Start, Status> {
    let mut client = ClusterServiceClient::new(channel);
    let (epoch, rank) = (desk.epoch.0, desk.rank.0.into());
    let asked = v1::GetCheckpointRequest { epoch, rank, secret: desk.secrets.seat.clone() };
    let mut parts = client.get_checkpoint(asked).await?.into_inner();
    // It has begun to come: whether it goes on is seen.
    let _coming = Pulse::at_work_while(&**desk.pulse());
    let n_values = 4 * latent.rows * latent.cols;
    let (mut bytes, mut expected_crc) = (BytesMut::with_capacity(8 * n_values), 0);
    while let Some(part) = parts.message().await? {
        desk.pulse().beat();
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
