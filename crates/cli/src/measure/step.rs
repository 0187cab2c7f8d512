//! A whole picture on random weights but for its text: captions made ready, steps with guidance, and the decode.
//!
//! Leaves out the text encoder, which runs on the CPU once a prompt.

use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::Result;
use model::Place;
use model::dit::{self, Dit};
use model::sampler::{NoiseSchedule, Sampler};
use model::seam::{WholePicture, WholeSequence};
use model::vae::{self, Decoder};
use plan::{DitSpec, ImageSize, KvCompress, LayerIdx, RowRange, VaeSpec, flop};

use super::{memory, noise, random_weights};

const GUIDANCE: f64 = 4.5;
/// PixArt-Σ's.
const SCHEDULE: NoiseSchedule = NoiseSchedule { beta_start: 1e-4, beta_end: 2e-2, scaled: false, n_timesteps: 1000 };

/// What is drawn, and by what.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    pub(crate) size: ImageSize,
    pub(crate) steps: usize,
    pub(crate) dit: DitSpec,
    /// The decoder, if the picture is decoded.
    pub(crate) vae: Option<VaeSpec>,
}

/// A stage's seconds, arithmetic, and most memory over that before it, if the system tells.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// Of every repetition, in order.
    pub(crate) seconds: Vec<f64>,
    /// Of one repetition.
    pub(crate) flop: f64,
    pub(crate) peak_bytes: Option<u64>,
}

/// What a picture took.
#[derive(Debug, Clone)]
pub(crate) struct Stages {
    /// Keys and values of both captions.
    pub(crate) captions: Stage,
    pub(crate) steps: Stage,
    pub(crate) decode: Option<Stage>,
}

/// A transformer of XL/2's widths whose second half compresses keys and values.
pub(crate) fn transformer(blocks: usize, heads: usize, kv_ratio: usize) -> DitSpec {
    let layers = (blocks / 2..blocks).map(LayerIdx).collect();
    DitSpec {
        depth: blocks,
        heads,
        head_width: 72,
        caption_width: 4096,
        sample_cells: 128,
        interpolation: 2.0,
        kv_compress: (kv_ratio > 1).then_some(KvCompress { ratio: kv_ratio, layers }),
    }
}

/// Draws it once.
pub(crate) fn measure(place: &Place, work: &Work) -> Result<Stages> {
    let latent = work.size.latent(8);
    let (grid, spec) = (latent.tokens(), &work.dit);
    let dit = {
        let (_dir, weights) = random_weights(&dit::manifest(spec))?;
        Dit::load(spec, &weights.on(place.clone()), &|| ControlFlow::Continue(()))?
    };
    let mut captions = Vec::new();
    let of_captions = Stage::of(place, 0.0, 2, |_| {
        captions.push(dit.caption(&noise(&[flop::CAPTION_TOKENS, spec.caption_width])?)?);
        Ok(())
    })?;
    let mut sampler = Sampler::new(&SCHEDULE, work.steps);
    let mut x = noise(&[4, latent.rows, latent.cols])?;
    let of_steps = Stage::of(place, 2.0 * flop::forward(spec, latent), work.steps, |step| {
        let t = sampler.timesteps()[step];
        let predict = |caption| -> Result<_> {
            let all = dit.forward(&x, RowRange::all(grid.rows), grid, t, caption, &mut WholeSequence)?;
            Ok(all.narrow(0, 0, DitSpec::IN_CHANNELS)?.contiguous()?)
        };
        let (with, without) = (predict(&captions[0])?, predict(&captions[1])?);
        let guided = (&without + ((with - &without)? * GUIDANCE)?)?;
        x = sampler.step(step, &x, &guided)?.0;
        Ok(())
    })?;
    // The two networks need not fit beside each other.
    drop((dit, captions));
    let of_decode = work.vae.as_ref().map(|spec| -> Result<Stage> {
        let manifest: Vec<_> =
            vae::manifest(spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
        let decoder = {
            let (_dir, weights) = random_weights(&manifest)?;
            Decoder::load(spec, &weights.on(place.clone()))?
        };
        Stage::of(place, flop::decode(spec, latent), 1, |_| {
            Ok(decoder.decode(&x, &mut WholePicture, &mut |_| ControlFlow::Continue(())).map(drop)?)
        })
    });
    Ok(Stages { captions: of_captions, steps: of_steps, decode: of_decode.transpose()? })
}

impl Stage {
    fn of(place: &Place, flop: f64, n: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<Self> {
        place.wait()?;
        let before = memory::restart_peak(place);
        let mut seconds = Vec::with_capacity(n);
        for idx in 0..n {
            let start = Instant::now();
            work(idx)?;
            place.wait()?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let peak_bytes = before.and_then(|before| Some(memory::peak(place)?.saturating_sub(before)));
        Ok(Self { seconds, flop, peak_bytes })
    }

    /// Middle of the repetitions, without the first where there are others: it also warms up.
    pub(crate) fn median(&self) -> f64 {
        super::median(if self.seconds.len() > 1 { &self.seconds[1..] } else { &self.seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_goes_through_every_stage_at_a_small_size() {
        let size = ImageSize { width_px: 128, height_px: 64 };
        for (kv_ratio, decodes) in [(1, true), (2, false)] {
            let vae = decodes.then(|| VaeSpec::sdxl_family(&[8, 8, 16, 16], 1, 4));
            let work = Work { size, steps: 3, dit: transformer(2, 1, kv_ratio), vae };
            let stages = measure(&Place::default(), &work).expect("is drawn");
            assert_eq!(stages.captions.seconds.len(), 2);
            assert_eq!(stages.steps.seconds.len(), 3);
            assert!(stages.steps.flop > 0.0 && stages.steps.median() > 0.0);
            assert_eq!(stages.decode.is_some(), decodes);
        }
    }
}
