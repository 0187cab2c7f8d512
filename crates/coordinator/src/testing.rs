//! A coordinator for tests: its store in memory, its folders temporary, workers that say what a test has them say.

use std::path::Path;
use std::sync::Arc;

use control::{Control, Hello, Input, JobSpec, SessionId};
use plan::{
    ArtifactKind, Clean, Epoch, ImageIdx, ImageSize, JobId, Millis, ModelFacts, ModelId, ModelSpec, RenderRequest,
    WorkerId,
};
use prometheus::Registry;
use store::{MemoryStore, Store};
use tokio::sync::mpsc;
use tokio::time::Instant;
use wire::v1;

use crate::artifact::Artifacts;
use crate::checkpoint::Checkpoints;
use crate::clock::Clock;
use crate::driver::{Desk, Driver, Tools};
use crate::folder::Folder;
use crate::identity::Identity;
use crate::metrics::{Courses, Metrics};
use crate::store_thread::{StoreThread, Writer};

pub(crate) const LEASE_MS: u64 = 3_000;

/// A coordinator whose driver is not at work yet.
pub(crate) struct Coordinator {
    pub(crate) driver: Driver,
    pub(crate) identity: Identity,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) metrics: Metrics,
    folder: tempfile::TempDir,
}

/// One whose driver is.
pub(crate) struct Farm {
    pub(crate) desk: Desk,
    pub(crate) identity: Identity,
    pub(crate) checkpoints: Arc<Checkpoints>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) metrics: Metrics,
    _folder: tempfile::TempDir,
}

impl Coordinator {
    /// Whose clock begins at `started`.
    pub(crate) fn new(started: Instant) -> Self {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let writer = StoreThread::start(Arc::clone(&store)).expect("a thread can be started");
        Self::over(&*store, Box::new(writer), started)
    }

    /// Over a store that is written by `writer`.
    pub(crate) fn over(store: &dyn Store, writer: Box<dyn Writer>, started: Instant) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (ledger, identity, records) = crate::ledger::load(store).expect("it can be read");
        let checkpoints = Arc::new(Checkpoints::new(in_folder(folder.path(), "checkpoints")));
        let artifacts = Arc::new(Artifacts::new(in_folder(folder.path(), "artifacts")));
        let metrics = Metrics::register(&Registry::new()).expect("no name twice");
        let config = control::Config { lease_ttl_ms: LEASE_MS, ..Default::default() };
        let control = Control::new(config, records, Millis(0));
        let tools = Tools {
            ledger,
            writer,
            identity: identity.clone(),
            checkpoints: Arc::clone(&checkpoints),
            artifacts: Arc::clone(&artifacts),
            courses: Courses::new(metrics.clone()),
            clock: Clock::new(started, LEASE_MS),
        };
        Self { driver: Driver::new(control, tools), identity, checkpoints, artifacts, metrics, folder }
    }

    /// Sets its driver to work.
    pub(crate) fn start(self) -> Farm {
        let Self { driver, identity, checkpoints, artifacts, metrics, folder } = self;
        let desk = driver.desk();
        tokio::spawn(driver.run());
        Farm { desk, identity, checkpoints, artifacts, metrics, _folder: folder }
    }
}

/// A folder of tests' own store.
pub(crate) fn in_folder(path: &Path, name: &str) -> Folder {
    let identity = Identity { id: "of-tests".into(), since: crate::identity::now(), secret: [7; 32] };
    Folder::open(path.join(name), Path::new("store.redb"), &identity, false).expect("the folder can be used")
}

impl Farm {
    pub(crate) fn start() -> Self {
        Coordinator::new(Instant::now()).start()
    }

    pub(crate) async fn submit(&self, spec: JobSpec) -> JobId {
        let job = JobId(uuid::Uuid::now_v7().to_string());
        let answer = self.desk.request(|reply| Input::Submit { job, request_id: String::new(), spec, reply }).await;
        answer.expect("the driver runs").expect("the job is fine")
    }

    pub(crate) async fn cancel(&self, job: &JobId) {
        let job = job.clone();
        let answer = self.desk.request(|reply| Input::Cancel { job, reply }).await;
        answer.expect("the driver runs").expect("the job is not over");
    }

    /// A worker joins; it is in as long as its orders are held.
    pub(crate) async fn join(&self, worker: &str) -> (SessionId, mpsc::Receiver<v1::SessionResponse>) {
        self.desk.join(WorkerId(worker.to_owned()), hello()).await.expect("the driver runs")
    }

    pub(crate) async fn leave(&self, worker: &str, session: SessionId) {
        let worker = WorkerId(worker.to_owned());
        self.desk.tell(Input::Leave { worker, session }).await.expect("the driver runs");
    }

    /// The attempt at a job's first image.
    pub(crate) async fn epoch(&self, job: &JobId) -> Epoch {
        let job = job.clone();
        let epoch = self.desk.ask(move |control| control.job(&job)?.image(ImageIdx(0))?.epoch).await;
        epoch.expect("the driver runs").expect("the image is being made")
    }
}

pub(crate) fn hello() -> Hello {
    let id = ModelId { name: "demo".into(), weights_sha256: "ab".repeat(32) };
    Hello {
        version: control::Config::default().version,
        incarnation: "first".into(),
        numeric_class: "avx512".into(),
        models: vec![ModelFacts { id, digests: plan::ModelDigests::default(), spec: ModelSpec::pixart_sigma_xl2() }],
        address: "http://10.0.0.7:7401".into(),
        flop_per_s: 1e9,
        memory_bytes: None,
        value_bytes: 4,
        running: None,
    }
}

/// So many small pictures.
pub(crate) fn spec(count: u32) -> JobSpec {
    let request = RenderRequest {
        prompt: "a castle".into(),
        negative: String::new(),
        size: ImageSize { width_px: 64, height_px: 64 },
        steps: 4,
        guidance: 4.5,
        seed: 7,
        clean: Clean::Basic,
    };
    JobSpec { model: "demo".into(), request, count, artifact: ArtifactKind::Png8 }
}
