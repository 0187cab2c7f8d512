//! The guard against black pictures: a value that is no number ends the work with the name of its tensor.

use candle_core::Tensor;
use rayon::prelude::*;

/// Why a network's forward pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// Shapes or types did not fit, or memory was short.
    #[error("{}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
    /// A value is a NaN or an infinity; `tensor` is named as in the checkpoint.
    #[error("the output of `{tensor}` holds a value that is not finite")]
    #[allow(missing_docs)]
    NotFinite { tensor: String },
    /// The caller broke off.
    #[error("cancelled")]
    Cancelled,
}

/// What `error` says, without the trace of calls candle may have put behind it.
pub(crate) fn first_line(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Passes if all values of `x`, the output of the layers `name` gives, are finite.
///
/// # Errors
/// [`ForwardError::NotFinite`] otherwise.
pub fn check(x: &Tensor, name: impl Fn() -> String) -> Result<(), ForwardError> {
    let finite = kernels::with_values(x, |values| values.par_chunks(CHUNK).all(all))?;
    if finite { Ok(()) } else { Err(ForwardError::NotFinite { tensor: name() }) }
}

/// Values looked at together: enough for a thread, and soon done with where the first is at fault.
const CHUNK: usize = 1 << 16;

/// Whether all values are finite; on the calling thread.
pub fn all(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    // Comparing each chunk as a whole keeps the loop free of branches.
    let is_finite = |finite, value: &f32| finite & (value.to_bits() & EXPONENT != EXPONENT);
    values.chunks(CHUNK).all(|chunk| chunk.iter().fold(true, is_finite))
}
