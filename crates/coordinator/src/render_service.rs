//! What clients ask: requests become inputs, answers become messages.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use control::{Event, Input, JobSpec};
use futures_util::Stream;
use plan::{ImageIdx, JobId};
use tokio::io::AsyncReadExt;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use wire::v1::render_service_server::RenderService;
use wire::{convert, v1};

use crate::artifact::Artifacts;
use crate::driver::Desk;
use crate::job_view;
use crate::report;
use crate::status::{invalid, of_control, status};

/// Bytes of one part of a picture.
const CHUNK_BYTES: usize = 512 << 10;
const LONGEST_REQUEST_ID: usize = 256;

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves clients.
pub(crate) struct Clients {
    desk: Desk,
    artifacts: Arc<Artifacts>,
}

impl Clients {
    pub(crate) fn new(desk: Desk, artifacts: Arc<Artifacts>) -> Self {
        Self { desk, artifacts }
    }

    async fn job(&self, id: JobId) -> Result<v1::Job, Status> {
        let wanted = id.clone();
        let job = self.desk.ask(move |control| job_view::job(control, &wanted)).await?;
        job.ok_or_else(|| of_control(&control::ControlError::NotFound { job: id }))
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
        let job = self.job(accepted.map_err(|error| of_control(&error))?).await?;
        Ok(Response::new(v1::CreateJobResponse { job: Some(job) }))
    }

    async fn get_job(&self, request: Request<v1::GetJobRequest>) -> Result<Response<v1::GetJobResponse>, Status> {
        let job = self.job(JobId(request.into_inner().id)).await?;
        Ok(Response::new(v1::GetJobResponse { job: Some(job) }))
    }

    async fn list_jobs(&self, request: Request<v1::ListJobsRequest>) -> Result<Response<v1::ListJobsResponse>, Status> {
        let v1::ListJobsRequest { page_size, page_token } = request.into_inner();
        let page_size = if page_size == 0 { 50 } else { page_size.min(500) } as usize;
        let before: Option<u64> = if page_token.is_empty() {
            None
        } else {
            Some(page_token.parse().map_err(|_| {
                let message = format!("page token `{page_token}` is none of ours: begin without one");
                status(Code::InvalidArgument, "PAGE_TOKEN", message, Some("page_token"), None)
            })?)
        };
        let page = move |control: &control::Control| job_view::page(control, before, page_size);
        Ok(Response::new(self.desk.ask(page).await?))
    }

    type WatchJobStream = Answers<v1::WatchJobResponse>;

    async fn watch_job(&self, request: Request<v1::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let v1::WatchJobRequest { id, after_revision } = request.into_inner();
        let id = JobId(id);
        // Listens first, looks then: nothing falls between.
        let events = self.desk.events();
        self.job(id.clone()).await?;
        let (answers, stream) = mpsc::channel(64);
        let watcher = Watcher { desk: self.desk.clone(), id, seen: after_revision, answers };
        tokio::spawn(watcher.run(events));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let job = JobId(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Cancel { job, reply }).await?;
        let job = self.job(answer.map_err(|error| of_control(&error))?).await?;
        Ok(Response::new(v1::CancelJobResponse { job: Some(job) }))
    }

    async fn retry_job(&self, request: Request<v1::RetryJobRequest>) -> Result<Response<v1::RetryJobResponse>, Status> {
        let job = JobId(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Retry { job, reply }).await?;
        let job = self.job(answer.map_err(|error| of_control(&error))?).await?;
        Ok(Response::new(v1::RetryJobResponse { job: Some(job) }))
    }

    async fn delete_job(
        &self,
        request: Request<v1::DeleteJobRequest>,
    ) -> Result<Response<v1::DeleteJobResponse>, Status> {
        let job = JobId(request.into_inner().id);
        let answer = self.desk.request(|reply| Input::Delete { job, reply }).await?;
        answer.map_err(|error| of_control(&error))?;
        Ok(Response::new(v1::DeleteJobResponse {}))
    }

    type GetArtifactStream = Answers<v1::GetArtifactResponse>;

    async fn get_artifact(
        &self,
        request: Request<v1::GetArtifactRequest>,
    ) -> Result<Response<Self::GetArtifactStream>, Status> {
        let v1::GetArtifactRequest { job, image } = request.into_inner();
        let (id, index) = (JobId(job), ImageIdx(image));
        let known = self.job(id.clone()).await?;
        let artifact = known.images.into_iter().find(|found| found.index == index.0).and_then(|found| found.artifact);
        let missing = || {
            let message = format!("image {index} of job `{id}` is not done: `fresco get {id}` says where it is");
            status(Code::FailedPrecondition, "IMAGE_NOT_DONE", message, Some("image"), None)
        };
        let artifact = artifact.ok_or_else(missing)?;
        let file = self.artifacts.file(&artifact.sha256);
        if file.is_none() {
            // Deleted meanwhile: then it is not known.
            self.job(id.clone()).await?;
        }
        let file = file.ok_or_else(|| {
            let message = format!("the file of image {index} of job `{id}` is gone: `fresco retry {id}` does not help");
            status(Code::DataLoss, "ARTIFACT_GONE", message, None, None)
        })?;
        let (answers, stream) = mpsc::channel(8);
        tokio::spawn(async move {
            let mut file = tokio::fs::File::from_std(file);
            let mut announced = Some(artifact);
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let answer = match file.read(&mut chunk).await {
                    Ok(0) if announced.is_none() => break,
                    Ok(n) => {
                        chunk.truncate(n);
                        Ok(v1::GetArtifactResponse { artifact: announced.take(), chunk: Bytes::from(chunk) })
                    }
                    Err(error) => Err(Status::data_loss(format!("the picture's file cannot be read: {error}"))),
                };
                if answers.send(answer).await.is_err() {
                    break;
                }
            }
        });
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
    async fn run(mut self, mut events: broadcast::Receiver<Arc<Event>>) {
        if !self.snapshot().await {
            return;
        }
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = self.answers.closed() => return,
            };
            let goes_on = match event {
                Ok(event) if event.image.job != self.id || event.revision <= self.seen => true,
                Ok(event) => self.tell(&event).await,
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

    async fn tell(&mut self, event: &Event) -> bool {
        self.seen = event.revision;
        let (id, index) = (event.image.job.clone(), event.image.image);
        let artifact = self.desk.ask(move |control| {
            let image = control.job(&id).and_then(|job| job.image(index));
            image.and_then(|image| image.artifact.as_ref()).map(job_view::artifact)
        });
        let Ok(artifact) = artifact.await else { return false };
        let response = job_view::of_event(event, artifact);
        let is_over = job_view::is_over(response.job_state);
        self.answers.send(Ok(response)).await.is_ok() && !is_over
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
