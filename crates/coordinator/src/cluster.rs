//! What workers say: sessions, checkpoints, pictures.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use control::{Input, MemberState};
use futures_util::{Stream, StreamExt};
use plan::{Epoch, ImageId, Rank, RowRange, WorkerId};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use wire::v1::cluster_service_server::ClusterService;
use wire::v1::session_request::Message as Report;
use wire::{checksum, v1};

use crate::artifact::{ArtifactError, Artifacts};
use crate::checkpoint::{Checkpoints, Origin, Place, PutError};
use crate::driver::{self, Desk};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::report;
use crate::status::status;
use uploads::{Limits, Upload, Uploads};

mod uploads;

/// How long a session may say nothing at its beginning.
const JOIN_WITHIN: Duration = Duration::from_secs(5);
/// How long rows wait for those of other ranks before their sender is asked to send them again.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);
/// How long the next part of rows or of a picture may take.
pub(crate) const PART_WITHIN: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 1 << 20;
/// Threads that read and write checkpoints at a time; the disk is no faster with more.
const DISK_THREADS: usize = 16;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves workers.
pub(crate) struct Members {
    desk: Desk,
    identity: Identity,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    metrics: Metrics,
    part_within: Duration,
    uploads: Uploads,
    disk: Semaphore,
}

impl Members {
    /// A sender of rows or of a picture that says nothing for `part_within` is hung up on.
    pub(crate) fn new(
        desk: Desk,
        identity: Identity,
        (checkpoints, artifacts): (Arc<Checkpoints>, Arc<Artifacts>),
        metrics: Metrics,
        part_within: Duration,
    ) -> Self {
        let (uploads, disk) = (Uploads::default(), Semaphore::new(DISK_THREADS));
        Self { desk, identity, checkpoints, artifacts, metrics, part_within, uploads, disk }
    }

    /// The seat that `secret` was given to, in an attempt that is on. From then on rows of its epoch are taken.
    async fn seat(&self, epoch: Epoch, rank: u32, secret: Bytes) -> Result<SeatView, Status> {
        let checkpoints = Arc::clone(&self.checkpoints);
        let identity = self.identity.clone();
        let found = self.desk.ask_for_member(move |control| {
            let attempt = control.attempt(epoch)?;
            let (job, image) = (control.job(&attempt.image.job)?, control.image(&attempt.image)?);
            let rank = attempt.mesh.ranks().find(|seat| u32::from(seat.0) == rank);
            let worker = rank.and_then(|rank| attempt.seats.get(usize::from(rank.0)));
            let Some((rank, worker)) = rank.zip(worker) else { return Some(None) };
            if !identity.is_seat_secret(&secret, (epoch, &attempt.image), rank, worker) {
                return Some(None);
            }
            let origin = Origin {
                weights_sha256: image.weights_sha256.clone().unwrap_or_default(),
                numeric_class: image.numeric_class.clone().unwrap_or_default(),
            };
            checkpoints.open_epoch(&attempt.image, epoch, origin);
            // A token is two cells high and wide.
            let cells = plan::geometry::TOKEN_CELLS;
            let (request, band) = (&job.spec.request, attempt.mesh.band(rank));
            let rows = attempt.mesh.bands().last()?.end * cells;
            Some(Some(SeatView {
                image: attempt.image.clone(),
                rank,
                rows,
                cols: request.size.width_px as usize * rows / request.size.height_px as usize,
                own_rows: RowRange { start: band.start * cells, end: band.end * cells },
                n_steps: (attempt.n_steps_before, request.steps as usize),
            }))
        });
        found.await?.ok_or_else(|| over(&PutError::Over(epoch)))?.ok_or_else(|| {
            self.metrics.stranger_refused();
            tracing::warn!(attempt = %epoch, rank, "somebody who is not in this seat was refused");
            let message = format!("the secret is not that of rank {rank} of attempt {epoch}: nothing was done");
            status(Code::PermissionDenied, "WRONG_SECRET", message, Some("secret"), None)
        })
    }

    fn begin_upload(&self, epoch: Epoch, rank: Rank) -> Result<Upload, Status> {
        self.uploads.begin(epoch, rank).ok_or_else(|| {
            let message = format!("rank {} of attempt {epoch} sends too much at once: end a transfer first", rank.0);
            status(Code::ResourceExhausted, "TRANSFERS", message, None, Some(Duration::from_secs(1)))
        })
    }

    /// Does what blocks on the disk.
    async fn on_disk<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let _turn = self.disk.acquire().await.map_err(|_| Status::internal("the disk's queue is closed"))?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Status::internal("the checkpoint's thread died"))
    }
}

/// What is asked of a seat in an attempt that is on.
struct SeatView {
    image: ImageId,
    rank: Rank,
    /// Of the latent.
    rows: usize,
    /// Of the latent.
    cols: usize,
    /// Rows of the latent that are the seat's own.
    own_rows: RowRange,
    /// Steps done when it began, steps in all.
    n_steps: (usize, usize),
}

impl Members {
    /// A checkpoint that an attempt begins with is missing or damaged: the image goes back to the newest one before it that
    /// is whole. That ends the attempt, and nobody is to blame.
    async fn checkpoint_lost(&self, image: ImageId, epoch: Epoch, n_steps_done: usize) -> Status {
        if !self.checkpoints.folder().is_there() {
            let folder = self.checkpoints.folder().path().display();
            let message = format!("the folder of checkpoints {folder} is not there: is its disk mounted?");
            return status(Code::Unavailable, "CHECKPOINTS_AWAY", message, None, Some(Duration::from_secs(5)));
        }
        let (checkpoints, of) = (Arc::clone(&self.checkpoints), image.clone());
        let newest = match self.on_disk(move || checkpoints.newest_whole(&of, n_steps_done)).await {
            Ok(newest) => newest,
            Err(status) => return status,
        };
        tracing::warn!(%image, attempt = %epoch, step = n_steps_done, newest, "a checkpoint is lost");
        if let Err(ending) = self.desk.tell(Input::CheckpointLost { image, n_steps_done: newest }).await {
            return ending.into();
        }
        let message = format!("the checkpoint after step {n_steps_done} is lost: the image goes on from step {newest}");
        status(Code::FailedPrecondition, "CHECKPOINT_LOST", message, None, None)
    }
}

/// Refuses what came for an epoch that is over.
fn over(error: &PutError) -> Status {
    status(Code::FailedPrecondition, "OLD_EPOCH", error.to_string(), Some("epoch"), None)
}

#[tonic::async_trait]
impl ClusterService for Members {
    type SessionStream = Answers<v1::SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let from = request.remote_addr().map(|remote| report::Origin::new(remote, request.local_addr()));
        let mut reports = request.into_inner();
        let first = tokio::time::timeout(JOIN_WITHIN, reports.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a session begins with a join"))??;
        let Some(v1::SessionRequest { message: Some(Report::Join(join)) }) = first else {
            return Err(Status::invalid_argument("a session begins with a join"));
        };
        let (worker, hello) = report::hello(join, from)?;
        let (session, orders) = self.desk.join(worker.clone(), hello).await?;
        let (desk, artifacts) = (self.desk.clone(), Arc::clone(&self.artifacts));
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                let input = report.message.and_then(|report| report::input_of(report, &worker, session));
                let Some(mut input) = input else { continue };
                if let Input::Finished { artifact, .. } = &input
                    && !artifacts.has(&artifact.sha256).await
                {
                    input = driver::made_again(input);
                }
                if desk.tell(input).await.is_err() {
                    return;
                }
            }
            drop(desk.tell(Input::Left { worker, session }).await);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(orders).map(Ok))))
    }

    async fn put_checkpoint(
        &self,
        request: Request<Streaming<v1::PutCheckpointRequest>>,
    ) -> Result<Response<v1::PutCheckpointResponse>, Status> {
        let mut parts = request.into_inner();
        let first = Limits::of(self.part_within, 0).next(&mut parts).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a checkpoint without a part"))?;
        let epoch = Epoch(first.epoch);
        let seat = self.seat(epoch, first.rank, first.secret.clone()).await?;
        let _upload = self.begin_upload(epoch, seat.rank)?;
        let SeatView { image, rows: all_rows, cols, own_rows, n_steps, .. } = seat;
        let n_steps_done = first.n_steps_done as usize;
        if n_steps_done <= n_steps.0 || n_steps_done > n_steps.1 {
            let message =
                format!("rows after step {n_steps_done} of an attempt at steps {} to {}", n_steps.0, n_steps.1);
            return Err(status(Code::InvalidArgument, "STEP_OUT_OF_RANGE", message, Some("n_steps_done"), None));
        }
        let (first_row, n_rows) = (first.first_row as usize, first.n_rows as usize);
        let place = Place { n_steps_done, first_row, n_rows, all_rows, cols };
        if n_rows == 0 || first_row < own_rows.start || first_row + n_rows > own_rows.end {
            let (end, RowRange { start, end: own_end }) = (first_row + n_rows, own_rows);
            let message = format!("rows {first_row} to {end} from a seat that has {start} to {own_end}");
            return Err(status(Code::InvalidArgument, "ROWS_OUT_OF_RANGE", message, Some("n_rows"), None));
        }
        let limits = Limits::of(self.part_within, place.n_bytes() as u64);
        let mut bytes = BytesMut::with_capacity(place.n_bytes());
        let mut crc32c = first.crc32c;
        bytes.extend_from_slice(&first.chunk);
        while let Some(part) = limits.next(&mut parts).await? {
            bytes.extend_from_slice(&part.chunk);
            crc32c = part.crc32c;
            if bytes.len() > place.n_bytes() {
                break;
            }
        }
        if bytes.len() != place.n_bytes() || checksum::crc32c(&bytes) != crc32c {
            return Err(Status::data_loss(format!("rows of {} bytes are damaged", bytes.len())));
        }
        let (checkpoints, bytes) = (Arc::clone(&self.checkpoints), bytes.freeze());
        let of = image.clone();
        let is_whole = match self.on_disk(move || checkpoints.put(&of, epoch, place, &bytes)).await? {
            Ok(is_whole) => is_whole,
            Err(error @ PutError::Over(_)) => return Err(over(&error)),
            Err(error @ PutError::Disk { .. }) => {
                tracing::error!(%error, "no room for a checkpoint");
                self.desk.tell(Input::ArtifactRefused { epoch, message: error.to_string() }).await?;
                return Err(status(Code::Unavailable, "CHECKPOINT_DISK", error.to_string(), None, None));
            }
        };
        self.metrics.rows_kept(place.n_bytes() as u64);
        if is_whole {
            self.desk.tell(Input::StepKept { epoch, n_steps_done }).await?;
        } else {
            // Half a step is in memory alone, so it counts as kept for nobody before the other half is there.
            let kept = self.checkpoints.until_kept(&image, epoch, n_steps_done);
            let waited = tokio::time::timeout(WHOLE_WITHIN, kept).await;
            let missing = |_| Status::unavailable("rows of other ranks are missing: send these again");
            waited.map_err(missing)?.map_err(|error| over(&error))?;
        }
        Ok(Response::new(v1::PutCheckpointResponse {}))
    }

    type GetCheckpointStream = Answers<v1::GetCheckpointResponse>;

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<Self::GetCheckpointStream>, Status> {
        let v1::GetCheckpointRequest { epoch, rank, secret } = request.into_inner();
        let epoch = Epoch(epoch);
        let SeatView { image, n_steps: (n_steps_done, _), .. } = self.seat(epoch, rank, secret).await?;
        let (checkpoints, of) = (Arc::clone(&self.checkpoints), image.clone());
        let Some(bytes) = self.on_disk(move || checkpoints.get(&of, n_steps_done)).await? else {
            return Err(self.checkpoint_lost(image, epoch, n_steps_done).await);
        };
        let crc32c = checksum::crc32c(&bytes);
        let n = bytes.len().div_ceil(CHUNK_BYTES).max(1);
        let parts = (0..n).map(move |idx| {
            let chunk: Bytes = bytes.slice(idx * CHUNK_BYTES..((idx + 1) * CHUNK_BYTES).min(bytes.len()));
            Ok(v1::GetCheckpointResponse { n_steps_done: n_steps_done as u32, chunk, crc32c })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts))))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::PutArtifactRequest>>,
    ) -> Result<Response<v1::PutArtifactResponse>, Status> {
        let mut parts = request.into_inner();
        let first = Limits::of(self.part_within, 0).next(&mut parts).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a picture without a part"))?;
        let epoch = Epoch(first.epoch);
        let seat = self.seat(epoch, 0, first.secret).await?;
        let _upload = self.begin_upload(epoch, seat.rank)?;
        let artifact = first.artifact.ok_or_else(|| Status::invalid_argument("a picture without its hash"))?;
        let artifact_bytes = artifact.size_bytes;
        let began = Instant::now();
        let limits = Limits::of(self.part_within, artifact_bytes);
        let mut next = Some(first.chunk);
        let mut left_bytes = artifact_bytes;
        let mut incoming = self.artifacts.begin().await;
        while let Some(chunk) = next.take() {
            left_bytes = left_bytes.checked_sub(chunk.len() as u64).ok_or_else(|| {
                let message = format!("a picture of more than the {artifact_bytes} bytes that were announced");
                status(Code::InvalidArgument, "ARTIFACT_SIZE", message, Some("artifact"), None)
            })?;
            let written = match &mut incoming {
                Ok(incoming) => incoming.write(&chunk).await,
                Err(_) => break,
            };
            if let Err(error) = written {
                incoming = Err(error);
                break;
            }
            next = limits.next(&mut parts).await?.map(|part| part.chunk);
        }
        let kept = match incoming {
            Ok(incoming) => incoming.finish(&artifact.sha256).await,
            Err(error) => Err(error),
        };
        self.metrics.picture_kept(began.elapsed(), kept.is_ok());
        match kept {
            Ok(()) => Ok(Response::new(v1::PutArtifactResponse {})),
            Err(error @ ArtifactError::Disk { .. }) => {
                tracing::error!(%error, "no room for a picture");
                self.desk.tell(Input::ArtifactRefused { epoch, message: error.to_string() }).await?;
                let again = Some(Duration::from_secs(5));
                Err(status(Code::ResourceExhausted, "ARTIFACT_DISK", error.to_string(), None, again))
            }
            Err(error @ ArtifactError::Hash { .. }) => Err(Status::data_loss(error.to_string())),
        }
    }

    async fn drain_worker(
        &self,
        request: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        let worker = WorkerId(request.into_inner().worker);
        let wanted = worker.clone();
        let member =
            self.desk.ask_for_member(move |control| control.members().find(|view| view.worker == wanted)).await?;
        if let Some(view) = member.as_ref().filter(|view| view.state != MemberState::Draining) {
            self.desk.tell(Input::Drain { worker, session: view.session }).await?;
        }
        Ok(Response::new(v1::DrainWorkerResponse { is_member: member.is_some() }))
    }
}

#[cfg(test)]
mod tests;
