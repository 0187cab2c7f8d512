//! A small farm to ask the machine about, one input at a time.

use plan::{
    ArtifactKind, Cause, Clean, Epoch, ImageIdx, ImageSize, JobId, Millis, ModelDigests, ModelFacts, ModelId,
    ModelSpec, RenderRequest,
};
use plan::{ImageId, WorkerId};

use super::{Config, Control};
use crate::input::{Hello, Input, JobSpec, ReplyId, Running, SessionId};
use crate::job::{ArtifactRef, Image, Phase};
use crate::output::{ControlError, Expelled, Output, Record};

mod asking;
mod failing;
mod health;
mod joining;
mod placing;
mod room;
mod splitting;
mod stalling;

const TTL_MS: u64 = 3_000;

/// A machine with a clock, and what it wrote down.
struct Farm {
    control: Control,
    now: u64,
    n_ids: u64,
    written: Vec<Record>,
}

fn config() -> Config {
    Config { version: "1.0".into(), lease_ttl_ms: TTL_MS, most_images: 8, most_images_per_job: 6, ..Config::default() }
}

fn spec(count: u32) -> JobSpec {
    let request = RenderRequest {
        prompt: "a castle".into(),
        negative: String::new(),
        size: ImageSize { width_px: 256, height_px: 256 },
        steps: 20,
        guidance: 4.5,
        seed: u64::MAX,
        clean: Clean::Basic,
    };
    JobSpec { model: "demo".into(), request, count, artifact: ArtifactKind::Png8 }
}

fn facts(name: &str, weights_sha256: &str) -> ModelFacts {
    let id = ModelId { name: name.into(), weights_sha256: weights_sha256.into() };
    ModelFacts {
        id,
        digests: ModelDigests { noise_schedule: weights_sha256.into(), ..ModelDigests::default() },
        spec: ModelSpec::pixart_sigma_xl2(),
    }
}

fn hello(incarnation: &str) -> Hello {
    Hello {
        version: "1.0".into(),
        incarnation: incarnation.into(),
        numeric_class: "avx512".into(),
        models: vec![facts("demo", "0123456789abcdef")],
        address: "http://here".into(),
        flop_per_s: 1e9,
        memory_bytes: None,
        value_bytes: 4,
        running: None,
    }
}

fn id(worker: &str) -> WorkerId {
    WorkerId(worker.into())
}

fn artifact() -> ArtifactRef {
    ArtifactRef { sha256: "cafe".into(), size_bytes: 1, kind: ArtifactKind::Png8 }
}

impl Farm {
    fn new() -> Self {
        Self { control: Control::new(config(), Vec::new(), Millis(0)), now: 0, n_ids: 0, written: Vec::new() }
    }

    /// Hands in one input; everything but records comes back.
    fn hear(&mut self, input: Input) -> Vec<Output> {
        self.control.handle(Millis(self.now), input);
        self.outputs()
    }

    fn wait(&mut self, ms: u64) -> Vec<Output> {
        self.now += ms;
        self.control.handle_timeout(Millis(self.now));
        self.outputs()
    }

    fn outputs(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(output) = self.control.poll_output() {
            match output {
                Output::Persist(record) => self.written.push(*record),
                other => outputs.push(other),
            }
        }
        outputs
    }

    /// The coordinator dies and comes back with what it wrote down.
    fn restart(&mut self) {
        self.now = 0;
        self.control = Control::new(config(), self.written.clone(), Millis(0));
    }

    fn join_as(&mut self, worker: &str, hello: Hello) -> (SessionId, Vec<Output>) {
        self.n_ids += 1;
        let session = SessionId(self.n_ids);
        (session, self.hear(Input::Join { worker: id(worker), session, hello }))
    }

    fn join(&mut self, worker: &str) -> SessionId {
        let (session, outputs) = self.join_as(worker, hello(worker));
        assert!(matches!(outputs.first(), Some(Output::Welcome { .. })), "{outputs:?}");
        session
    }

    fn refused(&mut self, worker: &str, hello: Hello) -> String {
        match self.join_as(worker, hello).1.as_slice() {
            [Output::Refuse { reason, .. }] => reason.clone(),
            other => panic!("{worker} was not refused: {other:?}"),
        }
    }

    fn ask(&mut self, request_id: &str, spec: JobSpec) -> Result<JobId, ControlError> {
        self.n_ids += 1;
        let (job, request_id) = (JobId(format!("j{}", self.n_ids)), request_id.to_owned());
        self.answer(|reply| Input::Submit { job, request_id, spec, reply })
    }

    fn answer(&mut self, input: impl FnOnce(ReplyId) -> Input) -> Result<JobId, ControlError> {
        let outputs = self.hear(input(ReplyId(7)));
        let answer = outputs.into_iter().find_map(|output| match output {
            Output::Reply { answer, .. } => Some(answer),
            _ => None,
        });
        answer.expect("who asks is answered")
    }

    fn submit(&mut self, count: u32) -> JobId {
        self.ask("", spec(count)).expect("the job is fine")
    }

    fn image(&self, job: &JobId, idx: u32) -> &Image {
        self.control.job(job).and_then(|job| job.image(ImageIdx(idx))).expect("the image is known")
    }

    fn epoch(&self, job: &JobId, idx: u32) -> Epoch {
        self.image(job, idx).epoch.expect("the image is being made")
    }

    fn seats(&self, job: &JobId, idx: u32) -> Vec<String> {
        let attempt = self.control.attempt(self.epoch(job, idx)).expect("a running image has an attempt");
        attempt.seats.iter().map(|worker| worker.0.clone()).collect()
    }

    fn keep(&mut self, job: &JobId, idx: u32, n_steps_done: usize) -> Vec<Output> {
        let epoch = self.epoch(job, idx);
        self.hear(Input::StepKept { epoch, n_steps_done })
    }

    fn fail(&mut self, worker: &str, session: SessionId, epoch: Epoch, cause: Cause) -> Vec<Output> {
        let message = "step 3, rank 0: it broke".into();
        self.hear(Input::Failed { worker: id(worker), session, epoch, cause, message, blamed: None })
    }

    fn blame(&mut self, worker: &str, session: SessionId, epoch: Epoch, rank: u16) -> Vec<Output> {
        let (cause, blamed) = (Cause::Peer, Some(plan::Rank(rank)));
        let message = "step 3: a rank did not answer".into();
        self.hear(Input::Failed { worker: id(worker), session, epoch, cause, message, blamed })
    }

    fn finish(&mut self, worker: &str, session: SessionId, epoch: Epoch) -> Vec<Output> {
        self.hear(Input::Finished { worker: id(worker), session, epoch, artifact: artifact() })
    }

    /// A worker makes an image, alone, and so shows that it is well.
    fn prove(&mut self, worker: &str, session: SessionId) {
        let before: Vec<WorkerId> = self.control.members.keys().cloned().collect();
        for other in before.iter().filter(|other| other.0 != worker) {
            self.control.members.get_mut(other).expect("is in").is_connected = false;
        }
        let job = self.submit(1);
        assert_eq!(self.seats(&job, 0), [worker]);
        let epoch = self.epoch(&job, 0);
        self.control.handle(Millis(self.now), Input::StepKept { epoch, n_steps_done: 1 });
        self.finish(worker, session, epoch);
        for other in before {
            self.control.members.get_mut(&other).expect("is in").is_connected = true;
        }
    }

    /// All that are in say that they are alive.
    fn beat(&mut self) {
        let sessions: Vec<_> = self.control.members().map(|member| (member.worker, member.session)).collect();
        for (worker, session) in sessions {
            self.hear(Input::Heartbeat { worker, session, work: None });
        }
    }

    /// Time goes by, and all that are in say so often enough that they are alive. What came out.
    fn wait_alive(&mut self, ms: u64) -> Vec<Output> {
        let (until, mut outputs) = (self.now + ms, Vec::new());
        while self.now < until {
            outputs.extend(self.wait((until - self.now).min(TTL_MS / 3)));
            self.beat();
        }
        outputs
    }

    fn stop(&mut self, worker: &str, session: SessionId, epoch: Epoch) -> Vec<Output> {
        self.hear(Input::Stopped { worker: id(worker), session, epoch })
    }
}

fn aborted(outputs: &[Output]) -> Vec<String> {
    let abort = |output: &Output| match output {
        Output::Abort { worker, .. } => Some(worker.0.clone()),
        _ => None,
    };
    outputs.iter().filter_map(abort).collect()
}

/// Who is asked to stop.
fn stops(outputs: &[Output]) -> Vec<(String, Epoch)> {
    let stop = |output: &Output| match output {
        Output::Stop { worker, epoch, .. } => Some((worker.0.clone(), *epoch)),
        _ => None,
    };
    outputs.iter().filter_map(stop).collect()
}

/// Who is given a part, and behind which step it begins.
fn assigned(outputs: &[Output]) -> Vec<(String, usize)> {
    let assign = |output: &Output| match output {
        Output::Assign { worker, assignment, .. } => Some((worker.0.clone(), assignment.n_steps_done)),
        _ => None,
    };
    outputs.iter().filter_map(assign).collect()
}

fn session_of(farm: &Farm, worker: &str) -> SessionId {
    farm.control.members.get(&id(worker)).expect("it is in").session
}
