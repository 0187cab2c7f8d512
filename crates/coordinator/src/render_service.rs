//! What clients ask: requests become inputs, answers become messages.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use control::{ArtifactRef, ControlError, Input, JobSpec};
use futures_util::Stream;
use plan::{ImageId, ImageIdx, JobId};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use wire::v1::render_service_server::RenderService;
use wire::{convert, v1};

use crate::artifact::{Artifacts, ReadError};
use crate::driver::{Changes, Desk};
use crate::gc::Collector;
use crate::job_view;
use crate::report;
use crate::status::{invalid, of_control, of_refusal, status};

/// Bytes of one part of a picture.
const CHUNK_BYTES: usize = 256 << 10;
const LONGEST_REQUEST_ID: usize = 256;
/// Of a job's id and of a page token, as far as they are looked at and repeated; ours are shorter.
const LONGEST_ID_BYTES: usize = 64;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves clients.
pub(crate) struct Clients {
    desk: Desk,
    artifacts: Arc<Artifacts>,
    collector: Collector,
}

impl Clients {
    pub(crate) fn new(desk: Desk, artifacts: Arc<Artifacts>, collector: Collector) -> Self {
        Self { desk, artifacts, collector }
    }

    async fn job(&self, id: JobId) -> Result<v1::Job, Status> {
        let wanted = id.clone();
        let job = self.desk.ask(move |control| job_view::job(control, &wanted)).await?;
        job.ok_or_else(|| not_found(id))
    }

    /// The picture of an image that is done.
    async fn artifact(&self, id: &ImageId) -> Result<ArtifactRef, Status> {
        let asked = id.clone();
        let (n_images, artifact) = self
            .desk
            .ask(move |control| {
                let n_images = control.job(&asked.job).map(|job| job.images.len());
                (n_images, control.image(&asked).and_then(|image| image.artifact.clone()))
            })
            .await?;
        let n_images = n_images.ok_or_else(|| not_found(id.job.clone()))?;
        let ImageId { job, image } = id;
        if image.0 as usize >= n_images {
            let message = format!("job `{job}` has no image {image}: its {n_images} images are counted from 0");
            return Err(status(Code::NotFound, "IMAGE_NOT_FOUND", message, Some("image"), None));
        }
        artifact.ok_or_else(|| {
            let message = format!("image {image} of job `{job}` is not done: `fresco get {job}` says where it is");
            status(Code::FailedPrecondition, "IMAGE_NOT_DONE", message, Some("image"), None)
        })
    }
}

fn not_found(job: JobId) -> Status {
    of_control(&ControlError::NotFound { job })
}

/// A job's id as a client gives it. One that is longer than ours is no job's, and not repeated in full.
fn job_id(id: String) -> JobId {
    JobId(report::cut(id, LONGEST_ID_BYTES))
}

/// What a client is told of a picture that cannot be given out. The machine hears of one that is lost.
async fn unread(desk: &Desk, image: &ImageId, artifact: &ArtifactRef, error: &ReadError) -> Status {
    let ImageId { job, image: index } = image;
    match error {
        ReadError::Away { .. } => {
            let message = format!("image {index} of job `{job}` cannot be read now: {error}");
            status(Code::Unavailable, "ARTIFACTS_AWAY", message, None, Some(Duration::from_secs(5)))
        }
        ReadError::Lost { .. } => {
            tracing::error!(%image, sha256 = artifact.sha256, %error, "a picture is lost");
            let message = format!("the picture is lost: {error}");
            let input = Input::PictureLost { image: image.clone(), sha256: artifact.sha256.clone(), message };
            // If the coordinator is ending, whoever asks it next finds the same.
            drop(desk.tell(input).await);
            let message = format!("image {index} of job `{job}` is lost: {error}: `fresco retry {job}` makes it again");
            status(Code::DataLoss, "ARTIFACT_LOST", message, None, None)
        }
    }
}

#[tonic::async_trait]
impl RenderService for Clients {
    async fn create_job(
        &self,
        request: Request<v1::CreateJobRequest>,
    ) -> Result<Response<v1::CreateJobResponse>, Status> {
        let v1::CreateJobRequest { spec, request_id } = request.into_inner();
        let spec = spec.ok_or_else(|| invalid(&convert::ConvertError::Missing { field: "spec" }))?;
        if spec.model.is_empty() {
            return Err(invalid(&convert::ConvertError::Missing { field: "spec.model" }));
        }
        if !report::is_name(&spec.model) {
            let message =
                "the name of a model has 1 to 128 bytes and no control characters: give the name of its folder";
            return Err(status(Code::InvalidArgument, "MODEL", message, Some("spec.model"), None));
        }
        if request_id.len() > LONGEST_REQUEST_ID {
            let message = format!("a request id of {} bytes: use at most {LONGEST_REQUEST_ID}", request_id.len());
            return Err(status(Code::InvalidArgument, "REQUEST_ID_TOO_LONG", message, Some("request_id"), None));
        }
        let wished = convert::request_of(&spec).map_err(|error| invalid(&error))?;
        wished.check_seeds(spec.count).map_err(|error| invalid(&error.into()))?;
        let spec = JobSpec {
            request: wished,
            artifact: convert::artifact_kind(spec.artifact_kind).map_err(|error| invalid(&error))?,
            model: spec.model,
            count: spec.count,
        };
        let job = new_job_id(SystemTime::now());
        let accepted = self.desk.request(|reply| Input::Submit { job, request_id, spec, reply }).await?;
        let job = self.job(accepted.map_err(|refusal| of_refusal(&refusal))?).await?;
        Ok(Response::new(v1::CreateJobResponse { job: Some(job) }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let job = self.job(job_id(request.into_inner().id)).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest { page_size, page_token } = request.into_inner();
        let page_size = if page_size == 0 { 50 } else { page_size.min(500) } as usize;
        let before: Option<u64> = if page_token.is_empty() {
            None
        } else {
            Some(page_token.parse().map_err(|_| {
                let page_token = report::cut(page_token.clone(), LONGEST_ID_BYTES);
                let message = format!("invalid page token `{page_token}`: begin without one");
                status(Code::InvalidArgument, "PAGE_TOKEN", message, Some("page_token"), None)
            })?)
        };
        let page = move |control: &control::Control| job_view::page(control, before, page_size);
        Ok(Response::new(self.desk.ask(page).await?))
    }

    type WatchJobStream = Answers<v1::WatchJobResponse>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let v1::WatchJobRequest { id, after_revision } = request.into_inner();
        let id = job_id(id);
        // Listens first, looks then: nothing falls between.
        let changes = self.desk.watch(id.clone()).await?.ok_or_else(|| not_found(id.clone()))?;
        let (answers, stream) = mpsc::channel(64);
        let watcher = Watcher { desk: self.desk.clone(), id, seen: after_revision, answers };
        tokio::spawn(watcher.run(changes));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let job = job_id(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Cancel { job, reply }).await?;
        let job = self.job(answer.map_err(|refusal| of_refusal(&refusal))?).await?;
        Ok(Response::new(v1::CancelJobResponse { job: Some(job) }))
    }

    async fn retry_job(&self, request: Request<v1::RetryJobRequest>) -> Result<Response<v1::RetryJobResponse>, Status> {
        let job = job_id(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Retry { job, reply }).await?;
        let job = self.job(answer.map_err(|refusal| of_refusal(&refusal))?).await?;
        Ok(Response::new(v1::RetryJobResponse { job: Some(job) }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let job = job_id(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Delete { job, reply }).await?;
        answer.map_err(|refusal| of_refusal(&refusal))?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    type GetArtifactStream = Answers<v1::GetArtifactResponse>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let v1::GetArtifactRequest { job, image } = request.into_inner();
        let id = ImageId { job: job_id(job), image: ImageIdx(image) };
        let artifact = self.artifact(&id).await?;
        let mut outgoing = match self.artifacts.open(&artifact.sha256, artifact.size_bytes).await {
            Ok(outgoing) => outgoing,
            Err(error) => {
                // Deleted meanwhile, or made again: then that is said.
                if self.artifact(&id).await? != artifact {
                    return Err(status(Code::Unavailable, "ARTIFACT_CHANGED", "fetch it again", None, None));
                }
                return Err(unread(&self.desk, &id, &artifact, &error).await);
            }
        };
        let desk = self.desk.clone();
        let (answers, stream) = mpsc::channel(2);
        tokio::spawn(async move {
            let mut announced = Some(job_view::artifact(&artifact));
            loop {
                let answer = match outgoing.next(CHUNK_BYTES).await {
                    Ok(chunk) if chunk.is_empty() && announced.is_none() => break,
                    Ok(chunk) => Ok(v1::GetArtifactResponse { artifact: announced.take(), chunk: Bytes::from(chunk) }),
                    Err(error) => Err(unread(&desk, &id, &artifact, &error).await),
                };
                let is_last = answer.is_err();
                if answers.send(answer).await.is_err() || is_last {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type CollectGarbageStream = Answers<v1::CollectGarbageResponse>;

    async fn collect_garbage(
        &self,
        request: Request<v1::CollectGarbageRequest>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        let v1::CollectGarbageRequest { older_than_ms, delete } = request.into_inner();
        let (answers, stream) = mpsc::channel(64);
        tokio::spawn(self.collector.clone().collect(Duration::from_millis(older_than_ms), delete, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// One client that watches one job.
struct Watcher {
    desk: Desk,
    id: JobId,
    seen: u64,
    answers: mpsc::Sender<Result<v1::WatchJobResponse, Status>>,
}

impl Watcher {
    async fn run(mut self, mut changes: Changes) {
        if !self.snapshot().await {
            return;
        }
        loop {
            let change = tokio::select! {
                change = changes.recv() => change,
                () = self.answers.closed() => return,
            };
            let goes_on = match change {
                Ok(change) if change.revision <= self.seen => true,
                Ok(change) => self.tell(&change).await,
                // Too slow for every event: what is true now, then on from there.
                Err(broadcast::error::RecvError::Lagged(_)) => self.snapshot().await,
                Err(broadcast::error::RecvError::Closed) => false,
            };
            if !goes_on {
                return;
            }
        }
    }

    /// The job's images as they stand, if something happened since what was seen. False at the end of the job.
    async fn snapshot(&mut self) -> bool {
        let id = self.id.clone();
        let Ok(Some(job)) = self.desk.ask(move |control| job_view::job(control, &id)).await else { return false };
        if self.seen > job.revision {
            // Seen of another job, or of this one before its store was restored: nothing can be gone on from.
            self.seen = 0;
        }
        if job.revision > self.seen || job_view::is_over(job.state) {
            let steps = job.spec.as_ref().map_or(0, |spec| spec.steps);
            let n_images = job.images.len();
            for (idx, image) in job.images.into_iter().enumerate() {
                // Who breaks off amid a snapshot begins it anew.
                let revision = if idx + 1 == n_images { job.revision } else { self.seen };
                let job_state = job.state;
                let response =
                    v1::WatchJobResponse { revision, job: job.id.clone(), image: Some(image), steps, job_state };
                if self.answers.send(Ok(response)).await.is_err() {
                    return false;
                }
            }
            self.seen = self.seen.max(job.revision);
        }
        !job_view::is_over(job.state)
    }

    async fn tell(&mut self, change: &v1::WatchJobResponse) -> bool {
        self.seen = change.revision;
        let is_over = job_view::is_over(change.job_state);
        self.answers.send(Ok(change.clone())).await.is_ok() && !is_over
    }
}

/// An id nobody has: in order of time, as far as the clock tells one. A clock before 1970 tells none.
fn new_job_id(now: SystemTime) -> JobId {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), since.subsec_nanos());
    JobId(uuid::Uuid::new_v7(timestamp).to_string())
}

#[cfg(test)]
mod tests;
