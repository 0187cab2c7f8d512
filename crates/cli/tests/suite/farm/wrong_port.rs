//! Commands and workers that are given the address of something else, and strangers at the coordinator's port.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::{Farm, Process};
use crate::desk::{Desk, FRESCO};

/// Commands of a client that need a coordinator.
const COMMANDS: [&[&str]; 7] = [
    &["list"],
    &["get", "job"],
    &["wait", "job"],
    &["watch", "job"],
    &["download", "job"],
    &["submit", "x", "--model", "demo", "--size", "64"],
    &["submit", "x", "--model", "demo", "--size", "64", "--wait"],
];

fn check(desk: &Desk, url: &str, parts: &[&str]) {
    for command in COMMANDS {
        desk.fresco(&[command, &["--coordinator", url]].concat()).refused(9, &[&[url], parts].concat());
    }
}

/// A server that answers whoever connects with `words` and closes.
fn server(words: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            drop(stream.write_all(words));
            drop(stream.shutdown(std::net::Shutdown::Write));
            std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    url
}

#[test]
fn the_status_port_is_told_from_the_coordinators() {
    let desk = Desk::new();
    let args = ["coordinator", "--listen", "127.0.0.1:0", "--status", "127.0.0.1:0"];
    let coordinator = Process::start(&mut desk.command(FRESCO, &args));
    let url = format!("http://{}", coordinator.address_of_metrics());
    check(&desk, &url, &["is no coordinator", "--status"]);
    let args = ["worker", "--coordinator", &url, "--threads", "1"];
    let worker = Process::start(&mut desk.command(FRESCO, &args));
    let said = worker.until_it_says("no coordinator");
    assert!(said.contains(&url) && said.contains("--status"), "{said}");
}

#[test]
fn a_web_server_and_one_with_tls_are_told_from_a_coordinator() {
    let desk = Desk::new();
    check(&desk, &server(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"), &["no coordinator", "HTTP/1"]);
    check(&desk, &server(b"\x15\x03\x01\0\x02\x02\x46"), &["no coordinator", "TLS"]);
}

#[test]
fn a_client_that_speaks_http1_is_told_what_the_coordinators_port_is() {
    let farm = Farm::start();
    for request in ["GET /healthz", "POST /fresco.v1.RenderService/ListJobs"] {
        let mut stream = TcpStream::connect(farm.address()).expect("it listens");
        write!(stream, "{request} HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n").expect("it reads");
        stream.shutdown(std::net::Shutdown::Write).expect("can be closed");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 505 ") && answer.contains("gRPC"), "{answer}");
    }
}
