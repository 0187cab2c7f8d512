//! What a seed stands for: who is there, what is asked, and which faults happen when.

use control::JobSpec;
use plan::{ArtifactKind, Cause, Clean, ImageSize, RenderRequest};

use crate::rng::Rng;

/// Faults end here; what was accepted has to come to its end afterwards.
pub(crate) const FAULTS_END_MS: u64 = 30_000;

/// Which faults a run may have; what may be promised depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Workers join and drain, clients submit and cancel: no step is repeated.
    Calm,
    /// The same, and the coordinator dies and comes back: no step is repeated.
    Crashes,
    /// The same as calm, and workers are killed.
    Kills,
    /// Everything.
    Storm,
}

/// Something that happens from outside.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A client asks for job `client`.
    Submit {
        client: usize,
    },
    /// It asks again though it has its answer.
    SubmitAgain {
        client: usize,
    },
    /// It asks for something else under the same name.
    SubmitOther {
        client: usize,
    },
    Cancel {
        client: usize,
    },
    Retry {
        client: usize,
    },
    /// It wants its job to be forgotten.
    Delete {
        client: usize,
    },
    /// A worker starts.
    Start {
        worker: usize,
    },
    /// It dies; its connection is reset, or nobody hears of it.
    Kill {
        worker: usize,
        silently: bool,
        back_after_ms: u64,
    },
    /// Stopped by a signal, and continued.
    Pause {
        worker: usize,
        for_ms: u64,
    },
    /// Its session breaks; the coordinator hears of it, or not.
    Break {
        worker: usize,
        half_open: bool,
    },
    /// It cannot reach the coordinator.
    Cut {
        worker: usize,
        for_ms: u64,
    },
    Drain {
        worker: usize,
        back_after_ms: u64,
    },
    /// From now on it is so many percent as fast.
    Slow {
        worker: usize,
        percent: u64,
    },
    /// The coordinator dies after so many more things it did.
    Crash {
        after_outputs: u64,
        down_ms: u64,
    },
    /// No picture can be kept.
    DiskFull {
        for_ms: u64,
    },
    /// Every step of a worker fails, for a while.
    Sicken {
        worker: usize,
        cause: Cause,
        for_ms: u64,
    },
    /// The thread of a worker's rank does nothing, for a while; its heartbeats go on.
    Hang {
        worker: usize,
        for_ms: u64,
    },
    /// The next step of a worker fails on its device.
    BreakDevice {
        worker: usize,
    },
    /// A process of the same name as a worker joins.
    Impostor {
        worker: usize,
    },
    /// A message nobody sent, of a far away epoch.
    Nonsense,
    /// A worker speaks of an epoch that is not its own, or of steps there are not.
    Rogue {
        worker: usize,
    },
}

/// A worker to be.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSpec {
    pub(crate) speed: f64,
    /// What it says of its speed.
    pub(crate) probed: f64,
    pub(crate) numeric_class: &'static str,
    pub(crate) models: Vec<&'static str>,
}

/// A value that is not finite, at one step of every image of one client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotFinite {
    pub(crate) client: usize,
    pub(crate) step: usize,
    /// On one worker only, or on all.
    pub(crate) worker: Option<usize>,
}

/// A whole run.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) mode: Mode,
    pub(crate) workers: Vec<WorkerSpec>,
    pub(crate) jobs: Vec<JobSpec>,
    pub(crate) not_finite: Option<NotFinite>,
    pub(crate) faults: Vec<(u64, Fault)>,
    /// Of a hundred reports, how many come a second time, any time later.
    pub(crate) duplicates_percent: u64,
    /// Longest way of a message.
    pub(crate) delay_ms: u64,
}

pub(crate) fn request(steps: u32, size_px: u32, guidance: f64) -> RenderRequest {
    RenderRequest {
        prompt: "a castle".into(),
        negative: String::new(),
        size: ImageSize { width_px: 128, height_px: size_px },
        steps,
        guidance,
        seed: u64::MAX,
        clean: Clean::Basic,
    }
}

impl Scene {
    pub(crate) fn of(seed: u64, rng: &mut Rng) -> Self {
        let mode = [Mode::Calm, Mode::Crashes, Mode::Kills, Mode::Storm, Mode::Storm, Mode::Storm][seed as usize % 6];
        let n_workers = 1 + rng.index(5);
        let has_classes = rng.chance(15);
        let has_models = rng.chance(15);
        let workers: Vec<WorkerSpec> = (0..n_workers)
            .map(|idx| WorkerSpec {
                speed: rng.of(20..200) as f64 / 100.0,
                probed: rng.of(50..150) as f64 * 1e9,
                numeric_class: if has_classes && idx % 2 == 1 { "avx2" } else { "avx512" },
                models: if has_models && idx % 2 == 1 { vec!["other"] } else { vec!["demo", "other"] },
            })
            .collect();
        let n_jobs = 1 + rng.index(4);
        let jobs: Vec<JobSpec> = (0..n_jobs)
            .map(|_| JobSpec {
                model: if has_models && rng.chance(50) { "other".into() } else { "demo".into() },
                request: request(
                    rng.of(1..24) as u32,
                    16 * rng.of(1..24) as u32,
                    if rng.chance(70) { 4.5 } else { 1.0 },
                ),
                count: rng.of(1..4) as u32,
                artifact: ArtifactKind::Png8,
            })
            .collect();
        let not_finite = (mode == Mode::Storm && rng.chance(20)).then(|| NotFinite {
            client: rng.index(n_jobs),
            step: rng.index(6),
            worker: rng.chance(60).then(|| rng.index(n_workers)),
        });
        let duplicates_percent = if mode == Mode::Storm && rng.chance(50) { rng.of(1..30) } else { 0 };
        let delay_ms = if mode == Mode::Storm { [2, 20, 300][rng.index(3)] } else { rng.of(1..20) };
        let mut scene = Self { mode, workers, jobs, not_finite, faults: Vec::new(), duplicates_percent, delay_ms };
        scene.draw_faults(rng);
        scene
    }

    fn draw_faults(&mut self, rng: &mut Rng) {
        let (n_workers, n_jobs) = (self.workers.len(), self.jobs.len());
        for client in 0..n_jobs {
            let at = if rng.chance(50) { 0 } else { rng.of(0..FAULTS_END_MS / 2) };
            self.faults.push((at, Fault::Submit { client }));
        }
        for worker in 0..n_workers {
            let at = if rng.chance(60) { 0 } else { rng.of(0..FAULTS_END_MS / 2) };
            self.faults.push((at, Fault::Start { worker }));
        }
        let n_faults = rng.of(0..match self.mode {
            Mode::Storm => 25,
            _ => 8,
        });
        for _ in 0..n_faults {
            let fault = self.draw_fault(rng);
            self.faults.push((rng.of(0..FAULTS_END_MS), fault));
        }
    }

    fn draw_fault(&self, rng: &mut Rng) -> Fault {
        let (worker, client) = (rng.index(self.workers.len()), rng.index(self.jobs.len()));
        let calm = |rng: &mut Rng| match rng.of(0..6) {
            0 => Fault::Cancel { client },
            1 if worker % 2 == 1 => Fault::Delete { client },
            1 => Fault::Retry { client },
            2 => Fault::SubmitAgain { client },
            3 => Fault::SubmitOther { client },
            _ => Fault::Drain { worker, back_after_ms: rng.of(100..8_000) },
        };
        let crash = |rng: &mut Rng| Fault::Crash { after_outputs: rng.of(0..60), down_ms: rng.of(10..4_000) };
        let kill = |rng: &mut Rng| Fault::Kill { worker, silently: rng.chance(25), back_after_ms: rng.of(100..8_000) };
        match self.mode {
            Mode::Calm => calm(rng),
            Mode::Crashes if rng.chance(50) => crash(rng),
            Mode::Kills if rng.chance(60) => kill(rng),
            Mode::Crashes | Mode::Kills => calm(rng),
            Mode::Storm => match rng.of(0..16) {
                0 | 1 => calm(rng),
                2 => crash(rng),
                3 | 4 => kill(rng),
                5 => Fault::Pause { worker, for_ms: rng.of(100..9_000) },
                6 => Fault::Break { worker, half_open: rng.chance(40) },
                7 => Fault::Cut { worker, for_ms: rng.of(100..9_000) },
                8 => Fault::Slow { worker, percent: rng.of(20..150) },
                9 => Fault::DiskFull { for_ms: rng.of(100..9_000) },
                10 => Fault::BreakDevice { worker },
                11 => Fault::Impostor { worker },
                12 => Fault::Rogue { worker },
                13 => {
                    let cause = [Cause::Device, Cause::Bug, Cause::NotFinite][rng.index(3)];
                    Fault::Sicken { worker, cause, for_ms: rng.of(100..60_000) }
                }
                14 => Fault::Hang { worker, for_ms: rng.of(100..60_000) },
                _ => Fault::Nonsense,
            },
        }
    }
}
