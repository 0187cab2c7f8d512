//! The one micro-kernel: a tile of `C (+)= A · B` held in registers.
//!
//! Every matrix product here (linear layers, convolutions, attention) is made of these tiles. Each element
//! of C is summed over k in index order with fused multiply-add, from zero or from what C holds; so its bits
//! depend on its own row of A and column of B alone, never on the tile it falls into.
#![allow(unsafe_op_in_unsafe_fn, reason = "the obligations are those stated on each function")]

use crate::simd::{LANES, Simd};

/// Columns of a panel of B; B is laid out panel by panel, each `[k][PANEL]`.
pub(crate) const PANEL: usize = 2 * LANES;

/// The highest tile [`of_height`] has.
const MAX_TILE_ROWS: usize = 12;

/// Where a tile's operands lie. Strides are in values.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// A's element `[0][0]`, its stride from row to row and from column (k) to column.
    pub(crate) a: *const f32,
    pub(crate) a_row: usize,
    pub(crate) a_col: usize,
    /// B's element `[0][0]` in a panel, stride [`PANEL`] from row (k) to row.
    pub(crate) b: *const f32,
    /// C's element `[0][0]` and its stride from row to row.
    pub(crate) c: *mut f32,
    pub(crate) c_row: usize,
    /// How many terms each sum has.
    pub(crate) k: usize,
    /// Whether the sums go on from what C holds.
    pub(crate) onto: bool,
}

/// `rows × cols` of C, at most [`PANEL`] columns wide, cut into register tiles of nearly equal height.
///
/// # Safety
/// The instruction set of `S` is there; A has `rows × k` elements, B a panel of `k` rows, C `rows × cols`
/// elements nobody else touches.
#[inline(always)]
pub(crate) unsafe fn panel<S: Simd>(rows: usize, cols: usize, op: Operands) {
    const { assert!(S::TILE_ROWS <= MAX_TILE_ROWS, "no tile is that high") };
    let n_tiles = rows.div_ceil(S::TILE_ROWS);
    for tile_idx in 0..n_tiles {
        let first = tile_idx * rows / n_tiles;
        let height = (tile_idx + 1) * rows / n_tiles - first;
        let at = Operands { a: op.a.add(first * op.a_row), c: op.c.add(first * op.c_row), ..op };
        if cols == PANEL && S::TILE_VECS == 2 {
            of_height::<S, 2>(height, at);
            continue;
        }
        let mut col = 0;
        while col < cols {
            let width = LANES.min(cols - col);
            let at = Operands { b: at.b.add(col), c: at.c.add(col), ..at };
            if width == LANES {
                of_height::<S, 1>(height, at);
            } else {
                narrow::<S>(height, width, at);
            }
            col += width;
        }
    }
}

/// A tile narrower than one vector goes through a full-width stand-in for C.
#[inline(always)]
unsafe fn narrow<S: Simd>(height: usize, width: usize, op: Operands) {
    let mut stand_in = [0f32; MAX_TILE_ROWS * LANES];
    for row in 0..height {
        std::ptr::copy_nonoverlapping(op.c.add(row * op.c_row), stand_in.as_mut_ptr().add(row * LANES), width);
    }
    of_height::<S, 1>(height, Operands { c: stand_in.as_mut_ptr(), c_row: LANES, ..op });
    for row in 0..height {
        std::ptr::copy_nonoverlapping(stand_in.as_ptr().add(row * LANES), op.c.add(row * op.c_row), width);
    }
}

#[inline(always)]
unsafe fn of_height<S: Simd, const VECS: usize>(height: usize, op: Operands) {
    match height {
        1 => tile::<S, 1, VECS>(op),
        2 => tile::<S, 2, VECS>(op),
        3 => tile::<S, 3, VECS>(op),
        4 => tile::<S, 4, VECS>(op),
        5 => tile::<S, 5, VECS>(op),
        6 => tile::<S, 6, VECS>(op),
        7 => tile::<S, 7, VECS>(op),
        8 => tile::<S, 8, VECS>(op),
        9 => tile::<S, 9, VECS>(op),
        10 => tile::<S, 10, VECS>(op),
        11 => tile::<S, 11, VECS>(op),
        _ => tile::<S, 12, VECS>(op),
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const ROWS: usize, const VECS: usize>(op: Operands) {
    let mut sums = [[S::splat(0.0); VECS]; ROWS];
    if op.onto {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (vec, sum) in sums.iter_mut().enumerate() {
                *sum = S::load(op.c.add(row * op.c_row + vec * LANES));
            }
        }
    }
    let (mut a, mut b) = (op.a, op.b);
    for _ in 0..op.k {
        let mut terms = [S::splat(0.0); VECS];
        for (vec, term) in terms.iter_mut().enumerate() {
            *term = S::load(b.add(vec * LANES));
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            let factor = S::splat(*a.add(row * op.a_row));
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum = S::fma(factor, term, *sum);
            }
        }
        // Behind the last term they may point outside, and are not read.
        a = a.wrapping_add(op.a_col);
        b = b.wrapping_add(PANEL);
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vec, sum) in sums.iter().enumerate() {
            S::store(op.c.add(row * op.c_row + vec * LANES), *sum);
        }
    }
}
