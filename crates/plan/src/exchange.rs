//! How tokens of different ranks meet in self-attention, chosen for each block by what it costs.
//!
//! Formulas of bytes and FLOP for one rank and one branch, by its share of the rows; all three exchanges give the same
//! bits.

use crate::geometry::RowRange;
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

/// What a rank computes and what its link carries in a second, and how its values travel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Arithmetic of one rank.
    pub flop_per_s: f64,
    /// One direction of one rank's link.
    pub bytes_per_s: f64,
    /// Bytes of a value that travels.
    pub value_bytes: f64,
}

impl Pace {
    /// A CPU worker on a 10 Gbit/s network, in f32.
    pub const CPU: Self = Self { flop_per_s: 2e11, bytes_per_s: 1.25e9, value_bytes: 4.0 };
    /// A GPU worker on such a network, in bf16: arithmetic costs it little beside what travels.
    pub const GPU: Self = Self { flop_per_s: 3e14, bytes_per_s: 1.25e9, value_bytes: 2.0 };
}

impl Exchange {
    /// All of them, the plainest first.
    pub const ALL: [Self; 3] = [Self::GatherKv, Self::GatherX, Self::Ulysses];

    /// Values a rank receives when it holds `share` of the rows and `g` ranks hold all.
    pub fn n_values(self, shape: &BlockShape, g: usize, share: f64) -> f64 {
        let (tokens, keys) = (shape.n_tokens as f64, shape.n_keys());
        let (others, row) = (1.0 - share, shape.width as f64);
        let heads = 1.0 / g as f64;
        match self {
            Self::GatherKv => others * 2.0 * keys * row,
            Self::GatherX => others * tokens * row,
            // Its heads of the others' rows, and the others' heads of its own.
            Self::Ulysses => (others * heads * (tokens + 2.0 * keys) + share * (1.0 - heads) * tokens) * row,
        }
    }

    /// Arithmetic such a rank does beyond its share of what one rank would do.
    pub fn extra_flop(self, shape: &BlockShape, g: usize, share: f64) -> f64 {
        let (tokens, width) = (shape.n_tokens as f64, shape.width as f64);
        match self {
            Self::GatherKv => 0.0,
            Self::GatherX => 4.0 * (1.0 - share) * tokens * width * width,
            // Heads are shared out evenly however rows are cut.
            Self::Ulysses => 4.0 * (1.0 / g as f64 - share) * tokens * shape.n_keys() * width,
        }
    }

    /// The quickest exchange for a block on ranks that hold these shares of the rows; the plainest among equals.
    ///
    /// Rows were cut by speed, so a rank of few rows is a slow one; `pace` is that of a rank of average speed.
    pub fn choose(shape: &BlockShape, shares: &[f64], pace: Pace) -> Self {
        let g = shares.len();
        let seconds = |way: &Self| {
            let of = |share: &f64| {
                let flop_per_s = pace.flop_per_s * g as f64 * share.max(f64::MIN_POSITIVE);
                way.n_values(shape, g, *share) * pace.value_bytes / pace.bytes_per_s
                    + way.extra_flop(shape, g, *share) / flop_per_s
            };
            shares.iter().map(of).fold(0.0, f64::max)
        };
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

    /// The choice for each block of a model whose rows are shared evenly by `g` ranks.
    pub fn for_blocks(spec: &DitSpec, n_tokens: usize, g: usize, pace: Pace) -> Vec<Self> {
        Self::for_shares(spec, n_tokens, &vec![1.0 / g as f64; g], pace)
    }

    /// The choice for each block of a model whose rows are cut into `bands`.
    pub fn for_bands(spec: &DitSpec, n_tokens: usize, bands: &[RowRange], pace: Pace) -> Vec<Self> {
        let n_rows = bands.iter().map(|band| band.n_rows()).sum::<usize>() as f64;
        let shares: Vec<f64> = bands.iter().map(|band| band.n_rows() as f64 / n_rows).collect();
        Self::for_shares(spec, n_tokens, &shares, pace)
    }

    fn for_shares(spec: &DitSpec, n_tokens: usize, shares: &[f64], pace: Pace) -> Vec<Self> {
        let shape = |layer| BlockShape {
            n_tokens,
            width: spec.width(),
            heads: spec.heads,
            kv_ratio: spec.kv_ratio(LayerIdx(layer)),
        };
        (0..spec.depth).map(|layer| Self::choose(&shape(layer), shares, pace)).collect()
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

    const NETWORK_BOUND: Pace = Pace { flop_per_s: 1e18, bytes_per_s: 1e9, ..Pace::CPU };

    fn xl(kv_ratio: usize) -> BlockShape {
        BlockShape { n_tokens: 65_536, width: 1152, heads: 16, kv_ratio }
    }

    fn even(g: usize) -> Vec<f64> {
        vec![1.0 / g as f64; g]
    }

    #[test]
    fn compressed_keys_beat_ulysses_while_the_ratio_squared_exceeds_the_other_ranks() {
        for g in 2..=16 {
            for kv_ratio in [2, 4] {
                let expected = if kv_ratio * kv_ratio >= g { Exchange::GatherKv } else { Exchange::Ulysses };
                let values = |way: Exchange| way.n_values(&xl(kv_ratio), g, 1.0 / g as f64);
                let more = values(Exchange::GatherKv) - values(Exchange::Ulysses);
                if more.abs() > 1.0 {
                    assert_eq!(
                        Exchange::choose(&xl(kv_ratio), &even(g), NETWORK_BOUND),
                        expected,
                        "R {kv_ratio}, {g} ranks"
                    );
                }
            }
        }
    }

    #[test]
    fn rows_are_gathered_on_few_ranks_with_a_slow_network_only() {
        assert_eq!(Exchange::choose(&xl(1), &even(2), NETWORK_BOUND), Exchange::GatherX);
        assert_eq!(Exchange::choose(&xl(1), &even(3), NETWORK_BOUND), Exchange::GatherX);
        assert_eq!(Exchange::choose(&xl(1), &even(5), NETWORK_BOUND), Exchange::Ulysses);
        let slow_cores = Pace { flop_per_s: 1e11, bytes_per_s: 1e10, ..Pace::CPU };
        assert_ne!(Exchange::choose(&xl(1), &even(2), slow_cores), Exchange::GatherX);
    }

    #[test]
    fn a_gpu_repeats_arithmetic_where_a_cpu_sends() {
        let small = BlockShape { n_tokens: 1024, width: 1152, heads: 16, kv_ratio: 1 };
        assert_eq!(Exchange::choose(&small, &even(3), Pace::GPU), Exchange::GatherX);
        assert_ne!(Exchange::choose(&small, &even(3), Pace::CPU), Exchange::GatherX);
    }

    #[test]
    fn ulysses_is_not_chosen_for_more_ranks_than_heads() {
        let two_heads = BlockShape { n_tokens: 1024, width: 144, heads: 2, kv_ratio: 1 };
        assert_eq!(
            Exchange::choose(&two_heads, &even(8), Pace { flop_per_s: 1e9, bytes_per_s: 1e9, ..Pace::CPU }),
            Exchange::GatherKv
        );
    }

    #[test]
    fn a_slow_rank_is_spared_what_does_not_shrink_with_its_rows() {
        let demo = BlockShape { n_tokens: 4_096, width: 144, heads: 2, kv_ratio: 1 };
        assert_eq!(Exchange::choose(&demo, &even(2), Pace::CPU), Exchange::GatherX);
        assert_eq!(Exchange::choose(&demo, &[0.84, 0.16], Pace::CPU), Exchange::GatherKv);
        let fast_link = Pace { flop_per_s: 1e12, bytes_per_s: 1e9, ..Pace::CPU };
        assert_eq!(Exchange::choose(&xl(1), &even(5), fast_link), Exchange::Ulysses);
        let one_slow = [0.24, 0.24, 0.24, 0.24, 0.04];
        assert_ne!(Exchange::choose(&xl(1), &one_slow, fast_link), Exchange::Ulysses, "a fifth of all heads");
    }

    #[test]
    fn arithmetic_beyond_the_shares_of_ulysses_adds_up_to_nothing() {
        let shares = [0.5, 0.3, 0.2];
        let sum: f64 = shares.iter().map(|share| Exchange::Ulysses.extra_flop(&xl(2), 3, *share)).sum();
        assert!(sum.abs() < 1e-3 * Exchange::Ulysses.extra_flop(&xl(2), 3, 0.2), "{sum}");
    }
}
