//! A decode with SDXL's widths on one worker and on two that share its rows.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use fabric::Fabric;
use model::seam::WholePicture;
use model::vae::{self, Decoder};
use parallel::{BandOfPixels, Link, Turn};
use plan::{Epoch, ImageSize, Rank, RowRange, VaeSpec};
use rayon::ThreadPool;

use super::{Ports, Scale, Shared, Way, in_turn, one_thread};
use crate::measure::{noise, random_weights};

/// SDXL's decoder.
pub(crate) fn vae() -> VaeSpec {
    VaeSpec::sdxl_family(&[128, 256, 512, 512], 2, 32)
}

/// A decoder and what it is given.
pub(super) struct Decode {
    decoder: Decoder,
    latents: Tensor,
    bands: [RowRange; 2],
    /// Pixels a latent cell is high.
    factor: usize,
}

/// Times it.
pub(crate) fn measure(size: ImageSize, runs: usize) -> Result<Vec<Scale>> {
    let decode = Decode::new(size)?;
    let (alone, pools) = (one_thread()?, [one_thread()?, one_thread()?]);
    let ports = Ports::bind()?;
    let shared = |epoch: Epoch| -> Result<Shared> {
        let [(upper, of_upper), (lower, of_lower)] =
            ports.both(epoch, |rank, fabric| decode.share(rank, &pools[rank], &*fabric))?;
        Ok(Shared { copies: vec![vec![Tensor::cat(&[upper, lower], 0)?]], computed: Some([of_upper, of_lower]) })
    };
    let ways = [Way { what: format!("decode of {size}, rows shared"), run: &shared }];
    in_turn(runs, || Ok(vec![decode.whole(&alone)?]), &ways)
}

impl Decode {
    pub(super) fn new(size: ImageSize) -> Result<Self> {
        let spec = vae();
        let manifest: Vec<_> =
            vae::manifest(&spec).into_iter().map(|(names, shape)| (names[0].clone(), shape)).collect();
        let (_dir, weights) = random_weights(&manifest)?;
        let decoder = Decoder::load(&spec, &weights)?;
        let latent = size.latent(spec.factor());
        ensure!(latent.rows > 1, "a decode of one row cannot be shared");
        let (latents, middle) = (noise(&[4, latent.rows, latent.cols])?, latent.rows / 2);
        let bands = [RowRange { start: 0, end: middle }, RowRange { start: middle, end: latent.rows }];
        Ok(Self { decoder, latents, bands, factor: spec.factor() })
    }

    /// All rows, `[rows, cols, 3]`.
    pub(super) fn whole(&self, pool: &ThreadPool) -> Result<Tensor> {
        let go_on = &mut |_| ControlFlow::Continue(());
        Ok(pool.install(|| self.decoder.decode(&self.latents, &mut WholePicture, go_on))?)
    }

    /// Where the second rank's rows begin.
    pub(super) fn first_pixel_row_of_lower(&self) -> usize {
        self.bands[1].start * self.factor
    }

    /// The rows of one of two ranks, and how long it computed.
    pub(super) fn share(&self, rank: usize, pool: &ThreadPool, fabric: &dyn Fabric) -> Result<(Tensor, Duration)> {
        let (link, turn, band) = (Link::new(fabric), Turn::default(), self.bands[rank]);
        let cols = self.latents.dim(2)?;
        let order = [0, 1].map(|rank_idx| (Rank(rank_idx), self.bands[usize::from(rank_idx)].n_rows() * cols));
        let part = self.latents.narrow(1, band.start, band.n_rows())?.force_contiguous()?;
        let pixels = pool.install(|| {
            let mut rows = BandOfPixels::new(&link, order.to_vec(), turn.take());
            self.decoder.decode(&part, &mut rows, &mut |_| ControlFlow::Continue(()))
        })?;
        Ok((pixels, turn.computed()))
    }
}
