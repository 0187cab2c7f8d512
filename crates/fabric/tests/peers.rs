//! Peers as they should not be: of another epoch, too early, too large, dead, or silent. And one that is a plain
//! gRPC client.
#![forbid(unsafe_code)]

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fabric::grpc::{Counters, Port, PortConfig, Secret};
use fabric::{Fabric, FabricError, Payload, Tag};
use plan::{Epoch, Rank};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;
use tokio_stream::iter;
use wire::v1::exchange_request::{Codec, Dtype, Kind};
use wire::v1::exchange_response::Kind as Answer;
use wire::v1::exchange_service_client::ExchangeServiceClient;
use wire::v1::{ExchangeRequest, ExchangeResponse};

const IMAGE: u64 = 1;
const NOTHING_WANTED: u64 = u64::MAX;

fn quick() -> PortConfig {
    PortConfig {
        silence: Duration::from_secs(20),
        reconnect: Duration::from_millis(300),
        probe: Duration::from_millis(10),
        hello: Duration::from_millis(100),
        ..PortConfig::default()
    }
}

fn port(config: PortConfig) -> Port {
    Port::bind("http://127.0.0.1:0", config).expect("a free port")
}

fn addresses(ports: &[&Port]) -> Vec<String> {
    ports.iter().map(|port| port.address().to_owned()).collect()
}

/// Rank 0 at `a` and rank 1 at `b`, in `epoch`.
fn pair(a: &Port, b: &Port, epoch: Epoch) -> [Arc<dyn Fabric>; 2] {
    let peers = addresses(&[a, b]);
    [a.open(epoch, IMAGE, Rank(0), peers.clone()), b.open(epoch, IMAGE, Rank(1), peers)]
}

fn bytes(n: usize, value: u8) -> Payload {
    Payload::Bytes(vec![value; n].into())
}

/// Waits for what other threads are about to count.
fn until(port: &Port, is_so: impl Fn(&Counters) -> bool) {
    let began = Instant::now();
    while !is_so(&port.counters()) {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", port.counters());
        std::thread::yield_now();
    }
}

/// A request as any protobuf library would make it.
fn request(kind: Kind, epoch: Epoch, tag: u64, sequence: u64, payload: Bytes) -> ExchangeRequest {
    use prost::Message as _;
    let mut request = ExchangeRequest {
        magic: Some(u32::from_le_bytes(*b"FXT1")),
        version: Some(1),
        kind: Some(kind.into()),
        epoch: Some(epoch.0),
        image: Some(IMAGE),
        from: Some(0),
        to: Some(1),
        tag: Some(tag),
        sequence: Some(sequence),
        dtype: Some(Dtype::Bytes.into()),
        codec: Some(Codec::Unspecified.into()),
        length: Some(payload.len() as u64),
        ..ExchangeRequest::default()
    };
    let crc = crc32c::crc32c(&request.encode_to_vec());
    request.header_crc32c = Some(crc);
    request.crc32c = Some(crc32c::crc32c_append(crc, &payload));
    request.payload = Some(payload);
    request
}

/// Sends `requests` by tonic's client and returns the first `n` answers.
fn by_plain_client(port: &Port, requests: Vec<ExchangeRequest>, n: usize) -> Vec<ExchangeResponse> {
    let runtime = Runtime::new().expect("a runtime");
    let address = port.address().to_owned();
    runtime.block_on(async {
        let mut client = ExchangeServiceClient::connect(address).await.expect("connected");
        let requests = iter(requests).chain(tokio_stream::pending());
        let answers = client.exchange(requests).await.expect("a stream").into_inner();
        answers.take(n).map(|answer| answer.expect("an answer")).collect().await
    })
}

#[test]
fn a_plain_grpc_client_is_understood() {
    let (a, b) = (port(quick()), port(quick()));
    let view = b.open(Epoch(1), IMAGE, Rank(1), addresses(&[&a, &b]));
    let hello = request(Kind::Hello, Epoch(0), 0, 0, Bytes::new());
    let tensor = request(Kind::Tensor, Epoch(1), 40, 0, Bytes::from(vec![9; 100_000]));
    let answers = by_plain_client(&b, vec![hello, tensor], 1);
    assert_eq!((answers[0].kind(), answers[0].sequence), (Answer::Received, 1));
    assert_eq!(view.recv(Rank(0), Tag(40)), Ok(bytes(100_000, 9)));
}

#[test]
fn a_replayed_message_is_dropped_and_counted() {
    let (a, b) = (port(quick()), port(quick()));
    let view = b.open(Epoch(1), IMAGE, Rank(1), addresses(&[&a, &b]));
    let tensor = || request(Kind::Tensor, Epoch(1), 1, 0, Bytes::from_static(b"once"));
    by_plain_client(&b, vec![tensor(), tensor(), tensor()], 1);
    by_plain_client(&b, vec![tensor()], 1);
    until(&b, |counted| counted.repeated == 3);
    assert_eq!(view.recv(Rank(0), Tag(1)), Ok(Payload::Bytes("once".into())));
}

#[test]
fn messages_of_an_old_epoch_are_dropped_and_counted() {
    let (a, b) = (port(quick()), port(quick()));
    let [old_a, old_b] = pair(&a, &b, Epoch(1));
    let new_b = b.open(Epoch(2), IMAGE, Rank(1), addresses(&[&a, &b]));
    // The older epoch ended here; rank 0 does not know yet.
    assert_eq!(old_b.recv(Rank(0), Tag(0)), Err(FabricError::Aborted { epoch: Epoch(1) }));
    old_a.send(Rank(1), Tag(0), bytes(10, 1)).expect("queued");
    until(&b, |counted| counted.old_epoch >= 1);
    assert!(a.settle(Duration::from_secs(20)), "the sender is told that nothing is wanted");
    // Where the answer took its time, the sender asked once more.
    let before = b.counters().old_epoch;

    let new_a = a.open(Epoch(2), IMAGE, Rank(0), addresses(&[&a, &b]));
    new_a.send(Rank(1), Tag(0), bytes(10, 2)).expect("queued");
    assert_eq!(new_b.recv(Rank(0), Tag(0)), Ok(bytes(10, 2)), "not the old one's");

    let late = request(Kind::Tensor, Epoch(1), 0, 0, Bytes::from_static(b"late"));
    let answers = by_plain_client(&b, vec![late], 1);
    assert_eq!(answers[0].sequence, NOTHING_WANTED);
    assert_eq!(b.counters().old_epoch, before + 1);
}

#[test]
fn an_aborted_epoch_stays_so() {
    let (a, b) = (port(quick()), port(quick()));
    b.abort(Epoch(5));
    let view = b.open(Epoch(5), IMAGE, Rank(1), addresses(&[&a, &b]));
    assert_eq!(view.recv(Rank(0), Tag(0)), Err(FabricError::Aborted { epoch: Epoch(5) }));
    assert_eq!(view.send(Rank(0), Tag(0), bytes(1, 1)), Err(FabricError::Aborted { epoch: Epoch(5) }));
}

#[test]
fn two_images_are_made_side_by_side() {
    let (a, b) = (port(quick()), port(quick()));
    let peers = addresses(&[&a, &b]);
    let open =
        |epoch, image| [a.open(epoch, image, Rank(0), peers.clone()), b.open(epoch, image, Rank(1), peers.clone())];
    let [newer_a, newer_b] = open(Epoch(9), 1);
    let [older_a, older_b] = open(Epoch(8), 2);
    older_a.send(Rank(1), Tag(0), bytes(10, 8)).expect("queued");
    newer_a.send(Rank(1), Tag(0), bytes(10, 9)).expect("queued");
    assert_eq!(older_b.recv(Rank(0), Tag(0)), Ok(bytes(10, 8)));
    assert_eq!(newer_b.recv(Rank(0), Tag(0)), Ok(bytes(10, 9)));
}

#[test]
fn what_comes_before_an_epoch_is_open_waits_for_it() {
    let (a, b) = (port(quick()), port(quick()));
    let peers = addresses(&[&a, &b]);
    let early = a.open(Epoch(3), IMAGE, Rank(0), peers.clone());
    for tag in 0..5 {
        early.send(Rank(1), Tag(tag), bytes(1000, tag as u8)).expect("queued");
    }
    until(&b, |counted| counted.early == 5);
    assert!(!a.settle(Duration::ZERO), "what may be dropped is not reported as received");
    let view = b.open(Epoch(3), IMAGE, Rank(1), peers);
    for tag in (0..5).rev() {
        assert_eq!(view.recv(Rank(0), Tag(tag)), Ok(bytes(1000, tag as u8)));
    }
    assert!(a.settle(Duration::from_secs(20)));
    assert_eq!(a.counters().resent, 0);
}

#[test]
fn what_is_early_beyond_the_limit_comes_again() {
    let (a, b) = (port(quick()), port(PortConfig { early_limit_bytes: 3000, ..quick() }));
    let peers = addresses(&[&a, &b]);
    let early = a.open(Epoch(3), IMAGE, Rank(0), peers.clone());
    for tag in 0..5 {
        early.send(Rank(1), Tag(tag), bytes(1000, tag as u8)).expect("queued");
    }
    until(&b, |counted| counted.early == 2 && counted.early_dropped + counted.out_of_order >= 3);
    let view = b.open(Epoch(3), IMAGE, Rank(1), peers);
    for tag in 0..5 {
        assert_eq!(view.recv(Rank(0), Tag(tag)), Ok(bytes(1000, tag as u8)));
    }
}

#[test]
fn a_view_that_is_dropped_still_sends_what_it_has() {
    let (a, b) = (port(quick()), port(quick()));
    let [from, to] = pair(&a, &b, Epoch(1));
    from.send(Rank(1), Tag(0), bytes(20 << 20, 5)).expect("queued");
    drop(from);
    assert_eq!(to.recv(Rank(0), Tag(0)), Ok(bytes(20 << 20, 5)));
    assert!(a.settle(Duration::from_secs(20)));
}

#[test]
fn send_waits_when_the_credit_is_used_up() {
    let credit_bytes = (1 << 20) + 4 * 256;
    let config = PortConfig { credit_bytes, silence: Duration::from_millis(150), ..quick() };
    let (a, b) = (port(config), port(quick()));
    // Rank 1 has not opened the epoch, so it does not answer.
    let view = a.open(Epoch(1), IMAGE, Rank(0), addresses(&[&a, &b]));
    for tag in 0..4 {
        view.send(Rank(1), Tag(tag), bytes(256 << 10, 1)).expect("within the credit");
    }
    let waited = view.send(Rank(1), Tag(4), bytes(1, 1));
    assert!(matches!(waited, Err(FabricError::Silent { peer: Rank(1), waited_ms: 150.. })), "{waited:?}");
    // Once answers come, so does the credit; a message larger than the credit goes alone.
    let to = b.open(Epoch(1), IMAGE, Rank(1), addresses(&[&a, &b]));
    assert!(to.recv(Rank(0), Tag(3)).is_ok());
    assert!(a.settle(Duration::from_secs(20)));
    view.send(Rank(1), Tag(5), bytes(3 << 20, 2)).expect("alone");
    assert_eq!(to.recv(Rank(0), Tag(5)), Ok(bytes(3 << 20, 2)));
}

#[test]
fn an_abort_ends_a_wait_for_credit() {
    let (a, b) = (port(PortConfig { credit_bytes: 1000, ..quick() }), port(quick()));
    let view = a.open(Epoch(1), IMAGE, Rank(0), addresses(&[&a, &b]));
    view.send(Rank(1), Tag(0), bytes(1000, 1)).expect("within the credit");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| view.send(Rank(1), Tag(1), bytes(1, 1)));
        until(&b, |counted| counted.early == 1);
        a.abort(Epoch(1));
        assert_eq!(waiting.join().expect("no panic"), Err(FabricError::Aborted { epoch: Epoch(1) }));
    });
}

#[test]
fn a_message_over_the_limit_is_refused_at_either_end() {
    let small = PortConfig { message_limit_bytes: 1000, ..quick() };
    // Little credit, so that the sender waits for the answer and does not fill the time with messages.
    let (a, b) = (port(PortConfig { credit_bytes: 4000, ..quick() }), port(small));
    let [a_view, b_view] = pair(&a, &b, Epoch(1));
    let too_large = FabricError::TooLarge { bytes: 1001, limit: 1000 };
    assert_eq!(b_view.send(Rank(0), Tag(0), bytes(1001, 1)), Err(too_large.clone()));
    a_view.send(Rank(1), Tag(0), bytes(1001, 1)).expect("within the sender's own limit");
    assert_eq!(b_view.recv(Rank(0), Tag(0)), Err(too_large.clone()));
    let told = (1..).map(Tag).find_map(|tag| a_view.send(Rank(1), tag, bytes(1, 1)).err());
    assert_eq!(told, Some(too_large));
    assert!(b.counters().refused >= 1);
}

#[test]
fn a_peer_whose_port_closed_is_gone() {
    let (a, b) = (port(quick()), port(quick()));
    let [view, other] = pair(&a, &b, Epoch(1));
    other.send(Rank(0), Tag(0), bytes(1, 1)).expect("queued");
    assert!(view.recv(Rank(1), Tag(0)).is_ok());
    drop((other, b));
    let gone = view.recv(Rank(1), Tag(1));
    assert!(matches!(gone, Err(FabricError::PeerGone { peer: Rank(1), .. })), "{gone:?}");
}

#[test]
fn a_peer_that_was_started_anew_in_an_epoch_is_gone() {
    let (a, b) = (port(quick()), port(quick()));
    let [view, other] = pair(&a, &b, Epoch(1));
    view.send(Rank(1), Tag(0), bytes(1, 1)).expect("queued");
    assert!(other.recv(Rank(0), Tag(0)).is_ok() && a.settle(Duration::from_secs(20)));
    let peers = addresses(&[&a, &b]);
    let address = b.address().to_owned();
    drop((other, b));
    let b = Port::bind(&address, quick()).expect("the address is free again");
    let _view = b.open(Epoch(1), IMAGE, Rank(1), peers);
    let told = (1..).map(Tag).find_map(|tag| view.send(Rank(1), tag, bytes(1, 1)).err());
    assert!(matches!(told, Some(FabricError::PeerGone { peer: Rank(1), .. })), "{told:?}");
}

#[test]
fn a_peer_that_takes_connections_and_says_nothing_is_gone() {
    let mute = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let a = port(quick());
    let mute_address = format!("http://{}", mute.local_addr().expect("bound"));
    let view = a.open(Epoch(1), IMAGE, Rank(0), vec![a.address().to_owned(), mute_address]);
    let gone = view.recv(Rank(1), Tag(0));
    let Err(FabricError::PeerGone { peer: Rank(1), reason }) = gone else { panic!("{gone:?}") };
    assert!(reason.contains("said nothing"), "{reason}");
}

#[test]
fn a_connection_that_says_nothing_is_closed_and_counted() {
    use std::io::Read as _;
    let a = port(quick());
    let mut mute = TcpStream::connect(a.address().trim_start_matches("http://")).expect("connected");
    let mut greeting = Vec::new();
    // The server's settings, then the end.
    mute.read_to_end(&mut greeting).expect("closed");
    assert_eq!(a.counters().silent, 1);
}

#[test]
fn a_stream_that_says_nothing_is_closed_and_counted() {
    let a = port(quick());
    let runtime = Runtime::new().expect("a runtime");
    let address = a.address().to_owned();
    let ended = runtime.block_on(async {
        let mut client = ExchangeServiceClient::connect(address).await.expect("connected");
        let answers = client.exchange(tokio_stream::pending()).await.expect("a stream");
        answers.into_inner().message().await
    });
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(a.counters().silent, 1);
}

#[test]
fn what_is_no_tensor_stream_is_ended_by_name_and_harms_nobody() {
    let (a, b) = (port(quick()), port(quick()));
    let [a_view, b_view] = pair(&a, &b, Epoch(1));
    let runtime = Runtime::new().expect("a runtime");
    let mut lying = request(Kind::Tensor, Epoch(1), 0, 0, Bytes::from_static(b"12345678"));
    lying.length = Some(1 << 40);
    let mut other_version = request(Kind::Hello, Epoch(1), 0, 0, Bytes::new());
    other_version.version = Some(2);
    for bad in [ExchangeRequest::default(), other_version] {
        let address = b.address().to_owned();
        let status = runtime.block_on(async {
            let mut client = ExchangeServiceClient::connect(address).await.expect("connected");
            let requests = iter([bad]).chain(tokio_stream::pending());
            client.exchange(requests).await.expect("a stream").into_inner().message().await
        });
        assert_eq!(status.expect_err("refused").code(), tonic::Code::InvalidArgument);
    }
    assert_eq!(b.counters().malformed, 2);
    // A header that was tampered with is passed over, and what follows is read.
    let good = request(Kind::Tensor, Epoch(1), 0, 0, Bytes::from_static(b"good"));
    by_plain_client(&b, vec![lying, good], 1);
    assert_eq!(b_view.recv(Rank(0), Tag(0)), Ok(Payload::Bytes("good".into())));
    assert_eq!(b.counters().corrupt, 1);
    b_view.send(Rank(0), Tag(1), bytes(5, 5)).expect("queued");
    assert_eq!(a_view.recv(Rank(1), Tag(1)), Ok(bytes(5, 5)));
}

#[test]
fn messages_of_another_image_are_dropped_and_counted() {
    let (a, b) = (port(quick()), port(quick()));
    let _view = b.open(Epoch(1), IMAGE + 1, Rank(1), addresses(&[&a, &b]));
    let answers = by_plain_client(&b, vec![request(Kind::Tensor, Epoch(1), 0, 0, Bytes::new())], 1);
    assert_eq!(answers[0].sequence, NOTHING_WANTED);
    assert_eq!(b.counters().other_image, 1);
}

#[test]
fn a_malformed_address_is_named() {
    for address in ["localhost:1", "http://localhost", "unix://relative", "https://1.2.3.4:5"] {
        let error = Port::bind(address, quick()).err().map(|error| error.to_string()).expect("refused");
        assert!(error.contains(address), "{error}");
    }
    let a = port(quick());
    let view = a.open(Epoch(1), IMAGE, Rank(0), vec![a.address().to_owned(), "nowhere".to_owned()]);
    let sent = view.send(Rank(1), Tag(0), bytes(1, 1));
    assert!(matches!(sent, Err(FabricError::PeerGone { .. })), "{sent:?}");
}

#[test]
fn a_socket_left_behind_by_a_killed_process_is_bound_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("port");
    // The listener is closed and its file stays, as after a kill.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let address = format!("unix://{}", path.display());
    let first = Port::bind(&address, quick()).expect("nobody listens there");
    assert!(Port::bind(&address, quick()).is_err(), "somebody listens there");
    drop(first);
}

/// Sends `requests` by tonic's client for as long as the result lives.
fn keep_saying(port: &Port, requests: Vec<ExchangeRequest>) -> Runtime {
    let runtime = Runtime::new().expect("a runtime");
    let address = port.address().to_owned();
    runtime.spawn(async move {
        let mut client = ExchangeServiceClient::connect(address).await.expect("connected");
        let requests = iter(requests).chain(tokio_stream::pending());
        let mut answers = client.exchange(requests).await.expect("a stream").into_inner();
        while let Ok(Some(_)) = answers.message().await {}
    });
    runtime
}

const SECRET: [u8; Secret::N_BYTES] = [9; Secret::N_BYTES];

/// Shows `secret` for an epoch.
fn shows(secret: [u8; Secret::N_BYTES], epoch: Epoch) -> ExchangeRequest {
    request(Kind::Hello, epoch, 0, 0, Bytes::copy_from_slice(&secret))
}

#[test]
fn a_stream_that_shows_the_secret_is_believed_and_no_other() {
    let (a, b) = (port(quick()), port(quick()));
    let epoch = Epoch(1);
    let peers = addresses(&[&a, &b]);
    let view = b.open_with(Secret::new(SECRET), (epoch, IMAGE), Rank(1), peers);
    let tensor = |text: &'static [u8]| request(Kind::Tensor, epoch, 0, 0, Bytes::from_static(text));
    let mut almost = SECRET;
    almost[31] ^= 1;
    for hello in [None, Some(shows([0; 32], epoch)), Some(shows(almost, epoch)), Some(shows(SECRET, Epoch(2)))] {
        let before = b.counters().strange;
        let probe = request(Kind::Probe, epoch, 0, 5, Bytes::new());
        let _stranger = keep_saying(&b, hello.into_iter().chain([tensor(b"forged"), probe]).collect());
        until(&b, |counted| counted.strange == before + 2);
    }
    let answers = by_plain_client(&b, vec![shows(SECRET, epoch), tensor(b"true")], 1);
    assert_eq!((answers[0].kind(), answers[0].sequence), (Answer::Received, 1));
    assert_eq!(view.recv(Rank(0), Tag(0)), Ok(Payload::Bytes("true".into())));
}

#[test]
fn what_a_stranger_sends_before_an_epoch_is_open_does_not_take_a_rank_s_place() {
    let (a, b) = (port(quick()), port(quick()));
    let (epoch, secret) = (Epoch(3), Secret::new(SECRET));
    let peers = addresses(&[&a, &b]);
    let forged = |sequence| request(Kind::Tensor, epoch, sequence, sequence, Bytes::from(vec![1; 1000]));
    let _unknown = keep_saying(&b, vec![forged(0), forged(1), forged(2)]);
    let _other = keep_saying(&b, vec![shows([1; 32], epoch), forged(0), forged(1)]);
    until(&b, |counted| counted.early == 5);
    let from = a.open_with(secret, (epoch, IMAGE), Rank(0), peers.clone());
    for tag in 0..3 {
        from.send(Rank(1), Tag(tag), bytes(1000, 2)).expect("queued");
    }
    until(&b, |counted| counted.early == 8);
    let to = b.open_with(secret, (epoch, IMAGE), Rank(1), peers);
    for tag in 0..3 {
        assert_eq!(to.recv(Rank(0), Tag(tag)), Ok(bytes(1000, 2)));
    }
    assert!(a.settle(Duration::from_secs(20)));
    assert_eq!(b.counters().strange, 5);
}

#[test]
fn what_a_stranger_fills_the_room_with_comes_from_the_ranks_all_the_same() {
    let (a, b) = (port(quick()), port(PortConfig { early_limit_bytes: 3000, ..quick() }));
    let (epoch, secret) = (Epoch(3), Secret::new(SECRET));
    let peers = addresses(&[&a, &b]);
    let forged = |sequence| request(Kind::Tensor, epoch, sequence, sequence, Bytes::from(vec![1; 1200]));
    let _stranger = keep_saying(&b, vec![forged(0), forged(1)]);
    until(&b, |counted| counted.early == 2);
    let from = a.open_with(secret, (epoch, IMAGE), Rank(0), peers.clone());
    from.send(Rank(1), Tag(0), bytes(1000, 2)).expect("queued");
    until(&b, |counted| counted.early_dropped >= 1);
    let to = b.open_with(secret, (epoch, IMAGE), Rank(1), peers);
    assert_eq!(to.recv(Rank(0), Tag(0)), Ok(bytes(1000, 2)));
}

#[test]
fn a_stream_that_broke_shows_the_secret_again() {
    let faults = fabric::fault::Faults { seed: 3, truncated_of_1000: 300, ..Default::default() };
    let (a, b) = (port(PortConfig { faults: Some(faults), ..quick() }), port(quick()));
    let secret = Secret::new(SECRET);
    let peers = addresses(&[&a, &b]);
    let from = a.open_with(secret, (Epoch(1), IMAGE), Rank(0), peers.clone());
    let to = b.open_with(secret, (Epoch(1), IMAGE), Rank(1), peers);
    for tag in 0..20 {
        from.send(Rank(1), Tag(tag), bytes(20_000, tag as u8)).expect("queued");
    }
    for tag in 0..20 {
        assert_eq!(to.recv(Rank(0), Tag(tag)), Ok(bytes(20_000, tag as u8)));
    }
    assert!(a.counters().connected > 1, "{:?}", a.counters());
    assert_eq!(b.counters().strange, 0);
}

#[test]
fn a_send_that_would_wait_can_be_asked_for_and_large_messages_make_their_own_credit() {
    let (a, b) = (port(PortConfig { credit_bytes: 1 << 20, ..quick() }), port(quick()));
    // Rank 1 has not opened the epoch, so nothing is answered.
    let view = a.open(Epoch(1), IMAGE, Rank(0), addresses(&[&a, &b]));
    let large = bytes(3 << 20, 1);
    assert_eq!(view.try_send(Rank(1), Tag(0), &large), Ok(true));
    assert_eq!(view.try_send(Rank(1), Tag(1), &large), Ok(true), "values may follow keys of their size");
    assert_eq!(view.try_send(Rank(1), Tag(2), &large), Ok(false));
    assert_eq!(view.try_send(Rank(1), Tag(2), &bytes(1, 2)), Ok(false));
    let to = b.open(Epoch(1), IMAGE, Rank(1), addresses(&[&a, &b]));
    assert_eq!(to.recv(Rank(0), Tag(1)), Ok(large.clone()));
    assert!(a.settle(Duration::from_secs(20)));
    assert_eq!(view.try_send(Rank(1), Tag(2), &large), Ok(true));
    assert_eq!(to.recv(Rank(0), Tag(2)), Ok(large), "what was not queued was not sent");
}
