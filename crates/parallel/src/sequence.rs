//! The `sequence` axis: how a band's queries meet the keys and values of the other bands.
//!
//! Three exchanges, chosen per block by `plan::exchange`; all give the bits of one rank, because every query sees
//! the same keys in the same order and a head never feels another. What must travel is computed and sent first,
//! the rest while it is on its way.

use std::ops::Range;

use candle_core::{Result, Tensor};
use kernels::attention;
use model::Place;
use model::place::leave;
use model::seam::{AttentionContext, SelfAttention};
use plan::program::{Part, Tag};
use plan::{Branch, Exchange, Rank, RowRange, StepIdx};

use crate::link::{Link, payload, when_there};
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
        let queries = self.send_before_queries(rows, &[(Part::Keys, &keys), (Part::Values, &values)])?;
        let keys = self.gather(rows, Part::Keys, keys)?;
        let values = self.gather(rows, Part::Values, values)?;
        attention(&queries, &keys, &values, rows.heads())
    }

    fn gather_rows(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let queries = self.send_before_queries(rows, &[(Part::Rows, rows.rows())])?;
        let all = self.gather(rows, Part::Rows, rows.rows().clone())?;
        let (keys, values) = rows.keys_and_values(&all)?;
        attention(&queries, &keys, &values, rows.heads())
    }

    /// Sends `parts` to all others and computes the queries while they travel. A GPU is given the queries while it copies;
    /// on a CPU, where they would hold up what is there already, they come behind.
    fn send_before_queries(&mut self, rows: &SelfAttention<'_>, parts: &[(Part, &Tensor)]) -> Result<Tensor> {
        let leaving = parts.iter().map(|(part, x)| Ok((*part, leave(x)?))).collect::<Result<Vec<_>>>()?;
        let are_there = leaving.iter().all(|(_, leaving)| leaving.is_there());
        let queries = (!are_there).then(|| rows.queries()).transpose()?;
        for (part, leaving) in leaving {
            let own = when_there(leaving)?;
            self.others().try_for_each(|(_, to)| self.link.send(to, self.tag(rows, part), &own))?;
        }
        queries.map_or_else(|| rows.queries(), Ok)
    }

    /// Every rank attends with some heads for all rows (DeepSpeed-Ulysses, arXiv:2309.14509).
    fn swap_heads(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let (keys, values) = rows.keys_and_values(rows.rows())?;
        let own_heads = self.heads_of(rows, self.own_idx());
        let head_width = rows.rows().dim(1)? / rows.heads();
        // Queries are computed last of the three, so that keys and values travel meanwhile.
        let mut own = Vec::new();
        for (part, x) in [(Part::Keys, Some(keys)), (Part::Values, Some(values)), (Part::Queries, None)] {
            let x = x.map_or_else(|| rows.queries(), Ok)?;
            for (idx, to) in self.others() {
                let heads = columns(&x, &self.heads_of(rows, idx), head_width)?;
                self.link.send(to, self.tag(rows, part), &payload(&heads)?)?;
            }
            own.push((part, columns(&x, &own_heads, head_width)?));
        }
        let mut gathered = Vec::new();
        for (part, own) in own {
            gathered.push(self.gather(rows, part, own)?);
        }
        let [keys, values, queries] = &gathered[..] else { candle_core::bail!("three parts are swapped") };
        let attended = attention(queries, keys, values, own_heads.len())?;

        // Back: each rank gets its rows of these heads.
        let n_own = rows.rows().dim(0)?;
        let mut own = None;
        for (idx, band) in self.bands.iter().enumerate() {
            let part = attended.narrow(0, band.start * rows.cols(), band.n_rows() * rows.cols())?;
            if idx == self.own_idx() {
                own = Some(part.contiguous()?);
            } else {
                self.link.send(self.group[idx], self.tag(rows, Part::Attended), &payload(&part)?)?;
            }
        }
        let mut heads = Vec::new();
        for (idx, from) in self.group.iter().enumerate() {
            let width = self.heads_of(rows, idx).len() * head_width;
            heads.push(match &own {
                Some(own) if idx == self.own_idx() => own.clone(),
                _ => {
                    let tag = self.tag(rows, Part::Attended);
                    let came = self.turn.aside(|| self.link.recv(*from, tag))?;
                    let heads = self.link.rows(*from, &came, width, &Place::of(rows.rows()))?;
                    expect_rows(&heads, n_own, *from)?;
                    heads
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

    /// The parts of all ranks in row order, one tensor.
    fn gather(&mut self, rows: &SelfAttention<'_>, part: Part, own: Tensor) -> Result<Tensor> {
        let (tag, width, place) = (self.tag(rows, part), own.dim(1)?, Place::of(&own));
        let mut parts = Vec::with_capacity(self.group.len());
        for from in self.group {
            parts.push(if *from == self.link.rank() {
                own.clone()
            } else {
                let came = self.turn.aside(|| self.link.recv(*from, tag))?;
                self.link.rows(*from, &came, width, &place)?
            });
        }
        Tensor::cat(&parts, 0)
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

/// Passes if a peer sent as many rows as this rank has.
fn expect_rows(x: &Tensor, n_rows: usize, from: Rank) -> Result<()> {
    if x.dim(0)? == n_rows {
        return Ok(());
    }
    candle_core::bail!("rank {from} sent {} rows where {n_rows} were expected", x.dim(0)?)
}
