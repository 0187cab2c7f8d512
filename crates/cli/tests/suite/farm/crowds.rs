//! Many at once: uploads that trickle, and sessions that all break together.

use std::io::copy;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{IntervalStream, ReceiverStream};
use tonic::transport::Channel;
use wire::v1;
use wire::v1::cluster_service_client::ClusterServiceClient;
use wire::v1::session_request::Message as Report;
use wire::v1::session_response::Message as Order;

use super::{Farm, PICTURE, Process, check_steps, epoch, step};
use crate::desk::FRESCO;

const N_SEATS: usize = 128;
/// Twice the default: the stubs share a machine with all other tests.
const LEASE_MS: &str = "6000";
const BEAT: Duration = Duration::from_millis(500);
/// What the coordinator serves of a seat at a time.
const N_UPLOADS: usize = 4;

/// Counts what all seats do.
#[derive(Clone, Default)]
struct Crowd {
    n_at_work: Arc<AtomicUsize>,
    n_ended: Arc<AtomicUsize>,
}

/// A member that takes one image, hands in four pictures of a mebibyte at some bytes a second, and never ends.
async fn trickle(channel: Channel, join: v1::Join, crowd: Crowd) -> Result<(), String> {
    let mut members = ClusterServiceClient::new(channel);
    let (said, requests) = tokio::sync::mpsc::channel(8);
    let say = |message| v1::SessionRequest { message: Some(message) };
    said.send(say(Report::Join(join))).await.expect("the session listens");
    let session = members.session(ReceiverStream::new(requests)).await;
    let mut orders = session.map_err(|status| status.to_string())?.into_inner();
    let mut beats = tokio::time::interval(BEAT);
    let (mut at_work, mut progress) = (0, 0);
    let mut uploads = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            order = orders.message() => match order.map_err(|status| status.to_string())? {
                Some(v1::SessionResponse { message: Some(Order::Assign(assign)) }) => {
                    at_work = assign.epoch;
                    crowd.n_at_work.fetch_add(1, Ordering::SeqCst);
                    for _ in 0..N_UPLOADS {
                        let (mut members, requests) = (members.clone(), drops(&assign));
                        let n_ended = Arc::clone(&crowd.n_ended);
                        uploads.spawn(async move {
                            drop(members.put_artifact(requests).await);
                            n_ended.fetch_add(1, Ordering::SeqCst);
                        });
                    }
                }
                Some(_) => {}
                None => return Err("its session ended".into()),
            },
            _ = beats.tick() => {
                progress += 1;
                let work = (at_work > 0).then_some(v1::Work { epoch: at_work, progress, waits: false });
                said.send(say(Report::Heartbeat(v1::Heartbeat { work }))).await.map_err(|_| "its session ended")?;
            }
        }
    }
}

/// The parts of a picture, a byte ten times a second.
fn drops(assign: &v1::Assign) -> impl tokio_stream::Stream<Item = v1::PutArtifactRequest> + use<> {
    let kind = v1::ArtifactKind::Png8.into();
    let artifact = v1::Artifact { sha256: "0".repeat(64), size_bytes: 1 << 20, kind };
    let chunk = Bytes::from_static(b"x");
    let rest = v1::PutArtifactRequest { epoch: assign.epoch, chunk, ..Default::default() };
    let first = v1::PutArtifactRequest { artifact: Some(artifact), secret: assign.secret.clone(), ..rest.clone() };
    let ticks = IntervalStream::new(tokio::time::interval(Duration::from_millis(100)));
    tokio_stream::iter([first]).chain(ticks.map(move |_| rest.clone()))
}

#[test]
fn five_hundred_uploads_that_trickle_end_no_lease_and_keep_nobody_else() {
    let farm = Farm::start_with(&["--lease-ttl-ms", LEASE_MS]);
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let models = worker::open_models(&[(demo, None)], &model::Place::default(), &machine::Memory::UNKNOWN, 1);
    let models: Vec<v1::ModelFacts> = models.expect("the demo is sound").facts().map(v1::ModelFacts::from).collect();
    let count = N_SEATS.to_string();
    farm.call(&[&["submit"], &PICTURE[..], &["--count", &count, "--seed", "1000"]].concat()).quiet();
    let runtime = tokio::runtime::Runtime::new().expect("threads can be started");
    let join = |idx: usize| v1::Join {
        worker: format!("slow-{idx}"),
        version: env!("CARGO_PKG_VERSION").into(),
        // Of a class of its own, so that no picture of a well worker waits for it.
        numeric_class: "slow".into(),
        models: models.clone(),
        address: "http://127.0.0.1:9".into(),
        flop_per_s: 1e9,
        incarnation: idx.to_string(),
        value_bytes: 4,
        ..v1::Join::default()
    };
    let crowd = Crowd::default();
    let mut seats: tokio::task::JoinSet<Result<(), String>> = runtime.block_on(async {
        let mut seats = tokio::task::JoinSet::new();
        for idx in 0..N_SEATS {
            let channel = Channel::from_shared(farm.url.clone()).expect("it is an address").connect_lazy();
            seats.spawn(trickle(channel, join(idx), crowd.clone()));
        }
        seats
    });
    super::until("every seat is at work", || crowd.n_at_work.load(Ordering::SeqCst) == N_SEATS);
    let longest = (0..20).map(|_| {
        let began = Instant::now();
        farm.call(&["list"]).quiet();
        began.elapsed()
    });
    println!("the longest of 20 lists took {:?}", longest.max().unwrap_or_default());
    let _well = farm.worker("well");
    let job = farm.submit(51);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 51);
    assert_eq!(crowd.n_ended.load(Ordering::SeqCst), 0, "the uploads trickle still");
    let ended = seats.try_join_next().map(|ended| ended.expect("no seat panics"));
    assert_eq!(ended, None, "the seats are at it still");
    runtime.shutdown_background();
}

/// Passes bytes on to a server until its connections are cut, and then passes on new ones.
struct Proxy {
    url: String,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let open = Arc::new(Mutex::new(Vec::new()));
        let (server, kept) = (server.to_owned(), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(there) = TcpStream::connect(&server) else { continue };
                for (from, to) in [(&client, &there), (&there, &client)] {
                    let both = from.try_clone().and_then(|from| Ok((from, to.try_clone()?)));
                    let (mut from, mut to) = both.expect("a socket can be shared");
                    std::thread::spawn(move || drop(copy(&mut from, &mut to)));
                }
                kept.lock().expect("nobody panics with it").extend([client, there]);
            }
        });
        Self { url, open }
    }

    /// Cuts what is open; how many connections that were.
    fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock().expect("nobody panics with it"));
        open.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        open.len() / 2
    }
}

#[test]
fn sessions_of_all_workers_that_are_cut_at_once_repeat_no_step() {
    let farm = Farm::start();
    let proxy = Proxy::to(farm.address());
    let worker = |name: &str| {
        let args = ["worker", "--coordinator", &proxy.url, "--name", name, "--threads", "1"];
        let worker = Process::start(farm.desk.command(FRESCO, &args).env("FRESCO_LOG", "warn,worker=info"));
        worker.until_it_says("joined");
        worker
    };
    let _workers = [worker("a"), worker("b")];
    let job = farm.submit(52);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| step(event) >= 2), "it is at work");
    let at = epoch(watch.seen.last().expect("an event was seen"));
    assert!(proxy.cut() >= 2, "each worker has a connection at least");
    let n_seen = watch.seen.len();
    check_steps(watch.rest());
    assert!(watch.seen[n_seen..].iter().any(|event| step(event) > step(&watch.seen[n_seen - 1])), "it was cut at work");
    let epochs: Vec<u64> = watch.seen.iter().map(epoch).filter(|epoch| *epoch > 0).collect();
    assert!(epochs.iter().all(|epoch| *epoch == at), "the attempt goes on: {epochs:?}");
    farm.check_picture(&job, 52);
}
