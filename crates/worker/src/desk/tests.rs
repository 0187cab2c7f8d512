//! Desks with real ranks at them.

use std::sync::atomic::AtomicUsize;

use candle_core::{DType, Device, Tensor};
use fabric::grpc::PortConfig;
use parallel::{Seat, Start};
use plan::{Assignment, Exchange, Mesh, Pace, Peer, RowRange, WorkerId};

use super::*;
use crate::testing::{alone, assignment, demo, model_of, no_secrets, peer_at, request};

/// Counts what a rank does.
struct Counted<'a> {
    desk: &'a Desk,
    n_layers: AtomicUsize,
    n_layers_late: AtomicUsize,
    n_blocks: AtomicUsize,
    n_blocks_late: AtomicUsize,
}

impl<'a> Counted<'a> {
    fn of(desk: &'a Desk) -> Self {
        let (n_layers, n_layers_late, n_blocks, n_blocks_late) = Default::default();
        Self { desk, n_layers, n_layers_late, n_blocks, n_blocks_late }
    }
}

impl Watch for Counted<'_> {
    fn pulse(&self) -> &Pulse {
        Watch::pulse(self.desk)
    }

    fn moved(&self, at: Work) -> ControlFlow<()> {
        if at == Work::Step {
            self.n_blocks.fetch_add(1, Ordering::SeqCst);
            self.n_blocks_late.fetch_add(self.desk.is_cancelled().into(), Ordering::SeqCst);
        }
        self.desk.moved(at)
    }

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
    let (models, request) = (demo(), request(512, STEPS as u32));
    let assignment = |mesh: &Mesh, rank, peers| Assignment {
        n_steps_done: STEPS,
        ..assignment(&models, &request, (Epoch(1), mesh.clone(), rank), peers)
    };
    let renderer = models.renderer(&model_of(&models), &|| ControlFlow::Continue(())).expect("the weights load");
    let latent = request.size.latent(renderer.folder().spec().vae.factor());
    let bands = [(0, 10), (10, 20), (20, 32)].map(|(start, end)| RowRange { start, end });
    let mesh = Mesh::new(1, bands.to_vec(), 32, 2).expect("a mesh");
    let bind = |_| Arc::new(Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
    let ports: Vec<Arc<Port>> = mesh.ranks().map(bind).collect();
    let peer = |port: &Arc<Port>| Peer { worker: WorkerId("any".into()), address: port.address().to_owned() };
    let peers: Vec<Peer> = ports.iter().map(peer).collect();
    let (reports, mut said) = mpsc::channel(64);
    let desk = |(rank, port): (Rank, &Arc<Port>)| {
        Desk::new((Epoch(1), rank, no_secrets()), STEPS, Arc::clone(port), reports.clone(), Arc::default())
    };
    let desks: Vec<Desk> = mesh.ranks().zip(&ports).map(desk).collect();
    let watches: Vec<Counted<'_>> = desks.iter().map(Counted::of).collect();
    std::thread::scope(|scope| {
        for (watch, port) in watches.iter().zip(&ports) {
            let assignment = assignment(&mesh, watch.desk.rank, peers.clone());
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

#[test]
fn a_cancel_in_the_midst_of_a_step_is_heard_within_a_block_of_each_branch() {
    let (models, request) = (demo(), request(256, 50));
    let renderer = models.renderer(&model_of(&models), &|| ControlFlow::Continue(())).expect("the weights load");
    let port = Arc::new(Port::bind("http://127.0.0.1:0", PortConfig::default()).expect("a port is free"));
    let peers = vec![peer_at(&port)];
    let assignment = assignment(&models, &request, (Epoch(1), alone(&request), Rank(0)), peers);
    let (reports, mut said) = mpsc::channel(64);
    let desk = Desk::new((Epoch(1), Rank(0), no_secrets()), 0, Arc::clone(&port), reports, Arc::default());
    let watch = Counted::of(&desk);
    let n_tokens = request.size.latent(renderer.folder().spec().vae.factor()).tokens().n_tokens();
    let exchanges = Exchange::for_blocks(&renderer.folder().spec().dit, n_tokens, 1, Pace::CPU);
    std::thread::scope(|scope| {
        let (watch, desk) = (&watch, &desk);
        scope.spawn(move || {
            drop(said.blocking_recv().expect("a step is taken"));
            let n_before = watch.n_blocks.load(Ordering::SeqCst);
            while watch.n_blocks.load(Ordering::SeqCst) == n_before {
                std::thread::yield_now();
            }
            desk.cancel();
        });
        let fabric = port.open(Epoch(1), 1, Rank(0), vec![port.address().to_owned()]);
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
        let pools = [pool(), pool()];
        let seat = Seat {
            renderer: &renderer,
            assignment: &assignment,
            fabric: &*fabric,
            exchanges: &exchanges,
            pools: &pools,
        };
        let ended = seat.run(Start::Seed, watch).err().expect("it was cancelled");
        assert!(matches!(ended, parallel::RankError::Cancelled), "{ended}");
    });
    let n_late = watch.n_blocks_late.load(Ordering::SeqCst);
    assert!(n_late <= 2, "{n_late} blocks were begun after the cancel");
    assert!(!desk.pulse().waits() && desk.pulse().n_moves() > 0);
}
