//! One picture made by many ranks in one process: the bytes of one rank, for any mesh, any cut, any exchange, and
//! when it is stopped at a step and goes on from its checkpoint on another mesh.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use candle_core::{Device, Tensor};
use fabric::local::Group;
use model::{ModelFolder, Renderer};
use parallel::{Outcome, Pulse, Seat, Start, StepRows, StepTime, Watch};
use plan::{
    ArtifactKind, Assignment, Clean, Epoch, Exchange, ImageId, ImageIdx, ImageSize, JobId, Mesh, ModelId, Rank,
    RenderRequest, RowRange, StepIdx,
};

const SILENCE: Duration = Duration::from_secs(60);

fn renderer(dir: &str) -> Renderer {
    let dir = tests::repo_root().join(dir);
    let folder = ModelFolder::open(Path::new(&dir), None).expect("the folder is sound");
    Renderer::load(Arc::new(folder.on(&crate::gpu::place()))).expect("the weights load")
}

fn request(size: ImageSize, guidance: f64) -> RenderRequest {
    RenderRequest {
        prompt: "snowy mountains at sunset with a ringed planet on the right".into(),
        negative: String::new(),
        size,
        steps: 3,
        guidance,
        seed: 11,
        clean: Clean::Basic,
    }
}

fn size(width_px: u32, height_px: u32) -> ImageSize {
    ImageSize::new(width_px, height_px).expect("a size")
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values = tensor.flatten_all().and_then(|tensor| tensor.to_vec1::<f32>()).expect("f32 on the cpu");
    values.into_iter().map(f32::to_bits).collect()
}

/// Bits of latents and pixels.
type Bits = (Vec<u32>, Vec<u32>);

/// Steps done, the latent and the clean latent behind them.
type Checkpoint = (usize, Tensor, Tensor);

/// Keeps every rank's rows and stops the ranks before a step.
struct Keeper {
    stops_before: Option<StepIdx>,
    rows: Mutex<Vec<StepRows>>,
    pulse: Pulse,
}

impl Watch for Keeper {
    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn takes(&self, step: StepIdx) -> bool {
        self.stops_before != Some(step)
    }

    fn step_done(&self, _: usize, rows: Option<StepRows>, _: StepTime) -> ControlFlow<()> {
        self.rows.lock().expect("no rank panicked").extend(rows);
        ControlFlow::Continue(())
    }

    fn decode_done(&self, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn give_up(&self) {}
}

/// A mesh of bands of so many token rows.
fn mesh(n_branch_groups: usize, rows: &[usize], unit: usize) -> Mesh {
    let mut start = 0;
    let bands = rows.iter().map(|n| {
        start += n;
        RowRange { start: start - n, end: start }
    });
    Mesh::new(n_branch_groups, bands.collect(), rows.iter().sum(), unit).expect("a mesh")
}

/// What all ranks of `mesh` make of the picture: latents and pixels, or the checkpoint they stopped with.
fn run(
    renderer: &Renderer,
    request: &RenderRequest,
    mesh: &Mesh,
    exchange: Option<Exchange>,
    checkpoint: Option<Checkpoint>,
    stops_before: Option<StepIdx>,
) -> Result<Bits, Checkpoint> {
    let spec = renderer.folder().spec();
    let latent = request.size.latent(spec.vae.factor());
    let n_tokens = latent.tokens().n_tokens();
    let g = mesh.bands().len();
    let exchanges = match exchange {
        Some(exchange) => vec![exchange; spec.dit.depth],
        None => Exchange::for_blocks(&spec.dit, n_tokens, g, plan::Pace::CPU),
    };
    let group = Group::new(Epoch(1), mesh.n_ranks(), SILENCE);
    let keeper = Keeper { stops_before, rows: Mutex::default(), pulse: Pulse::default() };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let ranks = mesh.ranks().zip(group.fabrics());
        let threads: Vec<_> = ranks
            .map(|(rank, fabric)| {
                let (keeper, exchanges, checkpoint) = (&keeper, &exchanges, checkpoint.clone());
                scope.spawn(move || {
                    let assignment = assignment(request, mesh, rank, checkpoint.as_ref().map_or(0, |(n, ..)| *n));
                    let pool = || rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
                    let pools = [pool(), pool()];
                    let (fabric, assignment) = (&*fabric, &assignment);
                    let seat = Seat { renderer, assignment, fabric, exchanges, pools: &pools };
                    let start = checkpoint
                        .map_or(Start::Seed, |(_, latents, clean)| Start::Checkpoint { latents, clean: Some(clean) });
                    seat.run(start, keeper).expect("the rank runs")
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panicked")).collect()
    });
    let n_done = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Stopped { n_steps_done } => Some(*n_steps_done),
        Outcome::Done(_) => None,
    });
    let rows = keeper.rows.into_inner().expect("no rank panicked");
    match n_done {
        Some(n_done) => {
            let [latents, clean] = [false, true].map(|clean| whole(&rows, n_done, latent.cols, clean));
            Err((n_done, latents, clean))
        }
        None => {
            let pictures = outcomes.into_iter().filter_map(|outcome| match outcome {
                Outcome::Done(picture) => picture,
                Outcome::Stopped { .. } => None,
            });
            let [picture] = &pictures.collect::<Vec<_>>()[..] else { panic!("one rank has the picture") };
            Ok((bits(&picture.latents), bits(&picture.image)))
        }
    }
}

/// The whole latent behind step `n_done`, of all ranks' rows.
fn whole(rows: &[StepRows], n_done: usize, cols: usize, clean: bool) -> Tensor {
    let mut bands: Vec<&StepRows> = rows.iter().filter(|rows| rows.n_steps_done == n_done).collect();
    bands.sort_by_key(|rows| rows.band.start);
    let tensors: Vec<Tensor> = bands
        .iter()
        .map(|rows| {
            let values = if clean { &rows.clean } else { &rows.latents };
            Tensor::from_slice(values, (4, rows.band.n_rows(), cols), &Device::Cpu).expect("the sizes agree")
        })
        .collect();
    Tensor::cat(&tensors, 1).and_then(|whole| whole.contiguous()).expect("bands of one picture")
}

fn assignment(request: &RenderRequest, mesh: &Mesh, rank: Rank, n_steps_done: usize) -> Assignment {
    Assignment {
        epoch: Epoch(1),
        image: ImageId { job: JobId("job".into()), image: ImageIdx(0) },
        request: request.clone(),
        model: ModelId { name: "test".into(), weights_sha256: String::new() },
        artifact: ArtifactKind::Safetensors,
        mesh: mesh.clone(),
        rank,
        peers: Vec::new(),
        n_steps_done,
    }
}

fn expected(renderer: &Renderer, request: &RenderRequest) -> Bits {
    let picture = renderer.render(request, None, &mut |_| ControlFlow::Continue(())).expect("one rank renders");
    (bits(&picture.latents), bits(&picture.image))
}

fn check(dir: &str, request: &RenderRequest, unit: usize, meshes: &[(usize, &[usize])]) {
    let renderer = renderer(dir);
    let expected = expected(&renderer, request);
    for (n_branch_groups, rows) in meshes {
        let mesh = mesh(*n_branch_groups, rows, unit);
        for exchange in [None, Some(Exchange::GatherKv), Some(Exchange::GatherX), Some(Exchange::Ulysses)] {
            let made = run(&renderer, request, &mesh, exchange, None, None).map_err(|_| "it stopped");
            assert!(made == Ok(expected.clone()), "{dir}: {n_branch_groups} x {rows:?} by {exchange:?}: other bits");
        }
    }
}

#[test]
fn the_demo_on_one_to_four_ranks_gives_the_bytes_of_one() {
    let meshes: &[(usize, &[usize])] =
        &[(1, &[8]), (2, &[8]), (1, &[4, 4]), (1, &[6, 2]), (1, &[2, 4, 2]), (2, &[2, 6]), (1, &[2, 2, 2, 2])];
    check("models/demo", &request(size(96, 128), 4.5), 2, meshes);
}

#[test]
fn an_odd_grid_without_guidance_gives_the_bytes_of_one() {
    check("models/demo", &request(size(112, 240), 1.0), 2, &[(1, &[8, 7]), (1, &[2, 12, 1])]);
}

#[test]
fn both_goldens_with_keys_compressed_or_not_give_the_bytes_of_one() {
    for golden in ["a", "b"] {
        for (model, unit) in [("model", 1), ("model-kv", 2)] {
            let dir = format!("tests/goldens/{golden}/{model}");
            check(&dir, &request(size(80, 112), 4.5), unit, &[(2, &[7]), (1, &[4, 3]), (2, &[2, 5])]);
        }
    }
}

#[test]
fn a_picture_stopped_at_any_step_goes_on_elsewhere_with_the_same_bytes() {
    let renderer = renderer("models/demo");
    let request = request(size(64, 128), 4.5);
    let expected = expected(&renderer, &request);
    let (first, second) = (mesh(1, &[2, 6], 2), mesh(2, &[4, 4], 2));
    for stops_before in 1..3 {
        let stopped = run(&renderer, &request, &first, None, None, Some(StepIdx(stops_before)));
        let checkpoint = stopped.expect_err("it stops");
        assert_eq!(checkpoint.0, stops_before);
        let made = run(&renderer, &request, &second, None, Some(checkpoint), None).map_err(|_| "it stopped");
        assert!(made == Ok(expected.clone()), "stopped before step {stops_before}: other bits");
    }
}
