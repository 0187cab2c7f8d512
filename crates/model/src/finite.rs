//! The guard against black pictures: a value that is no number ends the work with the name of its tensor.

use candle_core::Tensor;

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

/// Passes if all values of `outputs`, those of the layers `name` gives, are finite.
///
/// # Errors
/// [`ForwardError::NotFinite`] otherwise.
pub fn check(outputs: &[Tensor], name: impl Fn() -> String) -> Result<(), ForwardError> {
    let finite = kernels::is_finite(outputs)?;
    if finite { Ok(()) } else { Err(ForwardError::NotFinite { tensor: name() }) }
}
