//! What a new connection says first, and the answer to those that speak HTTP/1.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What every client of HTTP/2 says first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection says first.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Http2,
    /// A browser, gRPC-web, Connect, or a probe.
    Http1,
    Other,
}

/// How a connection begins; what it says stays to be read.
pub(super) async fn begins_with(stream: &TcpStream) -> io::Result<Beginning> {
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
pub(super) async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
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
    use super::*;

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
}
