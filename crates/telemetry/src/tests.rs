//! The port as probes, Prometheus and strangers use it.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Answer;
use tonic_health::pb::health_client::HealthClient;

use super::*;

/// Long after anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

async fn started(limits: Limits) -> Told {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    start_with(any, registry("worker").expect("no name twice"), || async {}, limits).await.expect("a free port")
}

async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("it listens")
}

/// The answer to one request over a connection of its own.
async fn get(address: SocketAddr, method_and_path: &str, more: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("{method_and_path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

/// Waits until the other side has closed.
async fn until_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // A reset is a close, too.
    drop(closed.expect("it is closed"));
}

#[tokio::test]
async fn probes_and_prometheus_are_answered_on_one_port() {
    let Told { address, health } = started(Limits::USUAL).await;
    let mut client = HealthClient::new(channel(address).await);
    let mut ask = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.map(|answer| answer.into_inner().status())
    };
    assert_eq!(ask(LIVENESS).await.expect("is known"), Answer::Serving);
    assert_eq!(ask("").await.expect("is known"), Answer::NotServing);
    health.ready(true).await;
    assert_eq!(ask("").await.expect("is known"), Answer::Serving);
    assert!(ask("nobody").await.is_err());

    let answer = get(address, "GET /metrics", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains(r#"role="worker""#) && answer.contains("fresco_build_info"), "{answer}");
}

#[tokio::test]
async fn probes_over_http_learn_the_truth() {
    let Told { address, health } = started(Limits::USUAL).await;
    let code = async |path: &str| get(address, &format!("GET {path}"), "").await.split(' ').nth(1).map(str::to_owned);
    for is_ready in [false, true, false] {
        health.ready(is_ready).await;
        for path in ["/livez", "/healthz"] {
            assert_eq!(code(path).await.as_deref(), Some("200"), "{path}");
        }
        assert_eq!(code("/readyz").await.as_deref(), Some(if is_ready { "200" } else { "503" }));
    }
}

#[tokio::test]
async fn what_is_not_there_is_never_well() {
    let Told { address, .. } = started(Limits::USUAL).await;
    let grpc = "Content-Type: application/grpc\r\n";
    for (request, more) in [
        ("GET /", ""),
        ("GET /health", ""),
        ("GET /healthz/", ""),
        ("GET /anything?x=1", ""),
        ("POST /fresco.v1.RenderService/CreateJob", grpc),
        ("GET /grpc.health.v1.Health/Check", ""),
        ("POST /grpc.health.v1.Health/Check", grpc),
        ("POST /grpc.health.v1.Health/Check", "Content-Type: application/grpc-web\r\n"),
    ] {
        let answer = get(address, request, more).await;
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("grpc-status"), "{request}: {answer}");
        assert!(answer.contains("/metrics"), "it says what there is: {answer}");
    }
    assert!(get(address, "POST /readyz", "").await.starts_with("HTTP/1.1 405"));
    let mut client = tonic::client::Grpc::new(channel(address).await);
    client.ready().await.expect("it is connected");
    let path = axum::http::uri::PathAndQuery::from_static("/fresco.v1.RenderService/ListJobs");
    let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let refused = client.unary(tonic::Request::new(HealthCheckRequest::default()), path, codec).await;
    let refused = refused.expect_err("nobody serves it");
    assert!(refused.code() == Code::Unimplemented && refused.message().contains("status port"), "{refused:?}");
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let short = Duration::from_millis(50);
    let limits = Limits { silent: short, idle: short, last_answers: short, ..Limits::USUAL };
    let Told { address, .. } = started(limits).await;
    let mut silent = TcpStream::connect(address).await.expect("it listens");
    let mut half = TcpStream::connect(address).await.expect("it listens");
    half.write_all(b"GET /metrics HTTP/1.1\r\nHo").await.expect("it reads");
    let mut second = TcpStream::connect(address).await.expect("it listens");
    second.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("it reads");
    let mut kept = TcpStream::connect(address).await.expect("it listens");
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n").await.expect("it reads");
    for stream in [&mut silent, &mut half, &mut second, &mut kept] {
        until_closed(stream).await;
    }
}

#[tokio::test]
async fn where_there_are_too_many_connections_the_most_silent_goes_and_a_probe_is_answered() {
    let limits = Limits { most: 8, silent: PATIENCE * 10, ..Limits::USUAL };
    let Told { address, .. } = started(limits).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(address).await.expect("it listens"));
    }
    assert!(get(address, "GET /livez", "").await.starts_with("HTTP/1.1 200"));
    // Of a hundred no more than eight may stay, and the last to come are the last to go.
    for stream in &mut silent[..92] {
        until_closed(stream).await;
    }
}
