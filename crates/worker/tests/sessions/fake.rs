//! The coordinator of these tests: it passes on what a worker does, and answers what the test says.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fabric::grpc::{Port, PortConfig};
use plan::{
    ArtifactKind, Assignment, Clean, Epoch, ImageId, ImageIdx, ImageSize, JobId, Mesh, ModelId, Peer, Rank,
    RenderRequest, RowRange, WorkerId,
};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use wire::v1;
use wire::v1::cluster_service_server::{ClusterService, ClusterServiceServer};
use wire::v1::session_request::Message as Report;
use wire::v1::session_response::Message as Order;
use worker::metrics::Metrics;
use worker::{Config, Shutdown, Worker};

type Orders = mpsc::Sender<Result<v1::SessionResponse, Status>>;
pub(crate) type Reply = oneshot::Sender<Result<(), Status>>;

/// What the worker did.
pub(crate) enum Happened {
    /// It joined; its orders go here.
    Joined(v1::Join, Orders),
    Said(Report),
    /// Its rows behind so many steps are here whole; they count as kept when this is answered.
    Rows(usize, Reply),
    /// It began to send a picture; the rest is read when this is answered.
    Picture(Reply),
    /// Its session has ended.
    Left,
}

struct Fake(mpsc::UnboundedSender<Happened>);

#[tonic::async_trait]
impl ClusterService for Fake {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (orders, stream) = mpsc::channel(8);
        let (mut reports, happened) = (request.into_inner(), self.0.clone());
        tokio::spawn(async move {
            while let Ok(Some(v1::SessionRequest { message: Some(report) })) = reports.message().await {
                let what = match report {
                    Report::Join(join) => Happened::Joined(join, orders.clone()),
                    report => Happened::Said(report),
                };
                drop(happened.send(what));
            }
            drop(happened.send(Happened::Left));
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put_checkpoint(
        &self,
        request: Request<Streaming<v1::PutCheckpointRequest>>,
    ) -> Result<Response<v1::PutCheckpointResponse>, Status> {
        let (mut parts, mut n_steps_done) = (request.into_inner(), 0);
        while let Some(part) = parts.message().await? {
            n_steps_done = n_steps_done.max(part.n_steps_done as usize);
        }
        let (reply, is_kept) = oneshot::channel();
        drop(self.0.send(Happened::Rows(n_steps_done, reply)));
        is_kept.await.map_err(|_| Status::unavailable("the test is over"))??;
        Ok(Response::new(v1::PutCheckpointResponse {}))
    }

    type GetCheckpointStream = Pin<Box<dyn Stream<Item = Result<v1::GetCheckpointResponse, Status>> + Send>>;

    async fn get_checkpoint(
        &self,
        _: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<Self::GetCheckpointStream>, Status> {
        Err(Status::not_found("there is none"))
    }

    async fn put_artifact(
        &self,
        request: Request<Streaming<v1::PutArtifactRequest>>,
    ) -> Result<Response<v1::PutArtifactResponse>, Status> {
        let mut parts = request.into_inner();
        let (reply, is_read) = oneshot::channel();
        drop(self.0.send(Happened::Picture(reply)));
        is_read.await.map_err(|_| Status::unavailable("the test is over"))??;
        while parts.message().await?.is_some() {}
        Ok(Response::new(v1::PutArtifactResponse {}))
    }

    async fn drain_worker(
        &self,
        _: Request<v1::DrainWorkerRequest>,
    ) -> Result<Response<v1::DrainWorkerResponse>, Status> {
        Ok(Response::new(v1::DrainWorkerResponse { is_member: false }))
    }
}

/// A worker at its fake coordinator.
pub(crate) struct Scene {
    /// Threads that are not waited for: a rank may wait for rows to be kept when the test is over.
    runtime: Option<tokio::runtime::Runtime>,
    happenings: mpsc::UnboundedReceiver<Happened>,
    pub(crate) shutdown: watch::Sender<Shutdown>,
    model: ModelId,
    peer: Peer,
}

impl Scene {
    /// A worker with one thread.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
        let (happened, happenings) = mpsc::unbounded_channel();
        let address = runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            let address = listener.local_addr().expect("it is bound");
            let service = ClusterServiceServer::new(Fake(happened));
            // The least that HTTP/2 has: what is not read fills it at once.
            let mut server =
                Server::builder().initial_connection_window_size(65_535).initial_stream_window_size(65_535);
            tokio::spawn(server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
            address
        });
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        let models = worker::open_models(&[(demo, None)], &model::Place::default(), &machine::Memory::UNKNOWN, 1)
            .expect("the demo is sound");
        let model = models.facts().next().expect("it is one").id.clone();
        let port = Arc::new(Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
        let peer = Peer { worker: WorkerId("a".into()), address: port.address().to_owned() };
        let config = Config {
            name: "a".into(),
            coordinator: format!("http://{address}"),
            address: peer.address.clone(),
            threads: 1,
            noise: None,
            hang: None,
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("no name twice");
        let (shutdown, told) = watch::channel(Shutdown::No);
        runtime.spawn(async move { Worker::new(config, models, port, metrics).expect("it can begin").run(told).await });
        Self { runtime: Some(runtime), happenings, shutdown, model, peer }
    }

    /// What the worker did next.
    pub(crate) fn next(&mut self) -> Happened {
        self.happenings.blocking_recv().expect("the worker is there")
    }

    /// Welcomes the worker and gives it a picture of `side_px` pixels a side, alone.
    pub(crate) fn welcome(&self, orders: &Orders, lease_ttl_ms: u64, (side_px, steps): (u32, usize)) {
        let request = RenderRequest {
            prompt: "a calm sea at dawn".into(),
            negative: String::new(),
            size: ImageSize::new(side_px, side_px).expect("a size"),
            steps: steps as u32,
            guidance: 4.5,
            seed: 1,
            clean: Clean::Basic,
        };
        let rows = side_px as usize / 16;
        let assignment = Assignment {
            epoch: Epoch(1),
            image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
            request,
            model: self.model.clone(),
            artifact: ArtifactKind::Png8,
            mesh: Mesh::new(1, vec![RowRange { start: 0, end: rows }], rows, 1).expect("a mesh"),
            rank: Rank(0),
            peers: vec![self.peer.clone()],
            n_steps_done: 0,
        };
        for message in [Order::Welcome(v1::Welcome { lease_ttl_ms }), Order::Assign((&assignment).into())] {
            let order = v1::SessionResponse { message: Some(message) };
            orders.blocking_send(Ok(order)).expect("the worker is there");
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.runtime.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}
