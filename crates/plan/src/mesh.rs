//! Who does what of one image: guidance branches × bands of token rows, cut by speed.
//!
//! Leaves out which worker sits where (`assignment.rs`) and in what order a rank works (`program.rs`).

use crate::geometry::{RowRange, TOKEN_CELLS, TokenGrid};
use crate::id::Rank;
use serde::{Deserialize, Serialize};

/// The guidance branch: with the prompt or with the negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Branch {
    /// The prompt's.
    Conditional,
    /// The negative prompt's.
    Unconditional,
}

impl Branch {
    /// Both, in the order they are mixed.
    pub const BOTH: [Self; 2] = [Self::Conditional, Self::Unconditional];
}

/// Rank space of one image: the `cfg` axis × the `sequence` axis.
///
/// Rank `b · n_bands + i` runs branch group `b` on band `i`. With one branch group a rank runs every branch of
/// its rows; with two, the two ranks of a band are partners, which mix guidance and hold the same latent rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mesh {
    n_branch_groups: usize,
    bands: Vec<RowRange>,
}

/// Why numbers do not describe a mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeshError {
    /// Neither one nor two.
    #[error("a mesh has 1 or 2 branch groups, not {found}")]
    #[allow(missing_docs)]
    BranchGroups { found: usize },
    /// Bands do not follow each other from row 0 to the last, or one is empty.
    #[error(
        "band {band} of a mesh starts at row {start} and ends before row {end}: bands follow each other and hold a row"
    )]
    #[allow(missing_docs)]
    Band { band: usize, start: usize, end: usize },
    /// A band's first row is not a multiple of the compression.
    #[error("band {band} starts at row {start}, which keys compressed {unit}-fold cannot be cut at")]
    #[allow(missing_docs)]
    Unit { band: usize, start: usize, unit: usize },
    /// Bands and picture differ.
    #[error("the bands of a mesh hold {bands} rows, the picture {rows}")]
    #[allow(missing_docs)]
    Rows { bands: usize, rows: usize },
}

impl Mesh {
    /// One rank does it all.
    pub fn single(n_rows: usize) -> Self {
        Self { n_branch_groups: 1, bands: vec![RowRange::all(n_rows)] }
    }

    /// A mesh of given bands, `unit` token rows being what compression keeps together.
    ///
    /// # Errors
    /// If the bands do not cover `n_rows` in order, cut inside a unit, or the branch groups are not 1 or 2.
    pub fn new(n_branch_groups: usize, bands: Vec<RowRange>, n_rows: usize, unit: usize) -> Result<Self, MeshError> {
        if !(1..=2).contains(&n_branch_groups) {
            return Err(MeshError::BranchGroups { found: n_branch_groups });
        }
        let mut row = 0;
        for (band, range) in bands.iter().enumerate() {
            let RowRange { start, end } = *range;
            if start != row || end <= start {
                return Err(MeshError::Band { band, start, end });
            }
            if !start.is_multiple_of(unit.max(1)) {
                return Err(MeshError::Unit { band, start, unit });
            }
            row = end;
        }
        if row != n_rows {
            return Err(MeshError::Rows { bands: row, rows: n_rows });
        }
        Ok(Self { n_branch_groups, bands })
    }

    /// Seats there are.
    pub fn n_ranks(&self) -> usize {
        self.n_branch_groups * self.bands.len()
    }

    /// Ranks on the `cfg` axis.
    pub fn n_branch_groups(&self) -> usize {
        self.n_branch_groups
    }

    /// Bands of token rows, from the top.
    pub fn bands(&self) -> &[RowRange] {
        &self.bands
    }

    /// Every rank, in order.
    pub fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.n_ranks()).map(|rank| Rank(rank as u16))
    }

    /// Index of `rank`'s band.
    pub fn band_idx(&self, rank: Rank) -> usize {
        usize::from(rank.0) % self.bands.len()
    }

    /// Token rows of `rank`.
    pub fn band(&self, rank: Rank) -> RowRange {
        self.bands[self.band_idx(rank)]
    }

    /// Branches `rank` runs of a request that is guided or not.
    pub fn branches(&self, rank: Rank, is_guided: bool) -> &'static [Branch] {
        match (self.n_branch_groups, is_guided, usize::from(rank.0) / self.bands.len()) {
            (1, true, _) => &Branch::BOTH,
            (_, _, 0) => &Branch::BOTH[..1],
            (_, true, _) => &Branch::BOTH[1..],
            (_, false, _) => &[],
        }
    }

    /// The ranks that share `rank`'s branches, from the top band down: among them tokens meet.
    pub fn sequence_group(&self, rank: Rank) -> Vec<Rank> {
        let first = usize::from(rank.0) / self.bands.len() * self.bands.len();
        (first..first + self.bands.len()).map(|rank| Rank(rank as u16)).collect()
    }

    /// The rank with the same rows and the other branch, if there are two branch groups.
    pub fn partner(&self, rank: Rank) -> Option<Rank> {
        let n_bands = self.bands.len();
        let other = (usize::from(rank.0) + n_bands) % (2 * n_bands);
        (self.n_branch_groups == 2).then_some(Rank(other as u16))
    }

    /// Latent rows each rank decodes, from the top: partners halve their band. Every rank has some, since a token
    /// is more than one cell high.
    pub fn decode_bands(&self) -> Vec<(Rank, RowRange)> {
        let mut all = Vec::new();
        for (idx, band) in self.bands.iter().enumerate() {
            let (start, end) = (band.start * TOKEN_CELLS, band.end * TOKEN_CELLS);
            if self.n_branch_groups == 1 {
                all.push((Rank(idx as u16), RowRange { start, end }));
            } else {
                let middle = start + (end - start).div_ceil(2);
                all.push((Rank(idx as u16), RowRange { start, end: middle }));
                all.push((Rank((idx + self.bands.len()) as u16), RowRange { start: middle, end }));
            }
        }
        all
    }

    /// The mesh with the shortest step for workers of these speeds (any unit; the fastest first), and how long
    /// that step is in token rows × branches over speed. Uses `speeds.len()` ranks or fewer; seats go to the
    /// workers in order of `Choice::seats`.
    ///
    /// Between equals the `cfg` axis wins: it sends 2 MB a step, the `sequence` axis sends keys in every block.
    pub fn choose(grid: TokenGrid, unit: usize, is_guided: bool, speeds: &[f64]) -> Choice {
        let branches = if is_guided { 2.0 } else { 1.0 };
        let usable = |speed: &f64| speed.max(f64::MIN_POSITIVE);
        let mut best: Option<Choice> = None;
        for n in 1..=speeds.len() {
            let sequence: Vec<f64> = speeds[..n].iter().map(usable).collect();
            let mut offer = |n_branch_groups: usize, pace: &[f64], load: f64, seats: Vec<usize>| {
                let Some(bands) = cut(grid.rows, unit, pace) else { return };
                let longest =
                    bands.iter().zip(pace).map(|(band, pace)| band.n_rows() as f64 / pace).fold(0.0, f64::max);
                let choice = Choice { mesh: Self { n_branch_groups, bands }, seats, cost: load * longest };
                let is_better = |best: &Choice| {
                    choice.cost < best.cost * (1.0 - 1e-9)
                        || (choice.cost <= best.cost * (1.0 + 1e-9)
                            && choice.mesh.n_ranks() == best.mesh.n_ranks()
                            && choice.mesh.n_branch_groups > best.mesh.n_branch_groups)
                };
                if best.as_ref().is_none_or(is_better) {
                    best = Some(choice);
                }
            };
            offer(1, &sequence, branches, (0..n).collect());
            if is_guided && n % 2 == 0 {
                // Partners wait for each other, so neighbours in speed are paired.
                let pace: Vec<f64> = sequence.chunks_exact(2).map(|pair| pair[0].min(pair[1])).collect();
                let seats = (0..n).step_by(2).chain((1..n).step_by(2)).collect();
                offer(2, &pace, 1.0, seats);
            }
        }
        best.unwrap_or(Choice { mesh: Self::single(grid.rows), seats: vec![0], cost: f64::INFINITY })
    }
}

/// A mesh and who sits in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The ranks and their rows.
    pub mesh: Mesh,
    /// For each rank, the index of its worker in the speeds that were given.
    pub seats: Vec<usize>,
    /// Length of a step: token rows × branches over speed.
    pub cost: f64,
}

/// Cuts `n_rows` into one band a speed, in units of `unit` rows, so that the slowest band is as quick as can be.
/// None if there are fewer units than speeds.
fn cut(n_rows: usize, unit: usize, speeds: &[f64]) -> Option<Vec<RowRange>> {
    let unit = unit.max(1);
    let n_units = n_rows.div_ceil(unit);
    if speeds.is_empty() || n_units < speeds.len() {
        return None;
    }
    // Each unit goes to the band that would finish it first; every band has one to begin with.
    let mut units = vec![1_usize; speeds.len()];
    for _ in speeds.len()..n_units {
        let finish = |idx: &usize| (units[*idx] + 1) as f64 / speeds[*idx];
        let next = (0..speeds.len()).min_by(|a, b| finish(a).total_cmp(&finish(b)))?;
        units[next] += 1;
    }
    let mut start = 0;
    let bands = units.iter().map(|n_units| {
        let end = (start + n_units * unit).min(n_rows);
        let band = RowRange { start, end };
        start = end;
        band
    });
    Some(bands.collect())
}

#[cfg(test)]
mod tests;
