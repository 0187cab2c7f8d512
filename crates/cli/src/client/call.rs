//! Calls to a farm: one connection, errors in one line with the exit code they deserve.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::render_service_client::RenderServiceClient;

use crate::exit::Stop;

/// How long a farm that went away is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// A job of very many images, each with its message.
const LONGEST_ANSWER_BYTES: usize = 64 << 20;
/// Where a farm is down from the start, nobody wants to wait long.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// A client of one farm.
pub(crate) struct Client {
    calls: RenderServiceClient<Channel>,
    cluster: ClusterServiceClient<Channel>,
}

/// How watching ended.
pub(crate) enum Watched {
    /// The job is over.
    Over(v1::Job),
    /// The watcher broke off.
    Left,
}

/// How one stream of events ended.
enum Seen {
    /// The watcher broke off.
    Left,
    /// There are no more: the job as it is then.
    Job(Box<v1::Job>),
}

impl Client {
    /// Connects to the coordinator at `url`.
    pub(crate) async fn connect(url: &str) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|_| Stop::Usage(format!("--coordinator `{url}` is not an address such as http://host:7400")))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(10));
        let channel = endpoint.connect().await.map_err(|_| {
            Stop::Unavailable(format!(
                "no coordinator answers at {url}: start one with `fresco serve`, or name another"
            ))
        })?;
        let calls = RenderServiceClient::new(channel.clone()).max_decoding_message_size(LONGEST_ANSWER_BYTES);
        Ok(Self { calls, cluster: ClusterServiceClient::new(channel) })
    }

    /// Has a worker hand over and leave. Whether it is still in.
    pub(crate) async fn drain(&mut self, worker: &str) -> anyhow::Result<bool> {
        let request = v1::DrainWorkerRequest { worker: worker.to_owned() };
        let response = self.cluster.drain_worker(request).await;
        Ok(response.map_err(|status| refused(&status))?.into_inner().is_member)
    }

    pub(crate) async fn submit(&mut self, spec: v1::RenderSpec, request_id: String) -> anyhow::Result<v1::Job> {
        let request = v1::CreateJobRequest { spec: Some(spec), request_id };
        let response = self.calls.create_job(request).await.map_err(|status| refused(&status))?;
        whole(response.into_inner().job)
    }

    pub(crate) async fn job(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        let response = self.calls.get_job(v1::GetJobRequest { id: id.to_owned() }).await;
        whole(response.map_err(|status| refused(&status))?.into_inner().job)
    }

    /// Up to `limit` jobs, the newest first.
    pub(crate) async fn list(&mut self, limit: usize) -> anyhow::Result<Vec<v1::Job>> {
        let (mut jobs, mut page_token) = (Vec::new(), String::new());
        loop {
            let page_size = limit.saturating_sub(jobs.len()).min(500) as u32;
            let request = v1::ListJobsRequest { page_size, page_token };
            let page = self.calls.list_jobs(request).await.map_err(|status| refused(&status))?.into_inner();
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit {
                return Ok(jobs);
            }
        }
    }

    pub(crate) async fn cancel(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        let response = self.calls.cancel_job(v1::CancelJobRequest { id: id.to_owned() }).await;
        whole(response.map_err(|status| refused(&status))?.into_inner().job)
    }

    pub(crate) async fn retry(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        let response = self.calls.retry_job(v1::RetryJobRequest { id: id.to_owned() }).await;
        whole(response.map_err(|status| refused(&status))?.into_inner().job)
    }

    pub(crate) async fn delete(&mut self, id: &str) -> anyhow::Result<()> {
        let response = self.calls.delete_job(v1::DeleteJobRequest { id: id.to_owned() }).await;
        response.map(drop).map_err(|status| refused(&status))
    }

    /// Calls `seen` with every event behind `after_revision` until the job is over. A farm that goes away is
    /// looked for, and gone on with from the last event seen.
    pub(crate) async fn watch(
        &mut self,
        id: &str,
        mut after_revision: u64,
        mut seen: impl FnMut(&v1::WatchJobResponse) -> ControlFlow<()>,
    ) -> anyhow::Result<Watched> {
        let mut away_since = None;
        loop {
            let status = match self.watch_once(id, &mut after_revision, &mut seen, &mut away_since).await {
                Ok(Seen::Left) => return Ok(Watched::Left),
                Ok(Seen::Job(job)) => {
                    if [v1::State::Done, v1::State::Failed, v1::State::Cancelled].contains(&job.state()) {
                        return Ok(Watched::Over(*job));
                    }
                    None
                }
                Err(status) => Some(status),
            };
            if let Some(status) = status {
                let since = *away_since.get_or_insert_with(Instant::now);
                if !is_away(&status) || since.elapsed() >= PATIENCE {
                    return Err(refused(&status));
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn watch_once(
        &mut self,
        id: &str,
        after_revision: &mut u64,
        seen: &mut impl FnMut(&v1::WatchJobResponse) -> ControlFlow<()>,
        away_since: &mut Option<Instant>,
    ) -> Result<Seen, Status> {
        let request = v1::WatchJobRequest { id: id.to_owned(), after_revision: *after_revision };
        let mut events = self.calls.watch_job(request).await?.into_inner();
        *away_since = None;
        while let Some(event) = events.message().await? {
            *after_revision = event.revision.max(*after_revision);
            if seen(&event).is_break() {
                return Ok(Seen::Left);
            }
        }
        let job = self.calls.get_job(v1::GetJobRequest { id: id.to_owned() }).await?.into_inner().job;
        let job = job.ok_or_else(|| Status::data_loss("the farm answered without a job: are the versions equal?"))?;
        Ok(Seen::Job(Box::new(job)))
    }

    /// A finished picture and its bytes.
    pub(crate) async fn artifact(&mut self, id: &str, image: u32) -> anyhow::Result<(v1::Artifact, Vec<u8>)> {
        let request = v1::GetArtifactRequest { job: id.to_owned(), image };
        let mut parts = self.calls.get_artifact(request).await.map_err(|status| refused(&status))?.into_inner();
        let (mut artifact, mut bytes) = (None, Vec::new());
        while let Some(part) = parts.message().await.map_err(|status| refused(&status))? {
            artifact = artifact.or(part.artifact);
            bytes.extend_from_slice(&part.chunk);
        }
        let artifact: v1::Artifact =
            artifact.ok_or_else(|| anyhow::anyhow!("the farm sent a picture without a name"))?;
        anyhow::ensure!(
            crate::latents::hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes)) == artifact.sha256,
            "image {image} of job {id} was damaged on its way: fetch it again"
        );
        Ok((artifact, bytes))
    }
}

fn whole(job: Option<v1::Job>) -> anyhow::Result<v1::Job> {
    job.ok_or_else(|| anyhow::anyhow!("the farm answered without a job: are the versions equal?"))
}

fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled)
}

/// A refused call as the error of a command.
fn refused(status: &Status) -> anyhow::Error {
    let said = status.message().to_owned();
    match status.code() {
        Code::NotFound => Stop::NotFound(said).into(),
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange => Stop::Usage(said).into(),
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Stop::Unavailable(said).into(),
        _ => anyhow::anyhow!(said),
    }
}
