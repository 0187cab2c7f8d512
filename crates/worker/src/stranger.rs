//! Who answers where a coordinator is expected: a web server, TLS, the status port. Users name wrong ports, and "protocol
//! error" does not help them.
//!
//! Looks and judges; whether to try again is the caller's business.

use std::error::Error;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::codegen::http::Uri;
use tonic::{Code, Status};

/// What a server was found to be that is no coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stranger {
    Http1,
    Tls,
    Other,
}

/// Why a call to `url` failed, in one line, if that is because no coordinator but something else listens there.
pub async fn explain(url: &str, status: &Status) -> Option<String> {
    if status.code() == Code::Unimplemented {
        let said = if status.message().is_empty() { "unimplemented" } else { status.message() };
        return Some(format!("{url} is no coordinator of this version ({said}): is it the port of --status?"));
    }
    // What a server has said itself has no source: that was a coordinator.
    status.source()?;
    let what = match look(url).await? {
        Stranger::Http1 => "speaks HTTP/1, as web servers do: is it another program's port?",
        Stranger::Tls => "speaks TLS, and a coordinator does not: is it a proxy's port?",
        Stranger::Other => "speaks another protocol than gRPC: is it another program's port?",
    };
    Some(format!("{url} is no coordinator: it {what}"))
}

/// Greets a server as a client of HTTP/2 does and judges its first words; nothing if it may be a coordinator, or is away.
async fn look(url: &str) -> Option<Stranger> {
    const WITHIN: Duration = Duration::from_secs(2);
    /// The preface and an empty frame of settings (RFC 9113, 3.4).
    const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let uri: Uri = url.parse().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let address = (host, uri.port_u16().unwrap_or(80));
    let words = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(GREETING).await?;
        // As many as an alert of TLS has, and enough for every other.
        let mut words = [0; 7];
        let mut n = 0;
        while n < words.len() {
            match stream.read(&mut words[n..]).await? {
                0 => break,
                more => n += more,
            }
        }
        Ok::<_, std::io::Error>(words[..n].to_vec())
    };
    judge(&tokio::time::timeout(WITHIN, words).await.ok()?.ok()?)
}

/// What a server is that answers a greeting with `words`.
fn judge(words: &[u8]) -> Option<Stranger> {
    match words {
        [] => None,
        // A frame of settings, which is how HTTP/2 answers.
        [_, _, _, 4, ..] => None,
        [0x15 | 0x16, 3, ..] => Some(Stranger::Tls),
        words if words.starts_with(b"HTTP/1.") => Some(Stranger::Http1),
        _ => Some(Stranger::Other),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// What is said of a server that answers everybody with `words`.
    async fn told(words: &'static [u8]) -> Option<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                drop(stream.write_all(words).await);
                drop(stream.shutdown().await);
                // Closed with something unread, what was said might be lost.
                drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
            }
        });
        let broken = Status::from_error(Box::new(std::io::Error::other("protocol error")));
        explain(&url, &broken).await.inspect(|told| assert!(told.starts_with(&url) && told.contains("?"), "{told}"))
    }

    #[tokio::test]
    async fn a_stranger_is_told_by_its_first_words() {
        let check = async |words: &'static [u8], expected: &str| {
            let told = told(words).await;
            assert!(told.as_ref().is_some_and(|told| told.contains(expected)), "{told:?}, not {expected}");
        };
        check(b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1").await;
        check(b"HTTP/1.0 400 Bad Request\r\n\r\n", "HTTP/1").await;
        check(b"\x15\x03\x01\0\x02\x02\x46", "TLS").await;
        check(b"SSH-2.0-OpenSSH_9.9\r\n", "another protocol").await;
        assert_eq!(told(b"\0\0\x06\x04\0\0\0\0\0").await, None, "HTTP/2 may be a coordinator");
        assert_eq!(told(b"").await, None, "one that ends says nothing");
    }

    #[tokio::test]
    async fn what_a_coordinator_says_is_not_judged() {
        let url = "http://127.0.0.1:1";
        assert_eq!(explain(url, &Status::unavailable("the coordinator is ending")).await, None);
        assert_eq!(explain(url, &Status::internal("a bug")).await, None);
        let told = explain(url, &Status::unimplemented("")).await.expect("it is no coordinator");
        assert!(told.starts_with(url) && told.contains("--status"), "{told}");
    }
}
