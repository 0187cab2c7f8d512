//! The `sequence` axis: how a band's queries meet the keys and values of the other bands.
//!
//! Three exchanges, chosen per block by `plan::exchange`; all give the bits of one rank, because every query sees
//! the same keys in the same order and a head never feels another. What must travel is computed and sent first,
//! the rest while it is on its way.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use fabric::Payload;
use kernels::attention;
use model::Place;
use model::seam::{AttentionContext, SelfAttention};
use plan::program::{Part, Tag};
use plan::{Branch, Exchange, Rank, RowRange, StepIdx};

use crate::link::{Link, payload, rows_of};
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
        let width = keys.dim(1)?;
        let sent = [(Part::Keys, payload(&keys)?), (Part::Values, payload(&values)?)];
        drop((keys, values));
        for (part, own) in &sent {
            self.send_to_others(rows, *part, own)?;
        }
        let queries = rows.queries()?;
        let mut gathered = sent.into_iter().map(|(part, own)| self.gather(rows, part, own, width));
        let (keys, values) = (gathered.next(), gathered.next());
        let (Some(keys), Some(values)) = (keys, values) else { candle_core::bail!("keys and values are two") };
        attention(&queries, &keys?, &values?, rows.heads())
    }

    fn gather_rows(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let own = payload(rows.rows())?;
        self.send_to_others(rows, Part::Rows, &own)?;
        let queries = rows.queries()?;
        let all = self.gather(rows, Part::Rows, own, rows.rows().dim(1)?)?;
        let (keys, values) = rows.keys_and_values(&all)?;
        attention(&queries, &keys, &values, rows.heads())
    }

    /// Every rank attends with some heads for all rows (DeepSpeed-Ulysses, arXiv:2309.14509).
    fn swap_heads(&mut self, rows: &SelfAttention<'_>) -> Result<Tensor> {
        let (keys, values) = rows.keys_and_values(rows.rows())?;
        let own_heads = self.heads_of(rows, self.own_idx());
        let head_width = rows.rows().dim(1)? / rows.heads();
        let width = own_heads.len() * head_width;
        // Queries are computed last of the three, so that keys and values travel meanwhile.
        let mut own = Vec::new();
        for (part, x) in [(Part::Keys, Some(keys)), (Part::Values, Some(values)), (Part::Queries, None)] {
            let x = x.map_or_else(|| rows.queries(), Ok)?;
            for (idx, to) in self.others() {
                self.link.send(to, self.tag(rows, part), &columns(&x, &self.heads_of(rows, idx), head_width)?)?;
            }
            own.push((part, columns(&x, &own_heads, head_width)?));
        }
        let mut gathered = Vec::new();
        for (part, own) in own {
            gathered.push(self.gather(rows, part, own, width)?);
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
                    let values = self.turn.aside(|| self.link.recv_f32(*from, tag))?;
                    expect_len(&values, n_own * width, *from)?;
                    rows_of(&[values], width, &Place::of(rows.rows()))?
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

    fn send_to_others(&self, rows: &SelfAttention<'_>, part: Part, own: &Payload) -> Result<()> {
        self.others().try_for_each(|(_, to)| self.link.send(to, self.tag(rows, part), own))
    }

    /// The parts of all ranks in row order, as rows of `width` values.
    fn gather(&mut self, rows: &SelfAttention<'_>, part: Part, own: Payload, width: usize) -> Result<Tensor> {
        let Payload::F32(own) = own else { candle_core::bail!("token rows are f32") };
        let tag = self.tag(rows, part);
        let mut parts = Vec::new();
        for from in self.group {
            parts.push(if *from == self.link.rank() {
                Arc::clone(&own)
            } else {
                self.turn.aside(|| self.link.recv_f32(*from, tag))?
            });
        }
        rows_of(&parts, width, &Place::of(rows.rows()))
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
fn columns(x: &Tensor, heads: &Range<usize>, head_width: usize) -> Result<Payload> {
    payload(&x.narrow(1, heads.start * head_width, heads.len() * head_width)?)
}

/// Passes if a peer sent as many values as its rows have.
fn expect_len(values: &[f32], len: usize, from: Rank) -> Result<()> {
    if values.len() == len {
        return Ok(());
    }
    candle_core::bail!("rank {from} sent {} values where {len} were expected", values.len())
}
