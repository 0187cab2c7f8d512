//! What workers say: sessions, checkpoints, pictures.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use control::{Input, MemberState};
use futures_util::{Stream, StreamExt};
use plan::{Epoch, ImageId, WorkerId};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use wire::v1::cluster_service_server::ClusterService;
use wire::v1::session_request::Message as Report;
use wire::{checksum, v1};

use crate::artifact::{ArtifactError, Artifacts};
use crate::checkpoint::{Checkpoints, Place, PutError};
use crate::driver::Desk;
use crate::metrics::Metrics;
use crate::report;
use crate::status::status;

/// How long a session may say nothing at its beginning.
const JOIN_WITHIN: Duration = Duration::from_secs(5);
/// How long rows wait for those of other ranks before their sender is asked to send them again.
const WHOLE_WITHIN: Duration = Duration::from_secs(5);
/// How long the next part of rows or of a picture may take.
pub(crate) const PART_WITHIN: Duration = Duration::from_secs(30);
const CHUNK_BYTES: usize = 1 << 20;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves workers.
pub(crate) struct Members {
    desk: Desk,
    checkpoints: Arc<Checkpoints>,
    artifacts: Arc<Artifacts>,
    metrics: Metrics,
    part_within: Duration,
}

impl Members {
    /// A sender of rows or of a picture that says nothing for `part_within` is hung up on.
    pub(crate) fn new(
        desk: Desk,
        checkpoints: Arc<Checkpoints>,
        artifacts: Arc<Artifacts>,
        metrics: Metrics,
        part_within: Duration,
    ) -> Self {
        Self { desk, checkpoints, artifacts, metrics, part_within }
    }

    /// The next part of what is sent. A sender that says nothing holds nothing here.
    async fn next_part<T>(&self, parts: &mut Streaming<T>) -> Result<Option<T>, Status> {
        let next = tokio::time::timeout(self.part_within, parts.message()).await;
        next.map_err(|_| Status::deadline_exceeded("the next part did not come"))?
    }

    /// An attempt that is on. From then on rows of its epoch are taken.
    async fn attempt(&self, epoch: Epoch) -> Result<AttemptView, Status> {
        let checkpoints = Arc::clone(&self.checkpoints);
        let found = self.desk.ask(move |control| {
            let attempt = control.attempt(epoch)?;
            let job = control.job(&attempt.image.job)?;
            checkpoints.open_epoch(&attempt.image, epoch);
            // A token is two cells high and wide.
            let request = &job.spec.request;
            let rows = attempt.mesh.bands().last()?.end * plan::geometry::TOKEN_CELLS;
            let cols = request.size.width_px as usize * rows / request.size.height_px as usize;
            let n_steps = (attempt.n_steps_before, request.steps as usize);
            Some(AttemptView { image: attempt.image.clone(), rows, cols, n_steps })
        });
        found.await?.ok_or_else(|| over(&PutError::Over(epoch)))
    }
}

/// What is asked of an attempt that is on.
struct AttemptView {
    image: ImageId,
    /// Of the latent.
    rows: usize,
    /// Of the latent.
    cols: usize,
    /// Steps done when it began, steps in all.
    n_steps: (usize, usize),
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
        let (session, orders) = self.desk.open().await?;
        self.desk.tell(Input::Join { worker: worker.clone(), session, hello }).await?;
        let desk = self.desk.clone();
        tokio::spawn(async move {
            while let Ok(Some(report)) = reports.message().await {
                let input = report.message.and_then(|report| report::input_of(report, &worker, session));
                if let Some(input) = input
                    && desk.tell(input).await.is_err()
                {
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
        let first = self.next_part(&mut parts).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a checkpoint without a part"))?;
        let epoch = Epoch(first.epoch);
        let AttemptView { image, rows: all_rows, cols, n_steps } = self.attempt(epoch).await?;
        let n_steps_done = first.n_steps_done as usize;
        if n_steps_done <= n_steps.0 || n_steps_done > n_steps.1 {
            let message =
                format!("rows behind step {n_steps_done} of an attempt at steps {} to {}", n_steps.0, n_steps.1);
            return Err(status(Code::InvalidArgument, "STEP_OUT_OF_RANGE", message, Some("n_steps_done"), None));
        }
        let (first_row, n_rows) = (first.first_row as usize, first.n_rows as usize);
        let place = Place { n_steps_done, first_row, n_rows, all_rows, cols };
        if n_rows == 0 || first_row + n_rows > all_rows {
            let message = format!("rows {first_row} to {} of {all_rows}", first_row + n_rows);
            return Err(status(Code::InvalidArgument, "ROWS_OUT_OF_RANGE", message, Some("n_rows"), None));
        }
        let mut bytes = BytesMut::with_capacity(place.n_bytes());
        let mut crc32c = first.crc32c;
        bytes.extend_from_slice(&first.chunk);
        while let Some(part) = self.next_part(&mut parts).await? {
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
        let put = tokio::task::spawn_blocking(move || checkpoints.put(&of, epoch, place, &bytes)).await;
        let put = put.map_err(|_| Status::internal("the checkpoint's thread died"))?;
        let is_whole = match put {
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
        let epoch = Epoch(request.into_inner().epoch);
        let AttemptView { image, n_steps: (n_steps_done, _), .. } = self.attempt(epoch).await?;
        let checkpoints = Arc::clone(&self.checkpoints);
        let message = format!(
            "the checkpoint of image {image} behind step {n_steps_done} is gone or damaged: once the image has failed, \
             `fresco retry {}` begins it anew",
            image.job
        );
        let found = tokio::task::spawn_blocking(move || checkpoints.get(&image, n_steps_done)).await;
        // Whoever asked cannot do its part. Its failures count, so that this ends: the image fails and says this.
        let bytes = found.ok().flatten();
        let bytes = bytes.ok_or_else(|| status(Code::DataLoss, "CHECKPOINT_LOST", message, None, None))?;
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
        let first = self.next_part(&mut parts).await?;
        let first = first.ok_or_else(|| Status::invalid_argument("a picture without a part"))?;
        let epoch = Epoch(first.epoch);
        self.attempt(epoch).await?;
        let artifact = first.artifact.ok_or_else(|| Status::invalid_argument("a picture without its hash"))?;
        let artifact_bytes = artifact.size_bytes;
        let began = Instant::now();
        let (chunks, mut incoming) = mpsc::channel::<Bytes>(8);
        let artifacts = Arc::clone(&self.artifacts);
        let keeping = tokio::task::spawn_blocking(move || {
            let mut file = artifacts.begin()?;
            while let Some(chunk) = incoming.blocking_recv() {
                file.write(&chunk)?;
            }
            file.finish(&artifact.sha256)
        });
        let mut next = Some(first.chunk);
        let mut left_bytes = artifact_bytes;
        // If the disk is at fault the thread has ended; its answer says so.
        while let Some(chunk) = next.take() {
            left_bytes = left_bytes.checked_sub(chunk.len() as u64).ok_or_else(|| {
                let message = format!("a picture of more than the {artifact_bytes} bytes that were announced");
                status(Code::InvalidArgument, "ARTIFACT_SIZE", message, Some("artifact"), None)
            })?;
            if chunks.send(chunk).await.is_err() {
                break;
            }
            next = self.next_part(&mut parts).await?.map(|part| part.chunk);
        }
        drop(chunks);
        let kept = keeping.await.map_err(|_| Status::internal("the picture's thread died"))?;
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
        let member = self.desk.ask(move |control| control.members().find(|view| view.worker == wanted)).await?;
        if let Some(view) = member.as_ref().filter(|view| view.state != MemberState::Draining) {
            self.desk.tell(Input::Drain { worker, session: view.session }).await?;
        }
        Ok(Response::new(v1::DrainWorkerResponse { is_member: member.is_some() }))
    }
}

#[cfg(test)]
mod tests;
