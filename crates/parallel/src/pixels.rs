//! The decode's rows over several ranks, exactly: halo rows from the neighbours, moments and rows of all in order.
//!
//! Nothing here depends on how many ranks there are but the order of rows; so nothing in the picture does.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use fabric::Payload;
use kernels::{Halo, Moments};
use model::Place;
use model::seam::RowExchange;
use plan::Rank;
use plan::program::Tag;

use crate::executor::Work;
use crate::link::{Departures, Link, payload};
use crate::turn::Held;

/// One rank's band of pixel rows.
pub struct BandOfPixels<'a> {
    link: &'a Link<'a>,
    /// Everybody who decodes with the latent cells of its band, from the top.
    order: Vec<(Rank, usize)>,
    turn: Held<'a>,
    /// Exchanges made so far: every rank makes the same ones, so the count names them.
    n_exchanges: u32,
}

impl<'a> BandOfPixels<'a> {
    /// This rank's band among those of `order`, from the top, each with its latent cells.
    pub fn new(link: &'a Link<'a>, order: Vec<(Rank, usize)>, turn: Held<'a>) -> Self {
        Self { link, order, turn, n_exchanges: 0 }
    }

    fn next_tag(&mut self) -> Tag {
        self.n_exchanges += 1;
        Tag::Decode(self.n_exchanges)
    }

    fn own_idx(&self) -> usize {
        self.order.iter().position(|(rank, _)| *rank == self.link.rank()).unwrap_or(0)
    }

    /// The others, beginning behind this rank, so that not all send to one first.
    fn others(&self) -> Vec<Rank> {
        let (own_idx, n) = (self.own_idx(), self.order.len());
        (1..n).map(|ahead| self.order[(own_idx + ahead) % n].0).collect()
    }

    fn recv(&mut self, from: Rank, tag: Tag) -> Result<Payload> {
        self.turn.aside(|| self.link.recv(from, tag))
    }
}

impl RowExchange for BandOfPixels<'_> {
    fn halo(&mut self, first: &Tensor, last: &Tensor) -> Result<Halo> {
        let tag = self.next_tag();
        let (_, cols, channels) = first.dims3()?;
        let place = Place::of(first);
        let own_idx = self.own_idx();
        let above = own_idx.checked_sub(1).map(|idx| self.order[idx].0);
        let below = self.order.get(own_idx + 1).map(|(rank, _)| *rank);
        for (to, row) in [(above, first), (below, last)] {
            if let Some(to) = to {
                self.link.send(&[to], tag, &payload(row)?, Some(&mut self.turn))?;
            }
        }
        let mut row_of = |from: Option<Rank>| -> Result<Option<Tensor>> {
            let Some(from) = from else { return Ok(None) };
            let came = self.recv(from, tag)?;
            let mut row = place.gather(1, cols * channels)?;
            self.link.add(&mut row, from, &came)?;
            Ok(Some(row.whole()?.reshape((1, cols, channels))?))
        };
        Ok(Halo { above: row_of(above)?, below: row_of(below)? })
    }

    fn gather_moments(&mut self, partials: Vec<Moments>) -> Result<Vec<Moments>> {
        let tag = self.next_tag();
        let own: Vec<f64> = partials.iter().flat_map(|part| [part.count, part.mean, part.m2]).collect();
        let own = Arc::new(own);
        self.link.send(&self.others(), tag, &Payload::F64(Arc::clone(&own)), Some(&mut self.turn))?;
        let mut all = Vec::new();
        for (from, _) in self.order.clone() {
            if from == self.link.rank() {
                all.extend_from_slice(&own);
            } else {
                let came = self.recv(from, tag)?;
                all.extend_from_slice(&self.link.f64_values(from, &came)?);
            }
        }
        Ok(all.chunks_exact(3).map(|part| Moments { count: part[0], mean: part[1], m2: part[2] }).collect())
    }

    fn gather(&mut self, x: Tensor) -> Result<Tensor> {
        let tag = self.next_tag();
        let n_cells = self.order.iter().map(|(_, n_cells)| n_cells).sum();
        let mut all = Place::of(&x).gather(n_cells, x.dim(1)?)?;
        let mut departures = Departures::new(self.link);
        departures.put(&self.others(), tag, &x, &mut self.turn)?;
        departures.send_late(&mut self.turn)?;
        for (from, n_cells) in self.order.clone() {
            if from == self.link.rank() {
                all.add_own(&x)?;
            } else {
                self.link.gather(&mut all, (from, tag), n_cells, &mut self.turn)?;
            }
        }
        all.whole()
    }

    fn slab_done(&mut self) -> Result<()> {
        self.link.moved(Work::Decode)
    }
}
