//! Calls to a farm: one connection, errors in one line with the exit code they deserve.
//!
//! Commands that wait for a job ride out a coordinator that is away or stopped for a while (`client/away.rs`); all others are
//! told at once.

use std::ops::ControlFlow;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::render_service_client::RenderServiceClient;

use super::away::Away;
use crate::exit::Stop;

/// A job of very many images, each with its message.
const LONGEST_ANSWER_BYTES: usize = 64 << 20;
/// Where a farm is down from the start, nobody wants to wait long.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A coordinator that answers no ping for so long is stopped, or its machine is gone: a call ends after both together.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// A client of one farm.
pub(crate) struct Client {
    url: String,
    calls: RenderServiceClient<Channel>,
    cluster: ClusterServiceClient<Channel>,
}

/// How watching ended.
pub(crate) enum Watched {
    /// The job is over.
    Over(Box<v1::Job>),
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
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWERED_WITHIN);
        let channel = endpoint.connect().await.map_err(|_| {
            Stop::Unavailable(format!(
                "no coordinator answers at {url}: start one with `fresco serve`, or name another"
            ))
        })?;
        let calls = RenderServiceClient::new(channel.clone()).max_decoding_message_size(LONGEST_ANSWER_BYTES);
        Ok(Self { url: url.to_owned(), calls, cluster: ClusterServiceClient::new(channel) })
    }

    /// Has a worker hand over and leave. Whether it is still in.
    pub(crate) async fn drain(&mut self, worker: &str) -> anyhow::Result<bool> {
        let request = v1::DrainWorkerRequest { worker: worker.to_owned() };
        match self.cluster.drain_worker(request).await {
            Ok(response) => Ok(response.into_inner().is_member),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    pub(crate) async fn submit(&mut self, spec: v1::RenderSpec, request_id: String) -> anyhow::Result<v1::Job> {
        let request = v1::CreateJobRequest { spec: Some(spec), request_id };
        match self.calls.create_job(request).await {
            Ok(response) => whole(response.into_inner().job),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    /// The same for who waits for the job: the id makes sure that it is one job however often it is asked for.
    pub(crate) async fn submit_patiently(
        &mut self,
        spec: v1::RenderSpec,
        request_id: String,
    ) -> anyhow::Result<v1::Job> {
        let request = v1::CreateJobRequest { spec: Some(spec), request_id };
        whole(self.patiently(async |calls| Ok(calls.create_job(request.clone()).await?.into_inner().job)).await?)
    }

    pub(crate) async fn job(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        match self.calls.get_job(v1::GetJobRequest { id: id.to_owned() }).await {
            Ok(response) => whole(response.into_inner().job),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    /// The same for who goes on with what it names.
    pub(crate) async fn job_patiently(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        let request = v1::GetJobRequest { id: id.to_owned() };
        whole(self.patiently(async |calls| Ok(calls.get_job(request.clone()).await?.into_inner().job)).await?)
    }

    /// Up to `limit` jobs, the newest first.
    pub(crate) async fn list(&mut self, limit: usize) -> anyhow::Result<Vec<v1::Job>> {
        let (mut jobs, mut page_token) = (Vec::new(), String::new());
        loop {
            let page_size = limit.saturating_sub(jobs.len()).min(500) as u32;
            let page = match self.calls.list_jobs(v1::ListJobsRequest { page_size, page_token }).await {
                Ok(page) => page.into_inner(),
                Err(status) => return Err(refused(&self.url, &status).await),
            };
            jobs.extend(page.jobs);
            page_token = page.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit {
                return Ok(jobs);
            }
        }
    }

    pub(crate) async fn cancel(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        match self.calls.cancel_job(v1::CancelJobRequest { id: id.to_owned() }).await {
            Ok(response) => whole(response.into_inner().job),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    pub(crate) async fn retry(&mut self, id: &str) -> anyhow::Result<v1::Job> {
        match self.calls.retry_job(v1::RetryJobRequest { id: id.to_owned() }).await {
            Ok(response) => whole(response.into_inner().job),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    pub(crate) async fn delete(&mut self, id: &str) -> anyhow::Result<()> {
        match self.calls.delete_job(v1::DeleteJobRequest { id: id.to_owned() }).await {
            Ok(_) => Ok(()),
            Err(status) => Err(refused(&self.url, &status).await),
        }
    }

    /// Makes a call that may be made again, until the farm answers or has been away for too long.
    async fn patiently<T>(
        &mut self,
        call: impl AsyncFn(&mut RenderServiceClient<Channel>) -> Result<T, Status>,
    ) -> anyhow::Result<T> {
        let mut away = Away::new(&self.url);
        loop {
            match call(&mut self.calls).await {
                Ok(answer) => return Ok(answer),
                Err(status) if is_away(&status) => away.wait(&status).await?,
                Err(status) => return Err(refused(&self.url, &status).await),
            }
        }
    }

    /// Calls `seen` with every file that no record of the farm names, after deleting it if that is asked for.
    pub(crate) async fn collect_garbage(
        &mut self,
        request: v1::CollectGarbageRequest,
        mut seen: impl FnMut(&v1::CollectGarbageResponse) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut files = match self.calls.collect_garbage(request).await {
            Ok(files) => files.into_inner(),
            Err(status) => return Err(refused(&self.url, &status).await),
        };
        loop {
            match files.message().await {
                Ok(Some(file)) => seen(&file)?,
                Ok(None) => return Ok(()),
                Err(status) => return Err(refused(&self.url, &status).await),
            }
        }
    }

    /// Calls `seen` with every event after `after_revision` until the job is over. A farm that goes away is looked for, and
    /// gone on with from the last event seen.
    pub(crate) async fn watch(
        &mut self,
        id: &str,
        mut after_revision: u64,
        mut seen: impl FnMut(&v1::WatchJobResponse) -> ControlFlow<()>,
    ) -> anyhow::Result<Watched> {
        const PAUSE: Duration = Duration::from_millis(200);
        let mut away = Away::new(&self.url);
        loop {
            match self.watch_once(id, &mut after_revision, &mut seen, &mut away).await {
                Ok(Seen::Left) => return Ok(Watched::Left),
                Ok(Seen::Job(job)) => {
                    if [v1::State::Done, v1::State::Failed, v1::State::Cancelled].contains(&job.state()) {
                        return Ok(Watched::Over(job));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(status) if is_away(&status) => away.wait(&status).await?,
                Err(status) => return Err(refused(&self.url, &status).await),
            }
        }
    }

    async fn watch_once(
        &mut self,
        id: &str,
        after_revision: &mut u64,
        seen: &mut impl FnMut(&v1::WatchJobResponse) -> ControlFlow<()>,
        away: &mut Away,
    ) -> Result<Seen, Status> {
        let request = v1::WatchJobRequest { id: id.to_owned(), after_revision: *after_revision };
        let mut events = self.calls.watch_job(request).await?.into_inner();
        away.is_back();
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
        let fetch = async |calls: &mut RenderServiceClient<Channel>| {
            let mut parts = calls.get_artifact(request.clone()).await?.into_inner();
            let (mut artifact, mut bytes) = (None, Vec::new());
            while let Some(part) = parts.message().await? {
                artifact = artifact.or(part.artifact);
                bytes.extend_from_slice(&part.chunk);
            }
            Ok((artifact, bytes))
        };
        let (artifact, bytes) = self.patiently(fetch).await?;
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

/// Whether the same call may do later: the coordinator says so, or the connection broke.
fn is_away(status: &Status) -> bool {
    let is_broken = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable
        || is_broken && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
}

/// A refused call as the error of a command.
pub(super) async fn refused(url: &str, status: &Status) -> anyhow::Error {
    if let Some(told) = worker::stranger::explain(url, status).await {
        return Stop::Unavailable(told).into();
    }
    let said = status.message().to_owned();
    match status.code() {
        Code::NotFound => Stop::NotFound(said).into(),
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange => Stop::Usage(said).into(),
        _ if is_away(status) && std::error::Error::source(status).is_some() => {
            Stop::Unavailable(format!("the coordinator at {url} does not answer: {}", why(status))).into()
        }
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Stop::Unavailable(said).into(),
        _ if said.is_empty() => anyhow::anyhow!("{url} answered \"{}\" and no more", status.code().description()),
        _ => anyhow::anyhow!(said),
    }
}

/// What broke a connection: the innermost cause says it best.
fn why(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
