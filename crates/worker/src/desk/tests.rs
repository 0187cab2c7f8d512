//! Desks with real ranks at them.

use std::path::Path;
use std::sync::atomic::AtomicUsize;

use candle_core::{DType, Device, Tensor};
use fabric::grpc::PortConfig;
use parallel::{Seat, Start};
use plan::{
    ArtifactKind, Assignment, Clean, Exchange, ImageId, ImageIdx, ImageSize, JobId, Mesh, Pace, Peer, RenderRequest,
    RowRange, WorkerId,
};

use super::*;
use crate::open_models;

/// Counts what a rank does.
struct Counted<'a> {
    desk: &'a Desk,
    n_layers: AtomicUsize,
    n_layers_late: AtomicUsize,
}

impl Watch for Counted<'_> {
    fn takes(&self, step: StepIdx) -> bool {
        self.desk.takes(step)
    }

    fn step_done(&self, n_steps_done: usize, rows: Option<StepRows>, time: StepTime) -> ControlFlow<()> {
        self.desk.step_done(n_steps_done, rows, time)
    }

    fn decode_done(&self, done: usize, total: usize) -> ControlFlow<()> {
        self.n_layers.fetch_add(1, Ordering::SeqCst);
        self.n_layers_late.fetch_add(self.desk.is_cancelled().into(), Ordering::SeqCst);
        self.desk.decode_done(done, total)
    }

    fn give_up(&self) {
        self.desk.give_up();
    }
}

#[test]
fn a_decode_that_is_cancelled_ends_on_every_rank_within_one_layer() {
    const STEPS: usize = 2;
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let models = open_models(&[(demo, None)], &model::Place::default(), &machine::Memory::UNKNOWN, 1)
        .expect("the demo is sound");
    let model = models.facts().next().expect("it is one").id.clone();
    let renderer = models.renderer(&model).expect("the weights load");
    let size = ImageSize::new(512, 512).expect("a size");
    let request = RenderRequest {
        prompt: "a calm sea at dawn".into(),
        negative: String::new(),
        size,
        steps: STEPS as u32,
        guidance: 4.5,
        seed: 1,
        clean: Clean::Basic,
    };
    let latent = size.latent(renderer.folder().spec().vae.factor());
    let bands = [(0, 10), (10, 20), (20, 32)].map(|(start, end)| RowRange { start, end });
    let mesh = Mesh::new(1, bands.to_vec(), 32, 2).expect("a mesh");
    let bind = |_| Arc::new(Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
    let ports: Vec<Arc<Port>> = mesh.ranks().map(bind).collect();
    let peer = |port: &Arc<Port>| Peer { worker: WorkerId("any".into()), address: port.address().to_owned() };
    let peers: Vec<Peer> = ports.iter().map(peer).collect();
    let (reports, mut said) = mpsc::channel(64);
    let desk = |(rank, port): (Rank, &Arc<Port>)| {
        Desk::new((Epoch(1), rank), STEPS, Arc::clone(port), reports.clone(), Arc::default())
    };
    let desks: Vec<Desk> = mesh.ranks().zip(&ports).map(desk).collect();
    let counted = |desk| Counted { desk, n_layers: AtomicUsize::new(0), n_layers_late: AtomicUsize::new(0) };
    let watches: Vec<Counted<'_>> = desks.iter().map(counted).collect();
    std::thread::scope(|scope| {
        for (watch, port) in watches.iter().zip(&ports) {
            let assignment = Assignment {
                epoch: Epoch(1),
                image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
                request: request.clone(),
                model: model.clone(),
                artifact: ArtifactKind::Png8,
                mesh: mesh.clone(),
                rank: watch.desk.rank,
                peers: peers.clone(),
                n_steps_done: STEPS,
            };
            let renderer = &renderer;
            scope.spawn(move || {
                let addresses = assignment.peers.iter().map(|peer| peer.address.clone()).collect();
                let fabric = port.open(Epoch(1), 1, assignment.rank, addresses);
                let exchanges =
                    Exchange::for_blocks(&renderer.folder().spec().dit, latent.tokens().n_tokens(), 3, Pace::CPU);
                let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
                let (pools, assignment, fabric) = ([pool(), pool()], &assignment, &*fabric);
                let seat = Seat { renderer, assignment, fabric, exchanges: &exchanges, pools: &pools };
                let zeros = || Tensor::zeros((4, latent.rows, latent.cols), DType::F32, &Device::Cpu).expect("is made");
                let ended = seat.run(Start::Checkpoint { latents: zeros(), clean: Some(zeros()) }, watch);
                assert!(ended.is_err(), "rank {} decoded to the end", assignment.rank);
            });
        }
        let first = said.blocking_recv().expect("rank 0 reports");
        assert!(matches!(first, v1::session_request::Message::Decoding(_)), "{first:?}");
        desks.iter().for_each(Desk::cancel);
    });
    let n_all = renderer.decoder().n_parts();
    for watch in &watches {
        let (n, n_late) = (watch.n_layers.load(Ordering::SeqCst), watch.n_layers_late.load(Ordering::SeqCst));
        println!("rank {}: {n} of {n_all} layers, {n_late} behind the cancel", watch.desk.rank);
        assert!(n < n_all, "the cancel came too late to show anything");
        assert!(n_late <= 1, "rank {} computed {n_late} layers behind the cancel", watch.desk.rank);
    }
}
