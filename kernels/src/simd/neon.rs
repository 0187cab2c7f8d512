//! The sixteen lanes on aarch64: four NEON registers.
#![allow(unsafe_op_in_unsafe_fn, reason = "every call below has the one obligation stated on `Simd`")]

use std::arch::aarch64::*;

use super::Simd;

/// Four 128-bit registers; a tile of 5 × 16 fills twenty of thirty-two.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// Lanes 0–3, 4–7, 8–11, 12–15.
#[derive(Clone, Copy)]
pub(crate) struct Quad([float32x4_t; 4]);

#[inline(always)]
unsafe fn zip(a: Quad, b: Quad, op: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Quad {
    Quad([op(a.0[0], b.0[0]), op(a.0[1], b.0[1]), op(a.0[2], b.0[2]), op(a.0[3], b.0[3])])
}

impl Simd for Neon {
    type V = Quad;
    const TILE_ROWS: usize = 5;
    const TILE_VECS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Quad {
        Quad([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Quad {
        Quad([vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))])
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Quad) {
        for (quarter, lanes) in v.0.into_iter().enumerate() {
            vst1q_f32(to.add(4 * quarter), lanes);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    // NEON's own maximum treats NaN otherwise than x86's: select by comparison, which is the same everywhere.
    #[inline(always)]
    unsafe fn max(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn min(a: Quad, b: Quad) -> Quad {
        zip(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn fma(a: Quad, b: Quad, c: Quad) -> Quad {
        Quad([
            vfmaq_f32(c.0[0], a.0[0], b.0[0]),
            vfmaq_f32(c.0[1], a.0[1], b.0[1]),
            vfmaq_f32(c.0[2], a.0[2], b.0[2]),
            vfmaq_f32(c.0[3], a.0[3], b.0[3]),
        ])
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: Quad) -> Quad {
        Quad(n.0.map(|n| {
            let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
        }))
    }
}
