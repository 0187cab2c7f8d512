//! Who does not belong: other weights, another version, a name that is taken, messages that are too large, peers that
//! say nothing.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use fabric::grpc::{Port, PortConfig};
use fabric::{Payload, Tag};
use plan::{Epoch, Rank};
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::render_service_client::RenderServiceClient;
use wire::v1::session_request::Message as Report;
use wire::v1::session_response::Message as Order;

use super::{Farm, metric, until};

#[test]
fn a_worker_with_other_weights_of_the_same_name_is_refused_by_name() {
    let farm = Farm::start();
    let _right = farm.worker("right");
    let job = farm.submit(13);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    let copy = farm.desk.demo_copy();
    let named = copy.parent().expect("it lies in a folder").join("demo");
    std::fs::rename(&copy, &named).expect("a folder can be renamed");
    let weights = named.join("transformer/diffusion_pytorch_model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("the weights are there");
    // One bit of one weight.
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).expect("they can be spoilt");
    let model = named.to_str().expect("it is UTF-8");
    let refused = farm.call(&["worker", "--model", model, "--name", "wrong"]);
    refused.refused(1, &["refused worker `wrong`", "model `demo`", "worker `right`", "sha256"]);
    farm.call(&["worker", "--name", "right"]).refused(1, &["refused worker `right`", "is here already", "--name"]);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can be started")
}

async fn members(farm: &Farm) -> ClusterServiceClient<Channel> {
    ClusterServiceClient::connect(farm.url.clone()).await.expect("it listens")
}

/// What the coordinator answers to a session that begins with `join`.
async fn answer(farm: &Farm, join: v1::Join) -> Result<Order, Status> {
    let first = v1::SessionRequest { message: Some(Report::Join(join)) };
    // A session is open for as long as its sender is.
    let requests = tokio_stream::StreamExt::chain(tokio_stream::iter([first]), tokio_stream::pending());
    let mut orders = members(farm).await.session(requests).await?.into_inner();
    let order = orders.message().await?.expect("an answer comes before the end");
    Ok(order.message.expect("an answer says something"))
}

fn join(worker: &str) -> v1::Join {
    v1::Join {
        worker: worker.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        numeric_class: "any".into(),
        address: "http://127.0.0.1:9".into(),
        flop_per_s: 1e9,
        incarnation: "1".into(),
        ..v1::Join::default()
    }
}

#[test]
fn a_worker_of_another_version_is_refused_by_both_versions() {
    let farm = Farm::start();
    let here = env!("CARGO_PKG_VERSION");
    let old = v1::Join { version: "0.0.1-old".into(), ..join("old") };
    match runtime().block_on(answer(&farm, old)).expect("it is answered") {
        Order::Refused(refused) => {
            assert!(refused.reason.contains("version 0.0.1-old"), "{}", refused.reason);
            assert!(refused.reason.contains(&format!("install {here}")), "{}", refused.reason);
        }
        order => panic!("{order:?}"),
    }
    let taken = runtime().block_on(answer(&farm, join("new"))).expect("it is answered");
    assert!(matches!(taken, Order::Welcome(_)), "{taken:?}");
}

#[test]
fn a_worker_that_does_not_say_who_it_is_is_refused() {
    let farm = Farm::start();
    for name in ["", "two words", "line\nbreak", &"x".repeat(129)] {
        let refused = runtime().block_on(answer(&farm, join(name))).expect_err("it has no name");
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("worker name"), "{refused:?}");
    }
}

#[test]
fn a_worker_the_coordinator_does_not_understand_ends_and_says_why() {
    let farm = Farm::start();
    let long = "x".repeat(129);
    farm.call(&["worker", "--name", &long]).refused(1, &["refused worker", "1 to 128 characters"]);
}

#[test]
fn a_message_larger_than_its_limit_is_refused_and_nobody_else_notices() {
    let farm = Farm::start();
    let _worker = farm.worker("a");
    let job = farm.submit(18);
    runtime().block_on(async {
        let mut clients = RenderServiceClient::connect(farm.url.clone()).await.expect("it listens");
        let create = |prompt: String| v1::CreateJobRequest {
            spec: Some(v1::RenderSpec { model: "demo".into(), prompt, ..v1::RenderSpec::default() }),
            request_id: String::new(),
        };
        // Above the limit of a prompt its name is said, above that of a message its size.
        let long = clients.create_job(create("x".repeat(100 << 10))).await.expect_err("too long");
        assert!(long.code() == Code::InvalidArgument, "{long:?}");
        let large = clients.create_job(create("x".repeat(300 << 10))).await.expect_err("too large");
        assert!(large.code() == Code::OutOfRange && large.message().contains("262144 bytes"), "{large:?}");
        let mut members = members(&farm).await;
        let rows = v1::PutCheckpointRequest { epoch: 1, chunk: vec![0; 5 << 20].into(), ..Default::default() };
        let large = members.put_checkpoint(tokio_stream::iter([rows])).await.expect_err("too large");
        assert!(large.code() == Code::OutOfRange && large.message().contains("4194304 bytes"), "{large:?}");
    });
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 18);
}

#[test]
fn peers_that_connect_and_say_nothing_are_sent_away_and_nobody_else_notices() {
    const N_SILENT: usize = 64;
    const PATIENCE: Duration = Duration::from_secs(30);
    let farm = Farm::start();
    let silent: Vec<TcpStream> =
        (0..N_SILENT).map(|_| TcpStream::connect(farm.address()).expect("it listens")).collect();
    let session = runtime().block_on(async {
        let requests = tokio_stream::pending::<v1::SessionRequest>();
        tokio::time::timeout(PATIENCE, members(&farm).await.session(requests)).await
    });
    let _worker = farm.worker("a");
    let job = farm.submit(19);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 19);
    let refused = session.expect("a session without a join ends").expect_err("it is refused");
    assert!(
        refused.code() == Code::DeadlineExceeded && refused.message().contains("begins with a join"),
        "{refused:?}"
    );
    for mut stream in silent {
        stream.set_read_timeout(Some(PATIENCE)).expect("can be set");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the coordinator closes it");
    }
}

/// Tensors for the farm's next attempts, from a process that is in none of them, lie at a worker before these begin.
#[test]
fn tensors_that_a_stranger_sends_ahead_of_a_picture_are_dropped_and_counted() {
    let farm = Farm::start();
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("it is bound").to_string();
    let first = farm.worker_with("a", &["--listen", &free, "--status", "127.0.0.1:0"]);
    let metrics = first.address_of_metrics();
    first.until_it_says("joined");
    let second = farm.worker("b");
    second.until_it_says("joined");

    let strangers = [0, 1].map(|_| Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
    let mut views = Vec::new();
    for (rank, stranger) in (0..).zip(&strangers) {
        for epoch in 1..=4 {
            let mut peers = vec![format!("http://{free}"); 2];
            stranger.address().clone_into(&mut peers[usize::from(rank)]);
            let view = stranger.open(Epoch(epoch), epoch, Rank(rank), peers);
            for tag in 0..4 {
                view.send(Rank(1 - rank), Tag(tag), Payload::Bytes(vec![0; 64].into())).expect("there is room");
            }
            views.push(view);
        }
    }
    until("the worker has them", || metric(&metrics, "fresco_transfer_bytes_total") >= 2048.0);
    let job = farm.submit(47);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 47);
    assert!(metric(&metrics, "fresco_transfer_strange_total") >= 4.0);
}
