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

use crate::link::{Link, payload};
use crate::turn::Held;

/// One rank's band of pixel rows.
pub struct BandOfPixels<'a> {
    link: &'a Link<'a>,
    /// Everybody who decodes, from the top.
    order: Vec<Rank>,
    /// Latent cells of the whole picture.
    n_cells: usize,
    turn: Held<'a>,
    /// Exchanges made so far: every rank makes the same ones, so the count names them.
    n_exchanges: u32,
}

impl<'a> BandOfPixels<'a> {
    /// This rank's band among those of `order`, from the top, of a picture of `n_cells` latent cells.
    pub fn new(link: &'a Link<'a>, order: Vec<Rank>, n_cells: usize, turn: Held<'a>) -> Self {
        Self { link, order, n_cells, turn, n_exchanges: 0 }
    }

    fn next_tag(&mut self) -> Tag {
        self.n_exchanges += 1;
        Tag::Decode(self.n_exchanges)
    }

    fn own_idx(&self) -> usize {
        self.order.iter().position(|rank| *rank == self.link.rank()).unwrap_or(0)
    }

    fn send_to_others(&self, tag: Tag, own: &Payload) -> Result<()> {
        let (own_idx, n) = (self.own_idx(), self.order.len());
        (1..n).map(|ahead| self.order[(own_idx + ahead) % n]).try_for_each(|to| self.link.send(to, tag, own))
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
        let above = own_idx.checked_sub(1).map(|idx| self.order[idx]);
        let below = self.order.get(own_idx + 1).copied();
        for (to, row) in [(above, first), (below, last)] {
            if let Some(to) = to {
                self.link.send(to, tag, &payload(row)?)?;
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
        self.send_to_others(tag, &Payload::F64(Arc::clone(&own)))?;
        let mut all = Vec::new();
        for from in self.order.clone() {
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
        let mut all = Place::of(&x).gather(self.n_cells, x.dim(1)?)?;
        self.send_to_others(tag, &payload(&x)?)?;
        for from in self.order.clone() {
            if from == self.link.rank() {
                all.add_own(&x)?;
            } else {
                let came = self.recv(from, tag)?;
                self.link.add(&mut all, from, &came)?;
            }
        }
        all.whole()
    }
}
