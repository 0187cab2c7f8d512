//! Parts whose threads hang.

use fabric::grpc::{Port, PortConfig};
use prometheus::Registry;
use tonic::transport::Endpoint;

use super::*;
use crate::hang::HangAt;
use crate::testing::{alone, assignment, demo, no_secrets, peer_at, request};

/// Parts of a worker whose ranks hang in their first step, what they report, and their metrics.
struct Scene {
    parts: Parts,
    reports: mpsc::Receiver<Report>,
    registry: Registry,
    hang: Hang,
}

impl Scene {
    fn new() -> Self {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
        let tools = Tools {
            models: demo(),
            port: Arc::new(port()),
            // Nobody is there: nothing is handed in.
            bulk: Endpoint::from_static("http://127.0.0.1:9").connect_lazy(),
            pools: Arc::new([pool(), pool()]),
            runtime: tokio::runtime::Handle::current(),
            noise: None,
        };
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).expect("no name twice");
        let (said, reports) = mpsc::channel(64);
        let hang = Hang::new(HangAt::Step);
        let parts = Parts::new(tools, metrics, said, Arc::default(), Some(hang.clone()));
        Self { parts, reports, registry, hang }
    }

    fn begin(&mut self, epoch: u64) -> Option<Report> {
        let request = request(64, 4);
        let (tools, mesh) = (&self.parts.tools, alone(&request));
        let peers = vec![peer_at(&tools.port)];
        let assignment = assignment(&tools.models, &request, (Epoch(epoch), mesh, Rank(0)), peers);
        self.parts.begin(assignment, no_secrets())
    }

    async fn until_it_hangs(&self) {
        while self.hang.n_hanging() == 0 {
            tokio::task::yield_now().await;
        }
    }

    fn n_stuck(&self) -> f64 {
        let families = self.registry.gather();
        let stuck = families.iter().find(|family| family.name() == "fresco_stuck_ranks").expect("it is there");
        stuck.get_metric()[0].get_gauge().get_value()
    }
}

/// A port is bound outside of async code.
fn port() -> Port {
    let bound = std::thread::spawn(|| Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
    bound.join().expect("it is bound")
}

/// Which attempt of these reports is refused, and for which that keeps the device.
fn refused(report: &Report) -> Option<(u64, &str)> {
    match report {
        Report::Failed(failed) if failed.cause() == v1::Cause::Device => Some((failed.epoch, &failed.message)),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_thread_does_not_end_says_so_and_takes_no_work_until_it_does() {
    let mut scene = Scene::new();
    assert_eq!(scene.begin(1), None);
    scene.until_it_hangs().await;
    let before = scene.parts.work().expect("it is at work");
    assert!(before.epoch == 1 && before.progress > 0 && !before.waits, "{before:?}");
    scene.parts.abort(Epoch(1));
    scene.parts.look();
    assert_eq!(scene.n_stuck(), 0.0, "it has a moment to end");
    assert_eq!(scene.parts.running(), None, "nobody wants it any more");

    tokio::time::advance(ENDS_WITHIN).await;
    scene.parts.look();
    assert_eq!(scene.n_stuck(), 1.0);
    assert_eq!(scene.parts.work(), Some(before), "its thread lives, and does not move");
    let refusal = scene.begin(2).expect("it takes no work");
    let (epoch, message) = refused(&refusal).expect("it is the worker's fault");
    assert!(epoch == 2 && message.contains("attempt 1 "), "{message}");

    scene.hang.release();
    scene.parts.ends().notified().await;
    scene.parts.look();
    assert_eq!((scene.n_stuck(), scene.parts.work()), (0.0, None));
    assert_eq!(scene.begin(3), None, "it takes work again");
    assert_eq!(scene.parts.work().map(|work| work.epoch), Some(3));
    scene.parts.drop_current();
}

#[tokio::test(start_paused = true)]
async fn work_that_came_before_a_thread_was_found_stuck_goes_back() {
    let mut scene = Scene::new();
    assert_eq!(scene.begin(1), None);
    scene.until_it_hangs().await;
    scene.parts.abort(Epoch(1));
    assert_eq!(scene.begin(2), None, "it waits for the one before");
    assert_eq!(scene.parts.work().map(|work| work.epoch), Some(1), "which is the one that is seen");
    tokio::task::yield_now().await;
    tokio::time::advance(2 * ENDS_WITHIN).await;
    let report = scene.reports.recv().await.expect("it is answered");
    assert_eq!(refused(&report).map(|(epoch, _)| epoch), Some(2), "{report:?}");
    scene.hang.release();
}
