//! How much of a core the state machine takes: a farm of a thousand workers and a hundred thousand images.
//!
//! `cargo test --release -p control --test load -- --nocapture` prints microseconds a message. Small by default, so that
//! it checks only that all images are made; `FRESCO_LOAD=1` runs the whole.
#![forbid(unsafe_code)]
// The clock measures the machine here and does not drive it.
#![allow(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use control::{ArtifactRef, Config, Control, Hello, Input, JobSpec, Output, Phase, ReplyId, SessionId, Work};
use plan::{
    ArtifactKind, Clean, Epoch, ImageSize, JobId, Millis, ModelDigests, ModelFacts, ModelId, ModelSpec, RenderRequest,
    WorkerId,
};

const STEPS: usize = 4;
const STEP_MS: u64 = 1_000;

struct Load {
    control: Control,
    now: Millis,
    n_messages: u64,
    took: Duration,
    /// Each worker's attempt and the steps it took.
    at_work: BTreeMap<usize, (Epoch, usize)>,
}

impl Load {
    fn hear(&mut self, input: Input) {
        let began = Instant::now();
        self.control.handle(self.now, input);
        let outputs: Vec<Output> = std::iter::from_fn(|| self.control.poll_output()).collect();
        self.took += began.elapsed();
        self.n_messages += 1;
        for output in outputs {
            match output {
                Output::Assign { worker, assignment, .. } => {
                    let worker: usize = worker.0[1..].parse().expect("a worker of this farm");
                    self.at_work.insert(worker, (assignment.epoch, assignment.n_steps_done));
                }
                Output::Abort { worker, .. } => {
                    self.at_work.remove(&worker.0[1..].parse().expect("a worker of this farm"));
                }
                _ => {}
            }
        }
    }
}

fn spec(count: u32) -> JobSpec {
    let request = RenderRequest {
        prompt: "a castle".into(),
        negative: String::new(),
        size: ImageSize { width_px: 1024, height_px: 1024 },
        steps: STEPS as u32,
        guidance: 4.5,
        seed: 0,
        clean: Clean::Basic,
    };
    JobSpec { model: "sigma".into(), request, count, artifact: ArtifactKind::Png8 }
}

fn hello(incarnation: usize) -> Hello {
    let id = ModelId { name: "sigma".into(), weights_sha256: "ab".repeat(32) };
    Hello {
        version: Config::default().version,
        incarnation: incarnation.to_string(),
        numeric_class: "avx512".into(),
        models: vec![ModelFacts { id, digests: ModelDigests::default(), spec: ModelSpec::pixart_sigma_xl2() }],
        address: "http://10.0.0.1:7480".into(),
        flop_per_s: 1e13,
        memory_bytes: Some(80 << 30),
        value_bytes: 2,
        running: None,
    }
}

#[test]
fn every_image_of_many_is_made_by_many() {
    let is_whole = std::env::var_os("FRESCO_LOAD").is_some();
    let (n_workers, n_jobs, n_images) = if is_whole { (1_000, 10, 10_000) } else { (40, 4, 30) };
    let control = Control::new(Config::default(), Vec::new(), Millis(0));
    let mut load = Load { control, now: Millis(0), n_messages: 0, took: Duration::ZERO, at_work: BTreeMap::new() };
    let (worker, session) = (|n: usize| WorkerId(format!("w{n}")), |n: usize| SessionId(n as u64 + 1));
    for n in 0..n_jobs {
        let job = JobId(format!("j{n}"));
        load.hear(Input::Submit { job, request_id: String::new(), spec: spec(n_images), reply: ReplyId(n) });
    }
    for n in 0..n_workers {
        load.hear(Input::Join { worker: worker(n), session: session(n), hello: hello(n) });
    }
    while load.control.jobs().any(control::Job::is_open) {
        load.now = load.now + STEP_MS;
        for n in 0..n_workers {
            let Some((epoch, n_steps)) = load.at_work.get(&n).copied() else { continue };
            let attempt = load.control.attempt(epoch).map(|attempt| attempt.seats.clone());
            let Some(seats) = attempt else { continue };
            let work = Some(Work { epoch, progress: load.now.0, waits: false });
            load.hear(Input::Heartbeat { worker: worker(n), session: session(n), work });
            if seats[0] != worker(n) {
                continue;
            }
            if n_steps < STEPS {
                load.at_work.insert(n, (epoch, n_steps + 1));
                load.hear(Input::StepKept { epoch, n_steps_done: n_steps + 1 });
            } else {
                load.at_work.remove(&n);
                let artifact = ArtifactRef { sha256: epoch.0.to_string(), size_bytes: 1, kind: ArtifactKind::Png8 };
                load.hear(Input::Finished { worker: worker(n), session: session(n), epoch, artifact });
            }
        }
    }
    let n_done: usize = load.control.jobs().map(|job| job.n_in(Phase::Done)).sum();
    assert_eq!(n_done, n_jobs as usize * n_images as usize);
    println!(
        "{n_workers} workers, {n_done} images: {} messages, {:.1} us each",
        load.n_messages,
        load.took.as_secs_f64() * 1e6 / load.n_messages as f64
    );
}
