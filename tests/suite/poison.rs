//! A value that is not finite on one of many ranks: its own rank finds it, in the step it arose in, and no other rank
//! takes the blame, whatever the mesh and the exchange.
//!
//! The value comes in through one rank's copy of a checkpoint. Leaves out what becomes of the image; that is `control`'s.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::{Device, Tensor};
use fabric::local::Group;
use model::{ModelFolder, Renderer};
use parallel::{Pulse, RankError, Seat, Start, StepRows, StepTime, Watch};
use plan::{
    ArtifactKind, Assignment, Cause, Clean, Epoch, Exchange, ImageId, ImageIdx, ImageSize, JobId, Mesh, ModelId, Rank,
    RenderRequest, RowRange, StepIdx,
};

const STEPS: usize = 4;

/// Counts the steps taken, and ends the epoch for all when one rank gives up, as a port does.
struct Watcher<'a> {
    group: &'a Group,
    n_taken: AtomicUsize,
    pulse: Pulse,
}

impl Watch for Watcher<'_> {
    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn takes(&self, _: StepIdx) -> bool {
        true
    }

    fn step_done(&self, _: usize, _: Option<StepRows>, _: StepTime) -> ControlFlow<()> {
        self.n_taken.fetch_add(1, Ordering::SeqCst);
        ControlFlow::Continue(())
    }

    fn decode_done(&self, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn give_up(&self) {
        self.group.abort();
    }
}

/// How every rank ends that goes on behind `n_done` steps while `poisoned` has a NaN in its first row.
fn run(renderer: &Renderer, mesh: &Mesh, exchange: Exchange, n_done: usize, poisoned: Rank) -> Vec<Option<RankError>> {
    let size = ImageSize::new(96, 128).expect("a size");
    let request = RenderRequest {
        prompt: "a calm sea at dawn".into(),
        negative: String::new(),
        size,
        steps: STEPS as u32,
        guidance: 4.5,
        seed: 3,
        clean: Clean::Basic,
    };
    let spec = renderer.folder().spec();
    let latent = size.latent(spec.vae.factor());
    let group = Group::new(Epoch(1), mesh.n_ranks(), Duration::from_secs(60));
    let watcher = Watcher { group: &group, n_taken: AtomicUsize::new(0), pulse: Pulse::default() };
    let exchanges = vec![exchange; spec.dit.depth];
    let ended = std::thread::scope(|scope| {
        let ranks = mesh.ranks().zip(group.fabrics());
        let threads: Vec<_> = ranks
            .map(|(rank, fabric)| {
                let (watcher, exchanges, request) = (&watcher, &exchanges, request.clone());
                let mut values = vec![0.25_f32; 4 * latent.rows * latent.cols];
                if rank == poisoned {
                    // A token is two cells high.
                    values[2 * mesh.band(rank).start * latent.cols] = f32::NAN;
                }
                scope.spawn(move || {
                    let shape = (4, latent.rows, latent.cols);
                    let latents = Tensor::from_vec(values, shape, &Device::Cpu).expect("the sizes agree");
                    let clean = Tensor::zeros(shape, latents.dtype(), &Device::Cpu).expect("can be made");
                    let assignment = Assignment {
                        epoch: Epoch(1),
                        image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
                        request,
                        model: ModelId { name: "demo".into(), weights_sha256: String::new() },
                        artifact: ArtifactKind::Png8,
                        mesh: mesh.clone(),
                        rank,
                        peers: Vec::new(),
                        n_steps_done: n_done,
                    };
                    let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
                    let (pools, fabric, assignment) = ([pool(), pool()], &*fabric, &assignment);
                    let seat = Seat { renderer, assignment, fabric, exchanges, pools: &pools };
                    seat.run(Start::Checkpoint { latents, clean: Some(clean) }, watcher).err()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panicked")).collect()
    });
    assert_eq!(watcher.n_taken.into_inner(), 0, "no rank takes a step with a value that is not finite in it");
    ended
}

#[test]
fn the_rank_with_the_value_names_itself_and_the_step_and_no_other_does() {
    let dir = tests::repo_root().join("models/demo");
    let folder = ModelFolder::open(Path::new(&dir), None).expect("the folder is sound");
    let renderer = Renderer::load(Arc::new(folder)).expect("the weights load");
    let band = |start, end| RowRange { start, end };
    let meshes = [(1, vec![band(0, 8)]), (2, vec![band(0, 8)]), (1, vec![band(0, 2), band(2, 6), band(6, 8)])];
    for (n_branch_groups, bands) in meshes {
        let mesh = Mesh::new(n_branch_groups, bands, 8, 2).expect("a mesh");
        for (poisoned, exchange, n_done) in mesh
            .ranks()
            .flat_map(|rank| {
                [Exchange::GatherKv, Exchange::GatherX, Exchange::Ulysses].map(|exchange| (rank, exchange))
            })
            .flat_map(|(rank, exchange)| [0, STEPS - 1].map(|n_done| (rank, exchange, n_done)))
        {
            let ended = run(&renderer, &mesh, exchange, n_done, poisoned);
            for (rank, error) in mesh.ranks().zip(ended) {
                let error = error.expect("no rank goes on");
                let of = format!("rank {rank} of {} with {exchange:?}, poisoned {poisoned}: {error}", mesh.n_ranks());
                if rank == poisoned {
                    let named = format!("step {}, rank {poisoned}: ", StepIdx(n_done));
                    assert!(error.cause() == Cause::NotFinite && error.to_string().starts_with(&named), "{of}");
                } else {
                    assert_eq!(error.cause(), Cause::Peer, "{of}");
                }
            }
        }
    }
}
