//! A real worker at a coordinator that is slow to keep rows.
#![forbid(unsafe_code)]

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use fabric::grpc::{Port, PortConfig};
use plan::{
    ArtifactKind, Assignment, Clean, Epoch, ImageId, ImageIdx, ImageSize, JobId, Mesh, Peer, Rank, RenderRequest,
    RowRange, WorkerId,
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

/// What the worker did.
enum Happened {
    /// It joined; its orders go here.
    Joined(Orders),
    Said(Report),
    /// Its rows are here whole; they count as kept when this is answered.
    Rows(usize, oneshot::Sender<()>),
}

/// A coordinator that decides nothing: the test does.
struct Slow(mpsc::UnboundedSender<Happened>);

fn order(message: Order) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

#[tonic::async_trait]
impl ClusterService for Slow {
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
                    Report::Join(_) => Happened::Joined(orders.clone()),
                    report => Happened::Said(report),
                };
                drop(happened.send(what));
            }
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
        let (kept, is_kept) = oneshot::channel();
        drop(self.0.send(Happened::Rows(n_steps_done, kept)));
        is_kept.await.map_err(|_| Status::unavailable("the test is over"))?;
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

/// Threads that are not waited for: a rank may wait for rows to be kept when the test is over.
struct Background(Option<tokio::runtime::Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
    }
}

#[test]
fn no_step_is_done_before_the_rows_behind_the_last_one_are_kept() {
    const STEPS: usize = 6;
    // A heartbeat every 10 ms; a step takes a few milliseconds.
    const LEASE_TTL_MS: u64 = 30;
    const N_BEATS_OF_AN_UPLOAD: u32 = 10;
    let background = Background(Some(tokio::runtime::Runtime::new().expect("threads can be started")));
    let runtime = background.0.as_ref().expect("it is there until it is dropped");
    let (happened, mut happenings) = mpsc::unbounded_channel();
    let address = runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let service = ClusterServiceServer::new(Slow(happened));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
        address
    });
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let memory = &machine::Memory::UNKNOWN;
    let models = worker::open_models(&[(demo, None)], &model::Place::default(), memory, 1).expect("the demo is sound");
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
    let (_stop, shutdown) = watch::channel(Shutdown::No);
    runtime.spawn(async move { Worker::new(config, models, port, metrics).expect("it can begin").run(shutdown).await });

    let request = RenderRequest {
        prompt: "a calm sea at dawn".into(),
        negative: String::new(),
        size: ImageSize::new(64, 64).expect("a size"),
        steps: STEPS as u32,
        guidance: 4.5,
        seed: 1,
        clean: Clean::Basic,
    };
    let assignment = Assignment {
        epoch: Epoch(1),
        image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
        request,
        model,
        artifact: ArtifactKind::Png8,
        mesh: Mesh::new(1, vec![RowRange { start: 0, end: 4 }], 4, 1).expect("a mesh"),
        rank: Rank(0),
        peers: vec![peer],
        n_steps_done: 0,
    };
    let (mut n_kept, mut n_taken) = (0, 0);
    let mut under_way: Option<(usize, oneshot::Sender<()>, u32)> = None;
    loop {
        match happenings.blocking_recv().expect("the worker is there") {
            Happened::Joined(orders) => {
                let welcome = Order::Welcome(v1::Welcome { lease_ttl_ms: LEASE_TTL_MS });
                for message in [welcome, Order::Assign((&assignment).into())] {
                    orders.blocking_send(Ok(order(message))).expect("the worker is there");
                }
            }
            Happened::Rows(n, kept) => {
                assert_eq!(n, n_kept + 1, "rows are sent in order, one step at a time");
                under_way = Some((n, kept, 0));
            }
            Happened::Said(Report::Heartbeat(_)) => {
                if let Some((n, kept, n_beats)) = under_way.take() {
                    if n_beats < N_BEATS_OF_AN_UPLOAD {
                        under_way = Some((n, kept, n_beats + 1));
                    } else {
                        n_kept = n;
                        kept.send(()).expect("the call is open");
                    }
                }
            }
            Happened::Said(Report::StepTaken(taken)) => {
                n_taken = taken.n_steps_done as usize;
                assert!(n_taken <= n_kept + 1, "a kill now repeats {} steps", n_taken - n_kept);
            }
            Happened::Said(Report::Finished(_)) => break,
            Happened::Said(Report::Decoding(_)) => {}
            Happened::Said(report) => panic!("{report:?}"),
        }
    }
    assert_eq!(n_taken, STEPS);
}
