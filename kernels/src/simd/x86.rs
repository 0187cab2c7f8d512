//! The sixteen lanes on x86-64: AVX-512 in one register, AVX2 with FMA in two.
#![allow(unsafe_op_in_unsafe_fn, reason = "every call below has the one obligation stated on `Simd`")]

use std::arch::x86_64::*;

use super::Simd;

/// One 512-bit register; the tile leaves room for two columns vectors and a broadcast among 32 registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const TILE_ROWS: usize = 12;
    const TILE_VECS: usize = 2;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        _mm512_loadu_ps(from)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m512) {
        _mm512_storeu_ps(to, v);
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: __m512) -> __m512 {
        let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
    }
}

/// Two 256-bit registers; a tile of 6 × 16 fills twelve of sixteen.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Low and high eight lanes.
#[derive(Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

impl Simd for Avx2 {
    type V = Pair;
    const TILE_ROWS: usize = 6;
    const TILE_VECS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair {
        let v = _mm256_set1_ps(x);
        Pair(v, v)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        Pair(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8)))
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Pair) {
        _mm256_storeu_ps(to, v.0);
        _mm256_storeu_ps(to.add(8), v.1);
    }
    #[inline(always)]
    unsafe fn add(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn sub(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_sub_ps(a.0, b.0), _mm256_sub_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn div(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_div_ps(a.0, b.0), _mm256_div_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn max(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn min(a: Pair, b: Pair) -> Pair {
        Pair(_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1))
    }
    #[inline(always)]
    unsafe fn fma(a: Pair, b: Pair, c: Pair) -> Pair {
        Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1))
    }
    #[inline(always)]
    unsafe fn exp2_whole(n: Pair) -> Pair {
        Pair(exp2_whole_256(n.0), exp2_whole_256(n.1))
    }
}

/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn exp2_whole_256(n: __m256) -> __m256 {
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
}
