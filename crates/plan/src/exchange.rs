//! How tokens of different ranks meet in self-attention, chosen for each block by what it costs.
//!
//! Formulas of bytes and FLOP for one rank and one branch; all three exchanges give the same bits.

use crate::id::LayerIdx;
use crate::spec::DitSpec;

/// What travels between the ranks of a sequence group in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exchange {
    /// Keys and values, after compression; each rank attends with its own queries.
    GatherKv,
    /// The rows themselves; each rank computes all keys and values.
    GatherX,
    /// Queries, keys and values by heads, and the results back (DeepSpeed-Ulysses, arXiv:2309.14509).
    Ulysses,
}

/// One block as an exchange sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockShape {
    /// Tokens of the whole picture.
    pub n_tokens: usize,
    /// Channels of a token.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Compression of keys and values per side, R.
    pub kv_ratio: usize,
}

/// What a rank computes and what its link carries in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Arithmetic of one rank.
    pub flop_per_s: f64,
    /// One direction of one rank's link.
    pub bytes_per_s: f64,
}

impl Default for Pace {
    /// A CPU worker on a 10 Gbit/s network.
    fn default() -> Self {
        Self { flop_per_s: 2e11, bytes_per_s: 1.25e9 }
    }
}

impl Exchange {
    /// All of them, the plainest first.
    pub const ALL: [Self; 3] = [Self::GatherKv, Self::GatherX, Self::Ulysses];

    /// Bytes a rank receives in f32 when `g` ranks share the rows evenly.
    pub fn bytes(self, shape: &BlockShape, g: usize) -> f64 {
        let (tokens, keys) = (shape.n_tokens as f64, shape.n_keys());
        let (g, row) = (g as f64, 4.0 * shape.width as f64);
        match self {
            Self::GatherKv => (g - 1.0) / g * 2.0 * keys * row,
            Self::GatherX => (g - 1.0) / g * tokens * row,
            Self::Ulysses => (g - 1.0) / (g * g) * (2.0 * tokens + 2.0 * keys) * row,
        }
    }

    /// Arithmetic a rank does that it would not do alone.
    pub fn extra_flop(self, shape: &BlockShape, g: usize) -> f64 {
        match self {
            Self::GatherX => {
                let others = (g as f64 - 1.0) / g as f64 * shape.n_tokens as f64;
                4.0 * others * (shape.width * shape.width) as f64
            }
            Self::GatherKv | Self::Ulysses => 0.0,
        }
    }

    /// The quickest exchange for a block on `g` ranks of this pace; the plainest among equals.
    pub fn choose(shape: &BlockShape, g: usize, pace: Pace) -> Self {
        let seconds = |way: &Self| way.bytes(shape, g) / pace.bytes_per_s + way.extra_flop(shape, g) / pace.flop_per_s;
        let possible = Self::ALL.into_iter().filter(|way| way.fits(shape, g));
        possible.min_by(|a, b| seconds(a).total_cmp(&seconds(b))).unwrap_or(Self::GatherKv)
    }

    /// Whether `g` ranks can use it: Ulysses needs a head for each, and gathered rows pay without compression only.
    fn fits(self, shape: &BlockShape, g: usize) -> bool {
        match self {
            Self::GatherKv => true,
            Self::GatherX => shape.kv_ratio == 1,
            Self::Ulysses => g <= shape.heads,
        }
    }

    /// The choice for each block of a model.
    pub fn for_blocks(spec: &DitSpec, n_tokens: usize, g: usize, pace: Pace) -> Vec<Self> {
        let shape = |layer| BlockShape {
            n_tokens,
            width: spec.width(),
            heads: spec.heads,
            kv_ratio: spec.kv_ratio(LayerIdx(layer)),
        };
        (0..spec.depth).map(|layer| Self::choose(&shape(layer), g, pace)).collect()
    }
}

impl BlockShape {
    fn n_keys(&self) -> f64 {
        self.n_tokens as f64 / (self.kv_ratio * self.kv_ratio) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK_BOUND: Pace = Pace { flop_per_s: 1e18, bytes_per_s: 1e9 };

    fn xl(kv_ratio: usize) -> BlockShape {
        BlockShape { n_tokens: 65_536, width: 1152, heads: 16, kv_ratio }
    }

    #[test]
    fn compressed_keys_beat_ulysses_while_the_ratio_squared_exceeds_the_other_ranks() {
        for g in 2..=16 {
            for kv_ratio in [2, 4] {
                let expected = if kv_ratio * kv_ratio >= g { Exchange::GatherKv } else { Exchange::Ulysses };
                let bytes = Exchange::GatherKv.bytes(&xl(kv_ratio), g) - Exchange::Ulysses.bytes(&xl(kv_ratio), g);
                if bytes != 0.0 {
                    assert_eq!(Exchange::choose(&xl(kv_ratio), g, NETWORK_BOUND), expected, "R {kv_ratio}, {g} ranks");
                }
            }
        }
    }

    #[test]
    fn rows_are_gathered_on_few_ranks_with_a_slow_network_only() {
        assert_eq!(Exchange::choose(&xl(1), 2, NETWORK_BOUND), Exchange::GatherX);
        assert_eq!(Exchange::choose(&xl(1), 3, NETWORK_BOUND), Exchange::GatherX);
        assert_eq!(Exchange::choose(&xl(1), 5, NETWORK_BOUND), Exchange::Ulysses);
        let slow_cores = Pace { flop_per_s: 1e11, bytes_per_s: 1e10 };
        assert_ne!(Exchange::choose(&xl(1), 2, slow_cores), Exchange::GatherX);
    }

    #[test]
    fn ulysses_is_not_chosen_for_more_ranks_than_heads() {
        let two_heads = BlockShape { n_tokens: 1024, width: 144, heads: 2, kv_ratio: 1 };
        assert_eq!(Exchange::choose(&two_heads, 8, Pace { flop_per_s: 1e9, bytes_per_s: 1e9 }), Exchange::GatherKv);
    }
}
