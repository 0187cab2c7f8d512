//! What a rank does, in order, and what it sends and expects on the way: data, compiled from a mesh.
//!
//! The executor runs it; a walk over the messages of all ranks proves that every tensor sent is awaited and that
//! nobody waits for ever. Leaves out tensors and time.

use crate::exchange::Exchange;
use crate::id::{LayerIdx, Rank, StepIdx};
use crate::mesh::{Branch, Mesh};

/// One part of a rank's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Rank 0 encodes the prompts; all others take the captions of their branches from it.
    Captions {
        /// Whether the request has two branches.
        is_guided: bool,
    },
    /// Rank 0 says whether this step is taken or the ranks stop before it.
    Agree {
        /// The step about to be taken.
        step: StepIdx,
    },
    /// Predict the noise in this rank's rows; tokens meet others in every block.
    Forward {
        /// The step.
        step: StepIdx,
        /// Branches, run side by side so that each hides the other's traffic.
        branches: &'static [Branch],
    },
    /// Partners swap their predictions.
    Swap {
        /// The step.
        step: StepIdx,
    },
    /// Mix the branches, take the sampler's step, keep the rows as a checkpoint.
    Update {
        /// The step.
        step: StepIdx,
    },
    /// Decode this rank's latent rows; rows meet their neighbours.
    Decode,
    /// Finished rows go to rank 0, and the latent rows they were decoded from.
    Collect,
}

/// The program of `rank`, going on after `n_steps_done` of `n_steps` steps.
pub fn program(mesh: &Mesh, rank: Rank, is_guided: bool, n_steps: usize, n_steps_done: usize) -> Vec<Op> {
    let mut ops = vec![Op::Captions { is_guided }];
    let branches = mesh.branches(rank, is_guided);
    for step in (n_steps_done..n_steps).map(StepIdx) {
        ops.push(Op::Agree { step });
        ops.push(Op::Forward { step, branches });
        if mesh.partner(rank).is_some() {
            ops.push(Op::Swap { step });
        }
        ops.push(Op::Update { step });
    }
    ops.extend([Op::Decode, Op::Collect]);
    ops
}

/// Which tensor a message is; packed into the 64 bits the fabric carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tag {
    /// An encoded prompt.
    Caption(Branch),
    /// Rank 0's word before a step.
    Agree(StepIdx),
    /// A part of one block's exchange.
    Block(StepIdx, LayerIdx, Branch, Part),
    /// A branch's prediction, on its way to the partner.
    Prediction(StepIdx),
    /// The n-th exchange of the decode.
    Decode(u32),
    /// Finished rows.
    Pixels,
    /// Latent rows behind the last step.
    Latents,
}

/// What of a block travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The rows before projection.
    Rows,
    /// Queries.
    Queries,
    /// Keys.
    Keys,
    /// Values.
    Values,
    /// Attention's result.
    Attended,
}

/// Where the number of a piece begins in a packed tag: above any step, of which there are at most 2^16.
const PIECE_BIT: u32 = 52;

impl Tag {
    /// As the fabric carries it: kind, step, layer, branch and part, each in bits of its own.
    pub fn pack(self) -> u64 {
        self.pack_piece(0)
    }

    /// The same of one piece of a tensor that travels in several; there are at most 256 of them.
    pub fn pack_piece(self, piece_idx: usize) -> u64 {
        self.word() | (piece_idx as u64) << PIECE_BIT
    }

    fn word(self) -> u64 {
        let branch = |branch: Branch| u64::from(branch == Branch::Unconditional);
        let word = |kind: u64, high: usize, low: u64| kind << 60 | (high as u64) << 36 | low;
        match self {
            Self::Caption(which) => word(1, 0, branch(which)),
            Self::Agree(step) => word(2, step.0, 0),
            Self::Block(step, layer, which, part) => {
                word(3, step.0, (layer.0 as u64) << 8 | branch(which) << 4 | part as u64)
            }
            Self::Prediction(step) => word(4, step.0, 0),
            Self::Decode(nth) => word(5, 0, u64::from(nth)),
            Self::Pixels => word(6, 0, 0),
            Self::Latents => word(7, 0, 0),
        }
    }
}

/// A tensor's way out of or into a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Message {
    /// To this rank.
    Send(Rank, Tag),
    /// From this rank.
    Recv(Rank, Tag),
}

/// What `rank` sends and awaits for `op`, in order; `exchanges` has one entry a block.
///
/// The decode's exchanges depend on the decoder's layers and are left out: every rank makes the same ones.
pub fn messages(op: &Op, mesh: &Mesh, rank: Rank, exchanges: &[Exchange]) -> Vec<Message> {
    match op {
        Op::Captions { is_guided } => {
            let captions = |rank| mesh.branches(rank, *is_guided).iter().map(|branch| Tag::Caption(*branch));
            if rank == Rank(0) {
                let to = |to| captions(to).map(move |tag| Message::Send(to, tag));
                mesh.ranks().skip(1).flat_map(to).collect()
            } else {
                captions(rank).map(|tag| Message::Recv(Rank(0), tag)).collect()
            }
        }
        Op::Agree { step } if rank == Rank(0) => {
            mesh.ranks().skip(1).map(|to| Message::Send(to, Tag::Agree(*step))).collect()
        }
        Op::Agree { step } => vec![Message::Recv(Rank(0), Tag::Agree(*step))],
        Op::Forward { step, branches } => {
            let group = mesh.sequence_group(rank);
            let mut all = Vec::new();
            for (layer, exchange) in exchanges.iter().enumerate() {
                for branch in *branches {
                    for round in exchange.rounds() {
                        let tag = |part: &Part| Tag::Block(*step, LayerIdx(layer), *branch, *part);
                        let others = || group.iter().filter(|other| **other != rank);
                        all.extend(others().flat_map(|to| round.iter().map(move |part| Message::Send(*to, tag(part)))));
                        all.extend(
                            others().flat_map(|from| round.iter().map(move |part| Message::Recv(*from, tag(part)))),
                        );
                    }
                }
            }
            all
        }
        Op::Swap { step } => {
            let tag = Tag::Prediction(*step);
            mesh.partner(rank)
                .map(|partner| vec![Message::Send(partner, tag), Message::Recv(partner, tag)])
                .unwrap_or_default()
        }
        Op::Update { .. } | Op::Decode => Vec::new(),
        Op::Collect if rank == Rank(0) => {
            let latents = mesh.bands().len();
            let of = |from: Rank| {
                let latents = (usize::from(from.0) < latents).then_some(Message::Recv(from, Tag::Latents));
                std::iter::once(Message::Recv(from, Tag::Pixels)).chain(latents)
            };
            mesh.ranks().skip(1).flat_map(of).collect()
        }
        Op::Collect => {
            let mut all = vec![Message::Send(Rank(0), Tag::Pixels)];
            if usize::from(rank.0) < mesh.bands().len() {
                all.push(Message::Send(Rank(0), Tag::Latents));
            }
            all
        }
    }
}

impl Exchange {
    /// What of a block travels, round by round: all of a round is sent before any of it is awaited.
    pub fn rounds(self) -> &'static [&'static [Part]] {
        match self {
            Self::GatherKv => &[&[Part::Keys, Part::Values]],
            Self::GatherX => &[&[Part::Rows]],
            Self::Ulysses => &[&[Part::Queries, Part::Keys, Part::Values], &[Part::Attended]],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::geometry::RowRange;

    fn mesh(n_branch_groups: usize, n_bands: usize) -> Mesh {
        let bands = (0..n_bands).map(|band| RowRange { start: band, end: band + 1 }).collect();
        Mesh::new(n_branch_groups, bands, n_bands, 1).expect("a mesh")
    }

    /// Walks all ranks' messages over mailboxes without bounds; true if everybody ends and nothing is left over.
    fn ends(walks: &[Vec<Message>]) -> bool {
        let mut next = vec![0; walks.len()];
        let mut mail: BTreeMap<(Rank, Rank, Tag), usize> = BTreeMap::new();
        loop {
            let mut moved = false;
            for (idx, walk) in walks.iter().enumerate() {
                let rank = Rank(idx as u16);
                while let Some(message) = walk.get(next[idx]) {
                    match *message {
                        Message::Send(to, tag) => *mail.entry((rank, to, tag)).or_default() += 1,
                        Message::Recv(from, tag) => match mail.remove(&(from, rank, tag)) {
                            Some(1) => {}
                            Some(_) => return false,
                            None => break,
                        },
                    }
                    next[idx] += 1;
                    moved = true;
                }
            }
            if !moved {
                return mail.is_empty() && walks.iter().zip(&next).all(|(walk, next)| *next == walk.len());
            }
        }
    }

    fn walks(mesh: &Mesh, is_guided: bool, n_steps_done: usize) -> Vec<Vec<Message>> {
        let exchanges = [Exchange::GatherKv, Exchange::Ulysses, Exchange::GatherX];
        let of = |rank| {
            let ops = program(mesh, rank, is_guided, 3, n_steps_done);
            ops.iter().flat_map(|op| messages(op, mesh, rank, &exchanges)).collect()
        };
        mesh.ranks().map(of).collect()
    }

    #[test]
    fn every_tensor_sent_is_awaited_and_nobody_waits_for_ever() {
        for n_bands in 1..=5 {
            for n_steps_done in [0, 2, 3] {
                assert!(ends(&walks(&mesh(1, n_bands), false, n_steps_done)), "{n_bands} bands, unguided");
                for n_branch_groups in [1, 2] {
                    let mesh = mesh(n_branch_groups, n_bands);
                    assert!(ends(&walks(&mesh, true, n_steps_done)), "{n_branch_groups} x {n_bands}");
                }
            }
        }
    }

    #[test]
    fn a_walk_with_a_message_missing_does_not_end() {
        let mut walks = walks(&mesh(1, 2), true, 0);
        walks[0].pop();
        assert!(!ends(&walks));
    }

    #[test]
    fn tags_pack_to_different_words() {
        let mut seen = BTreeMap::new();
        let steps = [0, 1, 998].map(StepIdx);
        let mut all = vec![Tag::Pixels, Tag::Latents, Tag::Decode(0), Tag::Decode(70_000)];
        all.extend(Branch::BOTH.map(Tag::Caption));
        for step in steps {
            all.extend([Tag::Agree(step), Tag::Prediction(step)]);
            for layer in [0, 1, 27].map(LayerIdx) {
                for branch in Branch::BOTH {
                    for part in [Part::Rows, Part::Queries, Part::Keys, Part::Values, Part::Attended] {
                        all.push(Tag::Block(step, layer, branch, part));
                    }
                }
            }
        }
        for tag in all {
            assert_eq!(tag.pack(), tag.pack_piece(0));
            for piece_idx in [0, 1, 255] {
                let before = seen.insert(tag.pack_piece(piece_idx), (tag, piece_idx));
                assert_eq!(before, None, "{tag:?}, piece {piece_idx}");
            }
        }
    }
}
