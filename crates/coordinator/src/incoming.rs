//! Connections as they come in: passed on once they speak HTTP/2, closed if they say something else or nothing.
//!
//! Leaves out peers that vanish later: those the server pings.

use std::io;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

/// What every client of HTTP/2 says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection may take to say it.
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
    /// Before the next try when there are too many files open, for one.
    const PAUSE: Duration = Duration::from_millis(100);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let ready = ready.clone();
                tokio::spawn(async move {
                    match tokio::time::timeout(PREFACE_WITHIN, speaks_http2(&stream)).await {
                        // A server that has ended does not want it.
                        Ok(Ok(true)) => drop(ready.send(Ok(stream)).await),
                        _ => tracing::debug!(%peer, "a connection that does not speak HTTP/2 was closed"),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether a connection begins as it should; what it says stays to be read.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    /// Between two looks at a preface of which a part is there.
    const PAUSE: Duration = Duration::from_millis(20);
    stream.set_nodelay(true)?;
    let mut said = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut said).await?;
        if n == 0 || said[..n] != PREFACE[..n] {
            return Ok(false);
        }
        if n == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(PAUSE).await;
    }
}
