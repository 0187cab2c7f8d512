//! The same operations on an NVIDIA GPU: kernels in `kernels/cuda`, the jobs that run them, and the device they run on.
//!
//! Only with the feature `cuda` is a GPU computed on. Without it one can ask which GPUs there are; and tests run the
//! kernels on a CPU, in an emulator, against this crate's own bodies.

#[cfg(feature = "cuda")]
pub(crate) mod device;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod fault;
#[cfg(any(test, feature = "cuda"))]
pub(crate) mod job;
#[cfg(feature = "cuda")]
pub(crate) mod ops;
#[cfg(feature = "cuda")]
pub(crate) mod pool;
pub(crate) mod probe;
#[cfg(feature = "cuda")]
pub(crate) mod travel;

#[cfg(test)]
mod emulated;
