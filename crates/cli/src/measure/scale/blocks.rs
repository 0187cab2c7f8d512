//! Both branches of some blocks on one worker and on two: rows shared, a branch each, and for comparison all of the
//! work on each of the two at once, which is what this machine's cores could give.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use candle_core::Tensor;
use fabric::{Fabric, Payload};
use model::dit::block::CaptionKeys;
use model::dit::{self, Stage};
use model::seam::WholeSequence;
use parallel::{BandOfTokens, Link, Turn};
use plan::flop::CAPTION_TOKENS;
use plan::program::Tag;
use plan::{Branch, DitSpec, Epoch, Exchange, Rank, RowRange, StepIdx};
use rayon::ThreadPool;

use super::{Ports, Scale, Shared, Way, at_once, in_turn, one_thread};
use crate::measure::{noise, random_weights};

/// Values a prediction has for each token: four channels of 2×2 cells.
const PREDICTED: usize = 16;

/// Blocks on a square of tokens, with what they are given.
struct Blocks {
    spec: DitSpec,
    stage: Stage,
    cols: usize,
    x: Tensor,
    modulation: Vec<f32>,
    captions: [Vec<CaptionKeys>; 2],
}

/// A worker's place among two.
struct Place<'a> {
    bands: &'a [RowRange],
    group: &'a [Rank],
    rank: Rank,
    exchanges: &'a [Exchange],
}

/// Blocks of XL/2 width over a square of tokens, both branches.
pub(crate) fn measure(n_blocks: usize, n_tokens: usize, runs: usize) -> Result<Vec<Scale>> {
    let blocks = Blocks::new(n_blocks, n_tokens)?;
    let exchanges = Exchange::for_blocks(&blocks.spec, n_tokens, 2, plan::Pace::CPU);
    let ports = Ports::bind()?;
    let alone = one_thread()?;
    let pools = [[one_thread()?, one_thread()?], [one_thread()?, one_thread()?]];
    let whole =
        |pool: &ThreadPool| pool.install(|| Branch::BOTH.map(|branch| blocks.whole(branch)).into_iter().collect());

    let middle = blocks.cols / 2;
    let bands = [RowRange { start: 0, end: middle }, RowRange { start: middle, end: blocks.cols }];
    let group = [Rank(0), Rank(1)];
    let rows = |epoch: Epoch| -> Result<Shared> {
        let parts = ports.both(epoch, |rank, fabric| {
            let place = Place { bands: &bands, group: &group, rank: Rank(rank as u16), exchanges: &exchanges };
            blocks.share(&place, &Branch::BOTH, &pools[rank], &*fabric)
        })?;
        let [(upper, of_upper), (lower, of_lower)] = parts;
        let joined = upper.iter().zip(&lower).map(|(upper, lower)| Ok(Tensor::cat(&[upper, lower], 0)?));
        Ok(Shared { copies: vec![joined.collect::<Result<_>>()?], computed: Some([of_upper, of_lower]) })
    };
    let all = [RowRange::all(blocks.cols)];
    let branches = |epoch: Epoch| -> Result<Shared> {
        let parts = ports.both(epoch, |rank, fabric| {
            let (own, partner) = (Rank(rank as u16), Rank(1 - rank as u16));
            let place = Place { bands: &all, group: &[own], rank: own, exchanges: &exchanges };
            let (made, computed) = blocks.share(&place, &Branch::BOTH[rank..=rank], &pools[rank], &*fabric)?;
            blocks.swap_predictions(&made[0], partner, &*fabric)?;
            Ok((made, computed))
        })?;
        let [(with, of_first), (without, of_second)] = parts;
        Ok(Shared { copies: vec![[with, without].concat()], computed: Some([of_first, of_second]) })
    };
    let twice = |_: Epoch| -> Result<Shared> {
        Ok(Shared { copies: at_once(|rank| whole(&pools[rank][0]))?.into(), computed: None })
    };
    let what = |how: &str| format!("{n_blocks} blocks, {n_tokens} tokens, both branches, {how}");
    let ways = [
        Way { what: what("rows shared"), run: &rows },
        Way { what: what("a branch each"), run: &branches },
        Way { what: what("all of it twice at once: what these cores give"), run: &twice },
    ];
    in_turn(runs, || whole(&alone), &ways)
}

impl Blocks {
    fn new(n_blocks: usize, n_tokens: usize) -> Result<Self> {
        let spec = DitSpec {
            depth: n_blocks,
            heads: 16,
            head_width: 72,
            caption_width: 64,
            sample_cells: 128,
            interpolation: 2.0,
            kv_compress: None,
        };
        let (_dir, weights) = random_weights(&dit::manifest(&spec))?;
        let stage = Stage::new(&spec, 0..n_blocks, &weights)?;
        let cols = n_tokens.isqrt();
        ensure!(cols * cols == n_tokens && cols > 1, "{n_tokens} tokens are not a square of two rows or more");
        let caption = |share: f64| -> Result<_> {
            Ok(stage.caption_keys(&noise(&[CAPTION_TOKENS, spec.width()])?.affine(share, 0.0)?)?)
        };
        let captions = [caption(1.0)?, caption(0.5)?];
        let (x, modulation) = (noise(&[n_tokens, spec.width()])?, noise(&[6 * spec.width()])?.to_vec1::<f32>()?);
        Ok(Self { spec, stage, cols, x, modulation, captions })
    }

    fn whole(&self, branch: Branch) -> Result<Tensor> {
        let caption = &self.captions[branch as usize];
        Ok(self.stage.forward(self.x.clone(), self.cols, &self.modulation, caption, &mut WholeSequence)?)
    }

    /// One worker's rows of some branches side by side, as `parallel::Seat` runs them, and how long it computed.
    fn share(
        &self,
        place: &Place<'_>,
        branches: &[Branch],
        pools: &[ThreadPool; 2],
        fabric: &dyn Fabric,
    ) -> Result<(Vec<Tensor>, Duration)> {
        let (link, turn) = (Link::new(fabric), Turn::default());
        let band = place.bands[place.rank.0 as usize % place.bands.len()];
        let part = self.x.narrow(0, band.start * self.cols, band.n_rows() * self.cols)?.force_contiguous()?;
        let run = |branch: Branch, pool: &ThreadPool| -> Result<Tensor> {
            pool.install(|| {
                let mut ctx = BandOfTokens {
                    link: &link,
                    group: place.group,
                    bands: place.bands,
                    exchanges: place.exchanges,
                    step: StepIdx(0),
                    branch,
                    turn: turn.take(),
                };
                let caption = &self.captions[branch as usize];
                Ok(self.stage.forward(part.clone(), self.cols, &self.modulation, caption, &mut ctx)?)
            })
        };
        let made = std::thread::scope(|scope| {
            let run = &run;
            let threads: Vec<_> =
                branches.iter().zip(pools).map(|(branch, pool)| scope.spawn(move || run(*branch, pool))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Tensor>>| {
                thread.join().map_err(|_| anyhow!("a branch's thread died"))?
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        Ok((made, turn.computed()))
    }

    /// What partners do behind a step's blocks. The layer that makes predictions is left out, so as many values as
    /// a prediction has stand in for it.
    fn swap_predictions(&self, made: &Tensor, partner: Rank, fabric: &dyn Fabric) -> Result<()> {
        let tag = fabric::Tag(Tag::Prediction(StepIdx(0)).pack());
        let own: Vec<f32> = made.narrow(1, 0, PREDICTED)?.flatten_all()?.to_vec1()?;
        let len = own.len();
        fabric.send(partner, tag, Payload::F32(Arc::new(own)))?;
        let Payload::F32(other) = fabric.recv(partner, tag)? else { return Err(anyhow!("predictions are f32")) };
        ensure!(other.len() == len, "a partner sent {} values where {len} were expected", other.len());
        Ok(())
    }
}
