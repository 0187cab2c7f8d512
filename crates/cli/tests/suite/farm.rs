//! A farm of real processes on loopback, and what is watched of it; the tests are in the files below.
//!
//! Whatever is done to it, it draws the bytes of one worker.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::desk::{Desk, FRESCO, Run};

mod away;
mod clients;
mod crowds;
mod folders;
mod hangs;
mod kills;
mod losses;
mod strangers;
mod values;
mod wrong_port;

/// Long enough to be killed in, small enough to be drawn often.
const PICTURE: [&str; 5] = ["a calm sea at dawn", "--size", "192x256", "--steps", "8"];
const STEPS: u64 = 8;
const LEASE_MS: u64 = 1000;

/// Ends its process with the test.
struct Process {
    child: Child,
    /// Lines it says on standard error, read so that the pipe never fills.
    said: Receiver<String>,
}

impl Process {
    fn start(command: &mut Command) -> Self {
        let piped = command.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("the program can be started");
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let (heard, said) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(heard.send(line))));
        Self { child, said }
    }

    /// Waits for a line that holds `part`, and gives it.
    fn until_it_says(&self, part: &str) -> String {
        let mut lines = Vec::new();
        for line in &self.said {
            if line.contains(part) {
                return line;
            }
            lines.push(line);
        }
        panic!("it ended and did not say `{part}`: {lines:?}");
    }

    /// Where it tells what it did, once it says so.
    fn address_of_metrics(&self) -> String {
        let line = self.until_it_says("metrics on http://");
        let from = line.find("127.0.0.1:").expect("an address of this machine");
        line[from..].trim_end_matches("/metrics").to_owned()
    }

    /// Waits until SIGTERM is no longer the system's business.
    fn until_it_heeds_sigterm(&self) {
        const SIGTERM_BIT: u64 = 1 << 14;
        let status = format!("/proc/{}/status", self.child.id());
        let heeds = || {
            let text = std::fs::read_to_string(&status).expect("it runs");
            let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).expect("Linux tells");
            u64::from_str_radix(caught.trim(), 16).expect("a mask") & SIGTERM_BIT != 0
        };
        let start = Instant::now();
        while !heeds() {
            assert!(start.elapsed() < Duration::from_secs(60), "it does not heed SIGTERM");
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success(), "kill {signal} {pid}");
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started here");
    }

    /// How it ended, and the lines it said that were not read yet.
    fn rest(mut self) -> (Option<i32>, Vec<String>) {
        let said = self.said.iter().collect();
        (self.child.wait().expect("it was started here").code(), said)
    }

    /// How it ended.
    fn wait(mut self) -> Option<i32> {
        self.child.wait().expect("it was started here").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A coordinator, and where it is.
struct Farm {
    desk: Desk,
    coordinator: Option<Process>,
    url: String,
    /// More flags of its coordinator.
    more: Vec<String>,
}

impl Farm {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more flags for the coordinator.
    fn start_with(more: &[&str]) -> Self {
        // A port that was free a moment ago: a restarted coordinator needs the same one.
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let mut farm =
            Self { desk: Desk::new(), coordinator: None, url: format!("http://{address}"), more: Vec::new() };
        farm.more.extend(more.iter().map(|flag| (*flag).to_owned()));
        farm.start_coordinator();
        farm
    }

    fn start_coordinator(&mut self) {
        self.start_coordinator_with(&[]);
    }

    fn start_coordinator_with(&mut self, more: &[&str]) {
        let lease_ms = LEASE_MS.to_string();
        let own: Vec<&str> = self.more.iter().map(String::as_str).collect();
        let mut args = vec!["coordinator", "--listen", self.address()];
        if !own.contains(&"--lease-ttl-ms") {
            args.extend(["--lease-ttl-ms", &lease_ms]);
        }
        let places = ["--store", "redb:data/store", "--artifacts", "file:data/pictures"];
        let started = Process::start(&mut self.desk.command(FRESCO, &[&args[..], &places, &own, more].concat()));
        started.until_it_says("coordinating on");
        self.coordinator = Some(started);
    }

    /// Where it listens.
    fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    fn worker(&self, name: &str) -> Process {
        self.worker_with(name, &[])
    }

    fn worker_with(&self, name: &str, more: &[&str]) -> Process {
        let args = ["worker", "--coordinator", &self.url, "--name", name, "--threads", "1"];
        let mut command = self.desk.command(FRESCO, &[&args[..], more].concat());
        Process::start(command.env("FRESCO_LOG", "warn,worker=info"))
    }

    fn call(&self, args: &[&str]) -> Run {
        self.desk.fresco(&[args, &["--coordinator", &self.url]].concat())
    }

    /// Submits the picture with a seed; gives the job's id.
    fn submit(&self, seed: u64) -> String {
        let seed = seed.to_string();
        let run = self.call(&[&["submit"], &PICTURE[..], &["--seed", &seed]].concat()).quiet();
        run.stdout.trim().to_owned()
    }

    fn watch(&self, job: &str) -> Watch {
        let args = ["watch", job, "--json", "--coordinator", &self.url];
        let mut child = self.desk.command(FRESCO, &args).stdout(Stdio::piped()).spawn().expect("can be started");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let (tell, events) = channel();
        // Read at once, so that it is known when they came.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("it is JSON");
                drop(tell.send((Instant::now(), event)));
            }
        });
        // It says nothing on standard error that a test waits for.
        let process = Process { child, said: channel().1 };
        Watch { events, process, seen: Vec::new(), times: Vec::new() }
    }

    /// Whether the job's picture is the one a single worker draws.
    fn check_picture(&self, job: &str, seed: u64) {
        self.check_picture_of(job, &[&PICTURE[..], &["--seed", &seed.to_string()]].concat());
    }

    /// Whether the job's picture is the one a single worker draws with these flags.
    fn check_picture_of(&self, job: &str, flags: &[&str]) {
        self.call(&["download", job, "--out", "farm.png", "--force"]).quiet();
        let alone = [&["render"], flags, &["--out", "alone.png", "--force"]].concat();
        self.desk.fresco(&alone).quiet();
        assert!(self.desk.read("farm.png") == self.desk.read("alone.png"), "{flags:?}: other bytes");
    }
}

/// The events of one job.
struct Watch {
    events: Receiver<(Instant, Value)>,
    process: Process,
    seen: Vec<Value>,
    /// When each of them came.
    times: Vec<Instant>,
}

impl Watch {
    /// Reads on until `wanted` of an event; false if the job was over before.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> bool {
        while let Ok((time, event)) = self.events.recv() {
            let is_wanted = wanted(&event);
            self.seen.push(event);
            self.times.push(time);
            if is_wanted {
                return true;
            }
        }
        false
    }

    /// Reads on for a while; true unless the job was over in it.
    fn read_for(&mut self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok((time, event)) => {
                    self.seen.push(event);
                    self.times.push(time);
                }
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn rest(&mut self) -> &[Value] {
        self.until(|_| false);
        &self.seen
    }
}

/// Waits until something comes true that no line tells.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::yield_now();
    }
}

fn step(event: &Value) -> u64 {
    event["step"].as_u64().expect("an event has a step")
}

fn epoch(event: &Value) -> u64 {
    event["epoch"].as_u64().expect("an event has an epoch")
}

fn is_running(event: &Value) -> bool {
    event["state"] == "RUNNING"
}

fn says(event: &Value, part: &str) -> bool {
    event["message"].as_str().is_some_and(|said| said.contains(part))
}

/// Steps never go back: what was checkpointed is not made again.
fn check_order(events: &[Value]) {
    for pair in events.windows(2) {
        assert!(step(&pair[0]) <= step(&pair[1]), "a step was repeated: {pair:?}");
        let revision = |event: &Value| event["revision"].as_u64().expect("an event has a revision");
        assert!(revision(&pair[0]) < revision(&pair[1]), "events out of order: {pair:?}");
    }
}

/// As [`check_order`], of a job that is done.
fn check_steps(events: &[Value]) {
    check_order(events);
    let last = events.last().expect("there were events");
    assert_eq!(last["state"], "DONE", "{last}");
}

/// The sum of a metric over its labels, as the process at `address` tells Prometheus.
fn metric(address: &str, name: &str) -> f64 {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let of_name = text.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
