//! Connections as they come in: passed on once they speak HTTP/2, and else sent away with as good an answer as they can read.
//!
//! Leaves out peers that vanish later: those the server pings.

use std::io;
use std::time::{Duration, Instant};

use machine::Refusals;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// What every client of HTTP/2 says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to say it, and to take in an answer.
const PREFACE_WITHIN: Duration = Duration::from_secs(5);
/// Connections that wait to be served.
const BACKLOG: usize = 64;

/// Connections of `listener` that are worth serving.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    let (ready, connections) = mpsc::channel(BACKLOG);
    tokio::spawn(accept(listener, ready));
    ReceiverStream::new(connections)
}

async fn accept(listener: TcpListener, ready: mpsc::Sender<io::Result<TcpStream>>) {
    let mut refusals = Refusals::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                refusals.accepted();
                let ready = ready.clone();
                tokio::spawn(async move {
                    let begun = tokio::time::timeout(PREFACE_WITHIN, begins_with(&stream)).await;
                    match begun {
                        // A server that has ended does not want it.
                        Ok(Ok(Beginning::Http2)) => drop(ready.send(Ok(stream)).await),
                        Ok(Ok(Beginning::Http1)) => {
                            tracing::debug!(%peer, "a connection that speaks HTTP/1 was told where it is");
                            drop(tokio::time::timeout(PREFACE_WITHIN, turn_away(stream)).await);
                        }
                        _ => tracing::debug!(%peer, "a connection that does not speak HTTP/2 was closed"),
                    }
                });
            }
            Err(error) => tokio::time::sleep(refusals.refused(Instant::now(), "connections", &error)).await,
        }
    }
}

/// What a connection says first.
#[derive(Debug, PartialEq, Eq)]
enum Beginning {
    Http2,
    /// A browser, gRPC-web, Connect, or a probe.
    Http1,
    Other,
}

/// How a connection begins; what it says stays to be read.
async fn begins_with(stream: &TcpStream) -> io::Result<Beginning> {
    /// Between two looks at a beginning of which a part is there.
    const PAUSE: Duration = Duration::from_millis(20);
    stream.set_nodelay(true)?;
    let mut said = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut said).await?;
        match beginning(&said[..n]) {
            Some(beginning) => return Ok(beginning),
            None if n == 0 => return Ok(Beginning::Other),
            None => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// What begins with `said`, once that is enough to tell.
fn beginning(said: &[u8]) -> Option<Beginning> {
    const METHODS: [&[u8]; 7] = [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"DELETE ", b"CONNECT "];
    let fits = |expected: &[u8]| expected.starts_with(said) || said.starts_with(expected);
    if said.starts_with(PREFACE) {
        return Some(Beginning::Http2);
    }
    if METHODS.iter().any(|method| said.starts_with(method)) {
        return Some(Beginning::Http1);
    }
    let may_be = fits(PREFACE) || METHODS.iter().any(|method| fits(method));
    if may_be { None } else { Some(Beginning::Other) }
}

/// Answers a request of HTTP/1 with what this port is.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    const WHAT: &str = "this is the port of a fresco coordinator, which speaks gRPC over HTTP/2: use `fresco` or another gRPC \
                        client; probes and metrics are at the port of --status\n";
    let answer = format!(
        "HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{WHAT}",
        WHAT.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // What was asked is read to its end: closed before, the answer might be lost with it.
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio_stream::StreamExt;

    use super::*;

    async fn connected() -> (TcpStream, impl Stream<Item = io::Result<TcpStream>> + Unpin) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let connections = Box::pin(incoming(listener));
        (TcpStream::connect(address).await.expect("it listens"), connections)
    }

    #[test]
    fn a_connection_is_judged_as_soon_as_it_can_be() {
        let check = |said: &[u8], expected| assert_eq!(beginning(said), expected, "{}", said.escape_ascii());
        check(PREFACE, Some(Beginning::Http2));
        check(b"PRI * HTTP/2.0\r\n", None);
        check(b"", None);
        check(b"P", None);
        check(b"PO", None);
        check(b"PRX", Some(Beginning::Other));
        check(b"GET / HTTP/1.1\r\n", Some(Beginning::Http1));
        check(b"POST /fresco.v1.RenderSe", Some(Beginning::Http1));
        check(b"\x16\x03\x01", Some(Beginning::Other));
    }

    #[tokio::test]
    async fn who_speaks_http1_is_told_what_this_port_is() {
        let (mut stream, _connections) = connected().await;
        stream
            .write_all(b"POST /fresco.v1.RenderService/ListJobs HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("it reads");
        stream.shutdown().await.expect("can be closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("it answers");
        assert!(
            answer.starts_with("HTTP/1.1 505 ") && answer.contains("gRPC") && answer.contains("--status"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn who_speaks_http2_is_passed_on_with_all_it_said() {
        let (mut stream, mut connections) = connected().await;
        stream.write_all(PREFACE).await.expect("it reads");
        let mut passed = connections.next().await.expect("it is passed on").expect("is a connection");
        let mut said = [0; PREFACE.len()];
        passed.read_exact(&mut said).await.expect("it is there");
        assert_eq!(&said, PREFACE);
    }
}
