//! Sixteen f32 lanes under one name, whatever the machine's registers hold.
//!
//! Kernels are written once against [`Simd`]. AVX-512 holds the lanes in one register, AVX2 in two, NEON in
//! four. All three multiply and add with one rounding, and every sum has a fixed order of lanes, so their
//! results are equal to the bit; the portable lanes round twice and are a numeric class of their own.
//!
//! Invariant: no kernel asks how wide a register is. `TILE_ROWS` and `TILE_VECS` say how much of an output
//! fits the register file, which changes speed and never a result.
#![allow(unsafe_op_in_unsafe_fn, reason = "every call below has the one obligation stated on the trait")]

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// Lanes of [`Simd::V`].
pub(crate) const LANES: usize = 16;

/// Arithmetic on sixteen lanes.
///
/// # Safety
/// Every function may be called only on a machine that has the instruction set of the implementing type.
/// `load` and `store` need sixteen valid f32 at the pointer, at any alignment.
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Sixteen lanes.
    type V: Copy;
    /// Output rows a matrix tile keeps in registers.
    const TILE_ROWS: usize;
    /// Vectors of output columns a matrix tile keeps in registers: 1 or 2.
    const TILE_VECS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is greater, else `b`: a NaN in `b` comes through.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// `a` where it is less, else `b`: a NaN in `b` comes through.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// 2 to the power of each lane, which holds a whole number from -126 to 127.
    unsafe fn exp2_whole(n: Self::V) -> Self::V;

    /// The first `n` lanes from memory, zero behind them.
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self::V {
        if n == LANES {
            return Self::load(from);
        }
        let mut lanes = [0f32; LANES];
        std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), n);
        Self::load(lanes.as_ptr())
    }

    /// The first `n` lanes to memory.
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, n: usize, v: Self::V) {
        if n == LANES {
            return Self::store(to, v);
        }
        let mut lanes = [0f32; LANES];
        Self::store(lanes.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(lanes.as_ptr(), to, n);
    }

    /// Sum of the lanes, halves onto halves.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0f32; LANES];
        Self::store(lanes.as_mut_ptr(), v);
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// e to the power of each lane; relative error below 2e-7. NaN comes through; the range is held to
    /// what f32 can say without subnormals.
    ///
    /// Cody-Waite reduction by ln 2 in two parts, then the Cephes polynomial of degree 5.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // Adding and subtracting 1.5·2²³ rounds to the nearest whole number.
        const ROUND: f32 = 12_582_912.0;
        let x = Self::min(Self::splat(88.0), Self::max(Self::splat(-87.0), x));
        let round = Self::splat(ROUND);
        let n = Self::sub(Self::fma(x, Self::splat(std::f32::consts::LOG2_E), round), round);
        let r = Self::fma(n, Self::splat(-0.693_359_4), x);
        let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
        let mut p = Self::splat(1.987_569_1e-4);
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = Self::fma(p, r, Self::splat(coefficient));
        }
        let y = Self::fma(Self::mul(p, r), r, Self::add(r, Self::splat(1.0)));
        Self::mul(y, Self::exp2_whole(n))
    }
}

/// `x · sigmoid(x)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn silu<S: Simd>(x: S::V) -> S::V {
    let one = S::splat(1.0);
    S::div(x, S::add(one, S::exp(S::sub(S::splat(0.0), x))))
}

/// GELU in its tanh form, written as `x · sigmoid(2u)` with `u = √(2/π)·(x + 0.044715·x³)`.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    const MINUS_TWO_ROOT_TWO_OVER_PI: f32 = -1.595_769;
    let cube = S::mul(S::mul(x, x), x);
    let inner = S::fma(cube, S::splat(0.044_715), x);
    let e = S::exp(S::mul(S::splat(MINUS_TWO_ROOT_TWO_OVER_PI), inner));
    S::div(x, S::add(S::splat(1.0), e))
}

/// Defines a function that runs `$body` compiled for the instruction set in use.
///
/// The body is written as a generic function over `S: Simd`; each instance is inlined into a wrapper that
/// enables its instruction set, so the intrinsics become single instructions.
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) {
            // SAFETY: the body asks nothing of its caller but the instruction set, which is there.
            unsafe { crate::simd::dispatch!(@run $body($($arg: $ty),*)) }
        }
    };
    ($(#[$doc:meta])* $vis:vis unsafe fn $name:ident($($arg:ident : $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The pointers are valid for what the text above says is read and written.
        $vis unsafe fn $name($($arg: $ty),*) {
            // SAFETY: the caller's, and the instruction set is there.
            unsafe { crate::simd::dispatch!(@run $body($($arg: $ty),*)) }
        }
    };
    (@run $body:ident($($arg:ident : $ty:ty),*)) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")]
        unsafe fn avx512($($arg: $ty),*) {
            // SAFETY: the caller has checked for the features enabled here.
            unsafe { $body::<crate::simd::x86::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: as above.
            unsafe { $body::<crate::simd::x86::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon")]
        unsafe fn neon($($arg: $ty),*) {
            // SAFETY: as above.
            unsafe { $body::<crate::simd::neon::Neon>($($arg),*) }
        }
        // `isa()` names only what this machine has.
        match crate::isa::isa() {
            #[cfg(target_arch = "x86_64")]
            crate::isa::Isa::Avx512 => avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            crate::isa::Isa::Avx2 => avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            crate::isa::Isa::Neon => neon($($arg),*),
            _ => $body::<crate::simd::portable::Portable>($($arg),*),
        }
    }};
}
pub(crate) use dispatch;
