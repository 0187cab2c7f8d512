//! Runs one rank's program: the same steps as `model::Renderer::render`, on this rank's rows.
//!
//! Knows no worker, no lease and no disk: whoever runs it keeps checkpoints and may end it through [`Watch`].

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use candle_core::{Device, Tensor};
use fabric::{Fabric, Payload};
use model::dit::block::CaptionKeys;
use model::sampler::Sampler;
use model::{Rendered, Renderer, noise, vae};
use plan::geometry::TOKEN_CELLS;
use plan::program::{Op, Tag, program};
use plan::{Assignment, Branch, Exchange, Rank, RowRange, StepIdx};
use rayon::ThreadPool;

use crate::fault::RankError;
use crate::link::{Link, payload};
use crate::pixels::BandOfPixels;
use crate::pulse::Pulse;
use crate::sequence::BandOfTokens;
use crate::turn::Turn;

/// All one rank needs to do its part.
pub struct Seat<'a> {
    /// The networks.
    pub renderer: &'a Renderer,
    /// The part.
    pub assignment: &'a Assignment,
    /// The way to the other ranks, of the assignment's epoch.
    pub fabric: &'a dyn Fabric,
    /// How each block's tokens meet; every rank has the same.
    pub exchanges: &'a [Exchange],
    /// Threads for each branch; only one branch computes at a time.
    pub pools: &'a [ThreadPool; 2],
}

/// What the first step begins with.
pub enum Start {
    /// The seed's noise.
    Seed,
    /// A checkpoint: the whole latent `[4, rows, cols]`, and the clean one predicted at the last step taken.
    Checkpoint {
        /// The latent.
        latents: Tensor,
        /// The clean latent; none before the first step.
        clean: Option<Tensor>,
    },
}

/// A band of rows behind a step: what a checkpoint is made of.
pub struct StepRows {
    /// Steps that are done with this one.
    pub n_steps_done: usize,
    /// Latent rows these are.
    pub band: RowRange,
    /// The latent, `[4, band, cols]`.
    pub latents: Vec<f32>,
    /// The clean latent as predicted at this step, `[4, band, cols]`.
    pub clean: Vec<f32>,
}

/// How long a rank took over one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepTime {
    /// Spent computing.
    pub compute_ms: f64,
    /// Spent waiting for other ranks.
    pub wait_ms: f64,
}

/// What a rank is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Encodes the prompts.
    Encode,
    /// Takes a step.
    Step,
    /// Decodes its rows.
    Decode,
}

/// Who watches a rank at work.
pub trait Watch: Sync {
    /// Where the rank shows that it moves, and whether it waits.
    fn pulse(&self) -> &Pulse;

    /// A piece of work is done: a block, or some rows of the decode. Breaking off ends the rank.
    fn moved(&self, _at: Work) -> ControlFlow<()> {
        self.pulse().beat();
        ControlFlow::Continue(())
    }

    /// On rank 0: whether `step` is taken, or the ranks stop before it.
    fn takes(&self, step: StepIdx) -> bool;

    /// A step is done. `rows` are there on the ranks whose rows make the checkpoint. Breaking off ends the rank.
    fn step_done(&self, n_steps_done: usize, rows: Option<StepRows>, time: StepTime) -> ControlFlow<()>;

    /// A part of the decode is done. Breaking off ends the rank.
    fn decode_done(&self, done: usize, total: usize) -> ControlFlow<()>;

    /// Something failed on this rank: what waits for other ranks should be ended.
    fn give_up(&self);
}

/// How a rank's program ended.
pub enum Outcome {
    /// The ranks agreed to stop at a step boundary.
    Stopped {
        /// Steps done.
        n_steps_done: usize,
    },
    /// All is done; rank 0 has the picture.
    Done(Option<Rendered>),
}

impl Seat<'_> {
    /// Runs the rank's program to its end.
    ///
    /// # Errors
    /// If a rank is gone, a value stops being finite, the request cannot be rendered, or `watch` breaks off.
    pub fn run(&self, start: Start, watch: &dyn Watch) -> Result<Outcome, RankError> {
        self.check()?;
        let link = Link::new(self.fabric).watched(watch);
        let ended = Run::new(self, &link, watch)?.ops(start);
        ended.map_err(|error| error.settled(&link)).inspect_err(|_| watch.give_up())
    }

    fn check(&self) -> Result<(), RankError> {
        let Assignment { request, mesh, rank, n_steps_done, .. } = self.assignment;
        let spec = self.renderer.folder().spec();
        request.check().map_err(model::RenderError::from)?;
        spec.check_size(request.size).map_err(model::RenderError::from)?;
        let rows = request.size.latent(spec.vae.factor()).tokens().rows;
        let unit = spec.dit.kv_compress.as_ref().map_or(1, |kv| kv.ratio);
        let refuse = |why: String| Err(RankError::Assignment(why));
        if let Err(error) = plan::Mesh::new(mesh.n_branch_groups(), mesh.bands().to_vec(), rows, unit) {
            return refuse(error.to_string());
        }
        if mesh.n_branch_groups() == 2 && !request.is_guided() {
            return refuse("a request without guidance has one branch, its mesh two".into());
        }
        if usize::from(rank.0) >= mesh.n_ranks() || mesh.n_ranks() != self.fabric.n_ranks() {
            return refuse(format!("rank {rank} of {} is not one of {}", self.fabric.n_ranks(), mesh.n_ranks()));
        }
        if *n_steps_done > request.steps as usize {
            return refuse(format!("{n_steps_done} of {} steps are done", request.steps));
        }
        Ok(())
    }
}

/// A program on its way.
struct Run<'a> {
    seat: &'a Seat<'a>,
    link: &'a Link<'a>,
    watch: &'a dyn Watch,
    rank: Rank,
    turn: Turn,
    sampler: Sampler,
    /// Encoded prompts; on rank 0 only.
    embeds: Vec<Tensor>,
    captions: Vec<(Branch, Vec<CaptionKeys>)>,
    /// This rank's rows of the latent, `[4, rows, cols]`.
    x: Tensor,
    predictions: Vec<(Branch, Tensor)>,
    pixels: Option<Tensor>,
    step_start: Instant,
    computed_before: std::time::Duration,
}

impl<'a> Run<'a> {
    fn new(seat: &'a Seat<'a>, link: &'a Link<'a>, watch: &'a dyn Watch) -> Result<Self, RankError> {
        let steps = seat.assignment.request.steps as usize;
        Ok(Self {
            seat,
            link,
            watch,
            rank: seat.assignment.rank,
            turn: Turn::default(),
            sampler: Sampler::new(seat.renderer.folder().schedule(), steps),
            embeds: Vec::new(),
            captions: Vec::new(),
            x: Tensor::zeros(0, candle_core::DType::F32, &Device::Cpu)?,
            predictions: Vec::new(),
            pixels: None,
            step_start: Instant::now(),
            computed_before: std::time::Duration::ZERO,
        })
    }

    fn ops(mut self, start: Start) -> Result<Outcome, RankError> {
        let assignment = self.seat.assignment;
        let request = &assignment.request;
        self.start(start)?;
        let n_steps = request.steps as usize;
        for op in program(&assignment.mesh, self.rank, request.is_guided(), n_steps, assignment.n_steps_done) {
            match op {
                Op::Captions { is_guided } => self.captions(is_guided)?,
                Op::Agree { step } => {
                    if !self.agree(step)? {
                        return Ok(Outcome::Stopped { n_steps_done: step.0 });
                    }
                }
                Op::Forward { step, branches } => self.forward(step, branches)?,
                Op::Swap { step } => self.swap(step)?,
                Op::Update { step } => self.update(step)?,
                Op::Decode => self.decode()?,
                Op::Collect => return self.collect(),
            }
        }
        Err(RankError::Assignment("a program ends with its rows collected".into()))
    }

    /// Latent rows of this rank while it denoises.
    fn band(&self) -> RowRange {
        let band = self.seat.assignment.mesh.band(self.rank);
        RowRange { start: band.start * TOKEN_CELLS, end: band.end * TOKEN_CELLS }
    }

    fn start(&mut self, start: Start) -> Result<(), RankError> {
        let assignment = self.seat.assignment;
        let latent = assignment.request.size.latent(self.seat.renderer.folder().spec().vae.factor());
        let (latents, clean) = match start {
            Start::Seed => (noise::initial(assignment.request.seed, latent)?.squeeze(0)?, None),
            Start::Checkpoint { latents, clean } => (latents, clean),
        };
        let expected = [4, latent.rows, latent.cols];
        for whole in clean.iter().chain([&latents]) {
            if whole.dims() != expected {
                let found = format!("a checkpoint of shape {:?}", whole.dims());
                return Err(RankError::Assignment(format!("{found} is not of {expected:?}")));
            }
        }
        let band = self.band();
        self.x = latents.narrow(1, band.start, band.n_rows())?.contiguous()?;
        if let Some(clean) = clean {
            self.sampler.resume(clean.narrow(1, band.start, band.n_rows())?.contiguous()?);
        }
        Ok(())
    }

    /// Encoded once, on rank 0.
    fn captions(&mut self, is_guided: bool) -> Result<(), RankError> {
        let mesh = &self.seat.assignment.mesh;
        let dit = self.seat.renderer.dit();
        let pool = &self.seat.pools[0];
        if self.rank == Rank(0) {
            go_on(self.watch.moved(Work::Encode))?;
            let request = &self.seat.assignment.request;
            let mut go_on = |_: model::Progress<'_>| self.watch.moved(Work::Encode);
            self.embeds = pool.install(|| self.seat.renderer.embeds(request, &mut go_on))?;
        }
        for to in mesh.ranks().skip(1).filter(|_| self.rank == Rank(0)) {
            for branch in mesh.branches(to, is_guided) {
                let embeds = payload(&self.embeds[*branch as usize])?;
                self.link.send(&[to], Tag::Caption(*branch), &embeds, None)?;
            }
        }
        for branch in mesh.branches(self.rank, is_guided) {
            let embeds = match self.embeds.get(*branch as usize) {
                Some(embeds) => embeds.clone(),
                None => {
                    let values = self.link.recv_f32(Rank(0), Tag::Caption(*branch))?;
                    let width = dit.spec().caption_width;
                    Tensor::from_slice(&values, (values.len() / width.max(1), width), &Device::Cpu)?
                }
            };
            self.captions.push((*branch, pool.install(|| dit.caption(&embeds))?));
        }
        Ok(())
    }

    fn agree(&mut self, step: StepIdx) -> Result<bool, RankError> {
        (self.step_start, self.computed_before) = (Instant::now(), self.turn.computed());
        let tag = Tag::Agree(step);
        if self.rank != Rank(0) {
            return Ok(self.link.recv_bytes(Rank(0), tag)?.first() == Some(&1));
        }
        let takes = self.watch.takes(step);
        let others: Vec<Rank> = self.seat.assignment.mesh.ranks().skip(1).collect();
        self.link.send(&others, tag, &Payload::Bytes(Bytes::copy_from_slice(&[u8::from(takes)])), None)?;
        Ok(takes)
    }

    /// Both branches at once, each on threads of its own; the device's turn goes from one to the other whenever
    /// one waits.
    fn forward(&mut self, step: StepIdx, branches: &[Branch]) -> Result<(), RankError> {
        let first_fault = Mutex::new(None);
        self.predictions = std::thread::scope(|scope| {
            let mut running = Vec::new();
            for (branch, pool) in branches.iter().zip(self.seat.pools) {
                let (run, fault, at_work) = (&*self, &first_fault, Pulse::at_work_while(self.watch.pulse()));
                running.push(scope.spawn(move || {
                    let _at_work = at_work;
                    let prediction = pool.install(|| run.predict(step, *branch));
                    prediction.map(|prediction| (*branch, prediction)).map_err(|error| {
                        // The other branch may wait for what this one's failure keeps others from sending.
                        let error = error.settled(run.link);
                        fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        run.watch.give_up();
                    })
                }));
            }
            let _joining = self.watch.pulse().aside_while();
            running.into_iter().filter_map(|thread| thread.join().ok()?.ok()).collect()
        });
        match first_fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None if self.predictions.len() == branches.len() => Ok(()),
            None => Err(RankError::Assignment("a branch's thread died".into())),
        }
    }

    /// The noise `branch` predicts in this rank's rows, `[4, rows, cols]`.
    fn predict(&self, step: StepIdx, branch: Branch) -> Result<Tensor, RankError> {
        let assignment = self.seat.assignment;
        let dit = self.seat.renderer.dit();
        let factor = self.seat.renderer.folder().spec().vae.factor();
        let grid = assignment.request.size.latent(factor).tokens();
        let band = assignment.mesh.band(self.rank);
        let group = assignment.mesh.sequence_group(self.rank);
        let mut ctx = BandOfTokens {
            link: self.link,
            group: &group,
            bands: assignment.mesh.bands(),
            exchanges: self.seat.exchanges,
            step,
            branch,
            turn: self.turn.take(),
        };
        let caption = self.captions.iter().find(|(of, _)| *of == branch).map(|(_, caption)| caption.as_slice());
        let t = self.sampler.timesteps()[step.0];
        let all = dit.forward(&self.x, band, grid, t, caption.unwrap_or_default(), &mut ctx);
        let all = all.map_err(|error| RankError::of_forward(error, Some(step), self.rank))?;
        Ok(all.narrow(0, 0, self.x.dim(0)?)?.contiguous()?)
    }

    fn swap(&mut self, step: StepIdx) -> Result<(), RankError> {
        let Some(partner) = self.seat.assignment.mesh.partner(self.rank) else { return Ok(()) };
        let [(branch, own)] = &self.predictions[..] else {
            return Err(RankError::Assignment("partners run one branch each".into()));
        };
        let tag = Tag::Prediction(step);
        self.link.send(&[partner], tag, &payload(own)?, None)?;
        let values = self.link.recv_f32(partner, tag)?;
        let other = Tensor::from_slice(&values, own.shape(), &Device::Cpu)?;
        let of_other = if *branch == Branch::Conditional { Branch::Unconditional } else { Branch::Conditional };
        self.predictions.push((of_other, other));
        Ok(())
    }

    fn update(&mut self, step: StepIdx) -> Result<(), RankError> {
        let held = self.turn.take();
        let of = |branch| self.predictions.iter().find(|(of, _)| *of == branch).map(|(_, prediction)| prediction);
        let Some(with) = of(Branch::Conditional) else {
            return Err(RankError::Assignment("no rank ran the prompt's branch".into()));
        };
        // As the whole walk does it, to the bit.
        let guidance = self.seat.assignment.request.guidance;
        let noise = match of(Branch::Unconditional) {
            Some(without) => (without + ((with - without)? * guidance)?)?,
            None => with.clone(),
        };
        let (next, clean) = self.sampler.step(step.0, &self.x, &noise)?;
        model::finite::check(std::slice::from_ref(&next), || "latents".into())
            .map_err(|error| RankError::of_forward(error, Some(step), self.rank))?;
        self.x = next;
        drop(held);
        self.predictions.clear();

        // Partners hold the same rows: those of the first branch group are kept.
        let keeps = usize::from(self.rank.0) < self.seat.assignment.mesh.bands().len();
        let rows = keeps.then(|| self.rows(step, &clean)).transpose()?;
        let compute = self.turn.computed() - self.computed_before;
        let wait = self.step_start.elapsed().saturating_sub(compute);
        let time = StepTime { compute_ms: compute.as_secs_f64() * 1e3, wait_ms: wait.as_secs_f64() * 1e3 };
        go_on(self.watch.step_done(step.0 + 1, rows, time))
    }

    fn rows(&self, step: StepIdx, clean: &Tensor) -> Result<StepRows, RankError> {
        Ok(StepRows {
            n_steps_done: step.0 + 1,
            band: self.band(),
            latents: self.x.flatten_all()?.to_vec1()?,
            clean: clean.flatten_all()?.to_vec1()?,
        })
    }

    fn decode(&mut self) -> Result<(), RankError> {
        let decode_bands = self.seat.assignment.mesh.decode_bands();
        let own = decode_bands.iter().find(|(rank, _)| *rank == self.rank);
        let Some((_, own)) = own else { return Err(RankError::Assignment("a rank has no rows to decode".into())) };
        let latents = self.x.narrow(1, own.start - self.band().start, own.n_rows())?.contiguous()?;
        let decoder = self.seat.renderer.decoder();
        let cols = latents.dim(2)?;
        let order = decode_bands.iter().map(|(rank, band)| (*rank, band.n_rows() * cols)).collect();
        let (total, watch) = (decoder.n_parts(), self.watch);
        let pixels = self.seat.pools[0].install(|| {
            let mut rows = BandOfPixels::new(self.link, order, self.turn.take());
            decoder.decode(&latents, &mut rows, &mut |done| watch.decode_done(done, total))
        });
        self.pixels = Some(pixels.map_err(|error| RankError::of_forward(error, None, self.rank))?);
        Ok(())
    }

    fn collect(self) -> Result<Outcome, RankError> {
        let Some(own) = self.pixels else { return Err(RankError::Assignment("nothing was decoded".into())) };
        let mesh = &self.seat.assignment.mesh;
        let n_bands = mesh.bands().len();
        if self.rank != Rank(0) {
            self.link.send(&[Rank(0)], Tag::Pixels, &payload(&own)?, None)?;
            if usize::from(self.rank.0) < n_bands {
                self.link.send(&[Rank(0)], Tag::Latents, &payload(&self.x)?, None)?;
            }
            return Ok(Outcome::Done(None));
        }
        let (_, cols, channels) = own.dims3()?;
        let (latent_channels, _, latent_cols) = self.x.dims3()?;
        let (mut pixels, mut latents) = (vec![own], vec![self.x]);
        for (from, _) in mesh.decode_bands().into_iter().skip(1) {
            let values = self.link.recv_f32(from, Tag::Pixels)?;
            let n_rows = values.len() / (cols * channels).max(1);
            pixels.push(Tensor::from_slice(&values, (n_rows, cols, channels), &Device::Cpu)?);
            if usize::from(from.0) < n_bands {
                let values = self.link.recv_f32(from, Tag::Latents)?;
                let n_rows = values.len() / (latent_channels * latent_cols).max(1);
                latents.push(Tensor::from_slice(&values, (latent_channels, n_rows, latent_cols), &Device::Cpu)?);
            }
        }
        let all = Tensor::cat(&pixels, 0)?;
        drop(pixels);
        let image = vae::picture(&all)?;
        drop(all);
        let latents = Tensor::cat(&latents, 1)?.contiguous()?.unsqueeze(0)?;
        Ok(Outcome::Done(Some(Rendered { latents, image, embeds: self.embeds[0].unsqueeze(0)? })))
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), RankError> {
    if flow.is_break() { Err(RankError::Cancelled) } else { Ok(()) }
}
