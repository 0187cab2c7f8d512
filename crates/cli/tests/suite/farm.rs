//! A farm of real processes on loopback: killed, stopped, drained and restarted, it draws the bytes of one worker.
//!
//! `FRESCO_KILLS=60 cargo test -p cli farm::` kills more often than the few times of every run; `FRESCO_SEED` chooses
//! where.

use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::desk::{Desk, FRESCO, Run};

/// Long enough to be killed in, small enough to be drawn often.
const PICTURE: [&str; 5] = ["a calm sea at dawn", "--size", "192x256", "--steps", "8"];
const LEASE_MS: &str = "1000";

/// Ends its process with the test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program can be started"))
    }

    fn signal(&self, signal: &str) {
        let pid = self.0.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status().expect("kill is there");
        assert!(sent.success(), "kill {signal} {pid}");
    }

    fn kill(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it was started here");
    }

    /// How it ended.
    fn wait(mut self) -> Option<i32> {
        self.0.wait().expect("it was started here").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A coordinator, and where it is.
struct Farm {
    desk: Desk,
    coordinator: Option<Process>,
    url: String,
}

impl Farm {
    fn start() -> Self {
        // A port that was free a moment ago: a restarted coordinator needs the same one.
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound").to_string();
        drop(free);
        let mut farm = Self { desk: Desk::new(), coordinator: None, url: format!("http://{address}") };
        farm.start_coordinator();
        farm
    }

    fn start_coordinator(&mut self) {
        let listen = self.url.trim_start_matches("http://");
        let args =
            ["coordinator", "--listen", listen, "--store", "redb:data/store", "--artifacts", "file:data/pictures"];
        let mut command = self.desk.command(FRESCO, &[&args[..], &["--lease-ttl-ms", LEASE_MS]].concat());
        let mut started = command.stderr(Stdio::piped()).spawn().expect("the program can be started");
        // It says where it listens once it does.
        let mut said = BufReader::new(started.stderr.take().expect("it is piped")).lines();
        let first = said.next().and_then(Result::ok);
        assert!(first.as_deref().is_some_and(|line| line.contains("coordinating on")), "it does not start: {first:?}");
        // What it says further is read, so that the pipe stays open and never fills.
        std::thread::spawn(move || said.for_each(drop));
        self.coordinator = Some(Process(started));
    }

    fn worker(&self, name: &str) -> Process {
        let args = ["worker", "--coordinator", &self.url, "--name", name, "--threads", "1"];
        Process::start(&mut self.desk.command(FRESCO, &args))
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
        Watch { lines, _process: Process(child), seen: Vec::new() }
    }

    /// Whether the job's picture is the one a single worker draws.
    fn check_picture(&self, job: &str, seed: u64) {
        self.call(&["download", job, "--out", "farm.png", "--force"]).quiet();
        let seed_text = seed.to_string();
        let alone = [&["render"], &PICTURE[..], &["--seed", &seed_text, "--out", "alone.png", "--force"]].concat();
        self.desk.fresco(&alone).quiet();
        assert!(self.desk.read("farm.png") == self.desk.read("alone.png"), "seed {seed}: other bytes");
    }
}

/// The events of one job.
struct Watch {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Process,
    seen: Vec<Value>,
}

impl Watch {
    /// Reads on until `wanted` of an event; false if the job was over before.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> bool {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.expect("it can be read")).expect("it is JSON");
            let is_wanted = wanted(&event);
            self.seen.push(event);
            if is_wanted {
                return true;
            }
        }
        false
    }

    fn rest(&mut self) -> &[Value] {
        self.until(|_| false);
        &self.seen
    }
}

fn step(event: &Value) -> u64 {
    event["step"].as_u64().expect("an event has a step")
}

fn is_running(event: &Value) -> bool {
    event["state"] == "RUNNING"
}

/// Steps never go back: what was checkpointed is not made again.
fn check_steps(events: &[Value]) {
    for pair in events.windows(2) {
        assert!(step(&pair[0]) <= step(&pair[1]), "a step was repeated: {pair:?}");
        let revision = |event: &Value| event["revision"].as_u64().expect("an event has a revision");
        assert!(revision(&pair[0]) < revision(&pair[1]), "events out of order: {pair:?}");
    }
    let last = events.last().expect("there were events");
    assert_eq!(last["state"], "DONE", "{last}");
}

/// SplitMix64, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn workers_killed_at_any_step_and_in_the_decode_leave_the_bytes_as_they_are() {
    const N_WORKERS: u64 = 3;
    let (n_kills, seed) = (from_environment("FRESCO_KILLS", 6), from_environment("FRESCO_SEED", 1));
    println!("FRESCO_KILLS={n_kills} FRESCO_SEED={seed}");
    let mut random = Random(seed);
    let farm = Farm::start();
    let mut n_names = 0;
    let mut worker = || {
        n_names += 1;
        farm.worker(&format!("w{n_names}"))
    };
    let mut workers: Vec<Process> = (0..N_WORKERS).map(|_| worker()).collect();
    let mut n_killed = 0;
    while n_killed < n_kills {
        let picture_seed = random.below(1 << 32);
        let job = farm.submit(picture_seed);
        let mut watch = farm.watch(&job);
        // At 8 all steps are done and the picture is being decoded.
        let at = random.below(9);
        if watch.until(|event| is_running(event) && step(event) >= at) {
            let victim = random.below(N_WORKERS) as usize;
            println!("picture {picture_seed}: killing worker {victim} at step {at}");
            workers.remove(victim).kill();
            workers.push(worker());
            n_killed += 1;
        }
        check_steps(watch.rest());
        farm.check_picture(&job, picture_seed);
    }
}

#[test]
fn a_worker_stopped_and_resumed_after_it_was_given_up_changes_nothing() {
    let farm = Farm::start();
    let workers = [farm.worker("a"), farm.worker("b")];
    let job = farm.submit(5);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 2));
    workers[1].signal("-STOP");
    assert!(watch.until(|event| event["message"].as_str().is_some_and(|said| said.contains("was lost"))));
    workers[1].signal("-CONT");
    check_steps(watch.rest());
    farm.check_picture(&job, 5);
}

#[test]
fn a_coordinator_killed_and_restarted_repeats_no_step_and_its_watchers_go_on() {
    let mut farm = Farm::start();
    let _workers = [farm.worker("a"), farm.worker("b")];
    let job = farm.submit(6);
    let waiting = farm.submit(7);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 3));
    farm.coordinator.take().expect("it runs").kill();
    farm.start_coordinator();
    let events = watch.rest().to_vec();
    check_steps(&events);
    farm.check_picture(&job, 6);
    assert_eq!(farm.call(&["wait", &waiting]).code, Some(0), "the job behind it is not lost");
    farm.check_picture(&waiting, 7);
}

#[test]
fn a_worker_that_is_told_to_end_hands_over_at_a_step_boundary() {
    let farm = Farm::start();
    let leaving = farm.worker("leaving");
    let _staying = farm.worker("staying");
    let job = farm.submit(8);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 2));
    leaving.signal("-TERM");
    let events = watch.rest().to_vec();
    check_steps(&events);
    assert!(events.iter().all(|event| !event["message"].as_str().unwrap_or_default().contains("lost")), "{events:?}");
    assert_eq!(leaving.wait(), Some(0));
    farm.check_picture(&job, 8);
}

#[test]
fn a_worker_that_comes_while_a_picture_is_made_takes_a_share() {
    let farm = Farm::start();
    let _first = farm.worker("first");
    let job = farm.submit(9);
    let mut watch = farm.watch(&job);
    assert!(watch.until(is_running));
    let _second = farm.worker("second");
    let events = watch.rest().to_vec();
    check_steps(&events);
    farm.check_picture(&job, 9);
    // The picture may be done before the second is ready; the next one then is made by both.
    let job = farm.submit(10);
    let mut watch = farm.watch(&job);
    let workers = |event: &Value| event["workers"].as_array().map_or(0, Vec::len);
    assert!(watch.until(|event| workers(event) == 2));
    check_steps(watch.rest());
}

#[test]
fn jobs_are_listed_cancelled_retried_and_told_apart() {
    let farm = Farm::start();
    let same = |seed: &str| {
        let flags = ["--seed", seed, "--request-id", "shot-1"];
        farm.call(&[&["submit"], &PICTURE[..], &flags].concat())
    };
    let job = same("1").quiet().stdout.trim().to_owned();
    assert_eq!(same("1").quiet().stdout.trim(), job, "the same name and wish are the same job");
    same("2").refused(2, &["request id `shot-1`", "choose another id"]);
    let get = farm.call(&["get", &job, "--json"]).quiet().json();
    assert_eq!((get["state"].as_str(), get["images"][0]["step"].as_u64()), (Some("QUEUED"), Some(0)));
    assert_eq!(farm.call(&["cancel", &job]).quiet().stdout.lines().count(), 2);
    assert_eq!(farm.call(&["wait", &job]).code, Some(6));
    farm.call(&["cancel", &job]).refused(1, &["is over already"]);
    let _worker = farm.worker("a");
    farm.call(&["retry", &job]).quiet();
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 1);
    assert!(farm.call(&["list"]).quiet().stdout.starts_with(&format!("{job} DONE 1/1")));
    farm.call(&["get", "nothing"]).refused(3, &["job `nothing` is not known", "fresco list"]);
    farm.call(&["download", "nothing"]).refused(3, &["job `nothing` is not known"]);
}

#[test]
fn a_picture_cancelled_while_it_is_made_leaves_its_workers_free() {
    let farm = Farm::start();
    let _workers = [farm.worker("a"), farm.worker("b")];
    // At the last step, so that the decode is under way.
    for at in [2, 8] {
        let job = farm.submit(11);
        let mut watch = farm.watch(&job);
        assert!(watch.until(|event| is_running(event) && step(event) >= at));
        // It may be done a moment before.
        let code = farm.call(&["cancel", &job]).code;
        assert!(code == Some(0) || at == 8, "step {at}: {code:?}");
    }
    let job = farm.submit(12);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture(&job, 12);
}

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

#[test]
fn a_picture_the_disk_has_no_room_for_is_kept_until_it_has() {
    let farm = Farm::start();
    let pictures = farm.desk.path("data/pictures");
    let _worker = farm.worker("a");
    let job = farm.submit(14);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 1));
    let aside = farm.desk.path("data/aside");
    std::fs::rename(&pictures, &aside).expect("a folder can be renamed");
    assert!(watch.until(|event| event["message"].as_str().is_some_and(|said| said.contains("make room"))));
    std::fs::rename(&aside, &pictures).expect("a folder can be renamed");
    check_steps(watch.rest());
    farm.check_picture(&job, 14);
}

#[test]
fn a_farm_that_is_not_there_is_said_in_one_line() {
    let desk = Desk::new();
    desk.fresco(&["list", "--coordinator", "http://127.0.0.1:9"]).refused(9, &["http://127.0.0.1:9", "fresco serve"]);
    desk.fresco(&["list", "--coordinator", "nonsense at all"]).refused(2, &["nonsense at all"]);
    desk.fresco(&["coordinator", "--store", "etcd:x"]).refused(2, &["redb:PATH"]);
    desk.fresco(&["coordinator", "--artifacts", "s3://x"]).refused(2, &["file:DIR"]);
}

#[test]
fn one_process_with_many_workers_draws_the_bytes_of_one() {
    let desk = Desk::new();
    for size in ["128x64", "112x240"] {
        let flags = ["render", "a deep canyon at noon", "--size", size, "--steps", "3", "--force"];
        desk.fresco(&[&flags[..], &["--out", "1.png"]].concat()).quiet();
        for workers in ["2", "3", "4"] {
            desk.fresco(&[&flags[..], &["--out", "n.png", "--workers", workers]].concat()).quiet();
            assert!(desk.read("1.png") == desk.read("n.png"), "{workers} workers, {size}: other bytes");
        }
    }
    let both = ["render", "x", "--workers", "2", "--preview-every", "1"];
    desk.fresco(&both).refused(2, &["--preview-every", "--workers 2"]);
}
