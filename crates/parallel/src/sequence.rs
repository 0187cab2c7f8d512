//! The `sequence` axis: how a band's queries meet the keys and values of the other bands.
//!
//! Three exchanges, chosen per block by `plan::exchange`; all give the bits of one rank, because every query sees
//! the same keys in the same order and a head never feels another. What must travel is computed and sent first,
//! the rest while it is on its way.

use std::ops::Range;

use candle_core::{Result, Tensor};
use kernels::attention;
use model::Place;
use model::place::Gathering;
use model::seam::{AttentionContext, SelfAttention};
use plan::program::{Part, Tag};
use plan::{Branch, Exchange, Rank, RowRange, StepIdx};

use crate::executor::Work;
use crate::link::{Departures, Link};
use crate::turn::Held;

/// One branch's band of token rows in one step.
pub struct BandOfTokens<'a> {
    /// The way to the others.
    pub link: &'a Link<'a>,
    /// The ranks of this branch, from the top band down.
    pub group: &'a [Rank],
    /// Their bands of token rows.
    pub bands: &'a [RowRange],
    /// The exchange of each block.
    pub exchanges: &'a [Exchange],
    /// Which step.
    pub step: StepIdx,
    /// Which branch.
    pub branch: Branch,
    /// The device, given up while waiting.
    pub turn: Held<'a>,
}

impl AttentionContext for BandOfTokens<'_> {
    fn attend(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        self.link.moved(Work::Step)?;
        let exchange = self.exchanges.get(rows.layer().0).copied().unwrap_or(Exchange::GatherKv);
        match exchange {
            _ if self.group.len() == 1 => model::seam::WholeSequence.attend(rows),
            Exchange::Ulysses if self.group.len() > rows.heads() => self.gather_keys_and_values(rows),
            Exchange::GatherKv => self.gather_keys_and_values(rows),
            Exchange::GatherX => self.gather_rows(rows),
            Exchange::Ulysses => self.swap_heads(rows),
        }
    }
}

impl BandOfTokens<'_> {
    fn gather_keys_and_values(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let (keys, values) = rows.keys_and_values(rows.rows())?;
        let n_keys = self.bands.iter().map(|band| rows.n_keys(band.n_rows())).sum();
        let own = vec![(Part::Keys, keys), (Part::Values, values)];
        let (queries, all) = self.gather_beside_queries(rows, own, n_keys)?;
        let [keys, values] = &all[..] else { candle_core::bail!("keys and values are two") };
        attention(&queries, keys, values, rows.heads())
    }

    fn gather_rows(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let own = vec![(Part::Rows, rows.rows().clone())];
        let (queries, all) = self.gather_beside_queries(rows, own, self.n_tokens(rows))?;
        let [all] = &all[..] else { candle_core::bail!("rows are one") };
        let (keys, values) = rows.keys_and_values(all)?;
        attention(&queries, &keys, &values, rows.heads())
    }

    /// Has this rank's `parts` leave for all others, computes the queries meanwhile, and gathers `n_rows` of each part.
    fn gather_beside_queries(
        &mut self,
        rows: &SelfAttention<'_>,
        parts: Vec<(Part, Tensor)>,
        n_rows: usize,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let mut departures = Departures::new(self.link);
        let mut begun = Vec::with_capacity(parts.len());
        for (part, own) in parts {
            let (to, tag) = (self.others().map(|(_, to)| to).collect::<Vec<_>>(), self.tag(rows, part));
            departures.put(&to, tag, &own, &mut self.turn)?;
            begun.push((part, Place::of(&own).gather(n_rows, own.dim(1)?)?, own));
        }
        let queries = rows.queries()?;
        departures.send_late(&mut self.turn)?;
        let all = begun.into_iter().map(|(part, all, own)| self.gather(rows, part, all, own)).collect::<Result<_>>()?;
        Ok((queries, all))
    }

    /// Every rank attends with some heads for all rows (DeepSpeed-Ulysses, arXiv:2309.14509).
    fn swap_heads(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let (keys, values) = rows.keys_and_values(rows.rows())?;
        let own_heads = self.heads_of(rows, self.own_idx());
        let head_width = rows.rows().dim(1)? / rows.heads();
        let place = Place::of(rows.rows());
        let n_keys = self.bands.iter().map(|band| rows.n_keys(band.n_rows())).sum();
        // Queries are computed last of the three, so that keys and values travel meanwhile.
        let mut departures = Departures::new(self.link);
        let mut begun = Vec::new();
        for (part, x) in [(Part::Keys, Some(keys)), (Part::Values, Some(values)), (Part::Queries, None)] {
            let n_rows = if part == Part::Queries { self.n_tokens(rows) } else { n_keys };
            let all = place.gather(n_rows, own_heads.len() * head_width)?;
            let x = x.map_or_else(|| rows.queries(), Ok)?;
            let tag = self.tag(rows, part);
            for (idx, to) in self.others().collect::<Vec<_>>() {
                let x = columns(&x, &self.heads_of(rows, idx), head_width)?;
                departures.put(&[to], tag, &x, &mut self.turn)?;
            }
            begun.push((part, all, columns(&x, &own_heads, head_width)?));
        }
        departures.send_late(&mut self.turn)?;
        let gathered: Vec<_> =
            begun.into_iter().map(|(part, all, own)| self.gather(rows, part, all, own)).collect::<Result<_>>()?;
        let [keys, values, queries] = &gathered[..] else { candle_core::bail!("three parts are swapped") };
        let attended = attention(queries, keys, values, own_heads.len())?;

        // Back: each rank gets its rows of these heads.
        let n_own = rows.rows().dim(0)?;
        let mut departures = Departures::new(self.link);
        let mut own = None;
        for (idx, band) in self.bands.iter().enumerate() {
            let part = attended.narrow(0, band.start * rows.cols(), band.n_rows() * rows.cols())?.contiguous()?;
            if idx == self.own_idx() {
                own = Some(part);
            } else {
                departures.put(&[self.group[idx]], self.tag(rows, Part::Attended), &part, &mut self.turn)?;
            }
        }
        departures.send_late(&mut self.turn)?;
        let mut heads = Vec::new();
        for (idx, from) in self.group.iter().enumerate() {
            let width = self.heads_of(rows, idx).len() * head_width;
            heads.push(match &own {
                Some(own) if idx == self.own_idx() => own.clone(),
                _ => {
                    let tag = self.tag(rows, Part::Attended);
                    let mut part = place.gather(n_own, width)?;
                    self.link.gather(&mut part, (*from, tag), n_own, &mut self.turn)?;
                    part.whole()?
                }
            });
        }
        Tensor::cat(&heads, 1)?.contiguous()
    }

    /// The heads rank `idx` of the group attends with.
    fn heads_of(&self, rows: &SelfAttention<'_>, idx: usize) -> Range<usize> {
        let (heads, g) = (rows.heads(), self.group.len());
        heads * idx / g..heads * (idx + 1) / g
    }

    /// Tokens of all bands.
    fn n_tokens(&self, rows: &SelfAttention<'_>) -> usize {
        self.bands.iter().map(|band| band.n_rows() * rows.cols()).sum()
    }

    /// The parts of all ranks in row order, one tensor.
    fn gather(&mut self, rows: &SelfAttention<'_>, part: Part, mut all: Gathering, own: Tensor) -> Result<Tensor> {
        let tag = self.tag(rows, part);
        for (from, band) in self.group.iter().zip(self.bands) {
            if *from == self.link.rank() {
                all.add_own(&own)?;
                continue;
            }
            let is_compressed = matches!(part, Part::Keys | Part::Values);
            let n_rows = if is_compressed { rows.n_keys(band.n_rows()) } else { band.n_rows() * rows.cols() };
            self.link.gather(&mut all, (*from, tag), n_rows, &mut self.turn)?;
        }
        all.whole()
    }

    /// The others with their place in the group, beginning behind this rank, so that not all send to one first.
    fn others(&self) -> impl Iterator<Item = (usize, Rank)> + '_ {
        let (own, g) = (self.own_idx(), self.group.len());
        (1..g).map(move |ahead| (own + ahead) % g).map(|idx| (idx, self.group[idx]))
    }

    fn own_idx(&self) -> usize {
        self.group.iter().position(|rank| *rank == self.link.rank()).unwrap_or(0)
    }

    fn tag(&self, rows: &SelfAttention<'_>, part: Part) -> Tag {
        Tag::Block(self.step, rows.layer(), self.branch, part)
    }
}

/// The columns of `heads` of `x` `[rows, all heads]`.
fn columns(x: &Tensor, heads: &Range<usize>, head_width: usize) -> Result<Tensor> {
    x.narrow(1, heads.start * head_width, heads.len() * head_width)?.contiguous()
}
