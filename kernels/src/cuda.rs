//! The same operations on an NVIDIA GPU: kernels in `kernels/cuda`, the jobs that run them, and the device they run on.
//!
//! Tests run the kernels on a CPU, in an emulator, against this crate's own bodies; so jobs are built without the
//! feature `cuda` too.

#[cfg(feature = "cuda")]
pub(crate) mod device;
pub(crate) mod job;
#[cfg(feature = "cuda")]
pub(crate) mod ops;

#[cfg(test)]
mod emulated;
