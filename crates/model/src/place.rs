//! Where a model's networks compute, and in which type.
//!
//! Latents, the sampler, the timestep's small network and the text encoder stay on the CPU in f32: they are little work, and
//! so the same on every machine. Tokens and pixels live on the place.

mod travel;

use candle_core::{DType, Device, Result, Tensor};
pub use travel::{Gathering, Leaving, Values, leave};

#[cfg(feature = "cuda")]
use crate::finite::first_line;

/// A device and the type it computes in.
#[derive(Debug, Clone)]
pub struct Place {
    device: Device,
    dtype: DType,
}

impl Default for Place {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }
}

impl Place {
    /// On `device`: in f32 on a CPU, in bf16 on a GPU.
    pub fn new(device: Device) -> Self {
        let dtype = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        Self { device, dtype }
    }

    /// Where `x` lies, and its type.
    pub fn of(x: &Tensor) -> Self {
        Self { device: x.device().clone(), dtype: x.dtype() }
    }

    /// The same device, computing in f32.
    #[must_use]
    pub fn in_f32(self) -> Self {
        Self { dtype: DType::F32, ..self }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `x` brought here.
    ///
    /// # Errors
    /// If memory is short.
    pub fn take(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(self.dtype)?;
        let taken = x.to_device(&self.device);
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = &self.device {
            let need_bytes = x.elem_count() * self.dtype.size_in_bytes();
            return taken.map_err(|error| kernels::explain(error, gpu, need_bytes));
        }
        taken
    }

    /// Bytes of a value.
    pub fn value_bytes(&self) -> u64 {
        self.dtype.size_in_bytes() as u64
    }

    /// Passes if a GPU has room for `needed_bytes`; a CPU's memory is the system's business.
    ///
    /// # Errors
    /// The need and what is free.
    pub fn check_room(&self, needed_bytes: u64) -> std::result::Result<(), RoomError> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => {
                let free = kernels::free_bytes(gpu).map_err(|error| RoomError::Device(first_line(&error)))?;
                fits(needed_bytes, free as u64)
            }
            _ => fits(needed_bytes, u64::MAX),
        }
    }

    /// Begins a new peak of what this process holds of a GPU's memory; gives what it holds now, nothing on a CPU or if the
    /// driver does not tell.
    pub fn restart_peak(&self) -> Option<u64> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => kernels::restart_peak(gpu).ok()?,
            _ => None,
        }
    }

    /// The most it held since then.
    pub fn peak_bytes(&self) -> Option<u64> {
        match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => kernels::peak_bytes(gpu).ok()?,
            _ => None,
        }
    }

    /// Waits until the device has done all it was given; at once on a CPU.
    ///
    /// # Errors
    /// If what it was given failed.
    pub fn wait(&self) -> Result<()> {
        self.device.synchronize()
    }

    /// The class of what is computed here; text is encoded on the CPU, so a GPU's class names the CPU's too.
    pub fn numeric_class(&self) -> String {
        let cpu = crate::numeric_class();
        match &self.device {
            Device::Cpu => cpu.to_owned(),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => {
                let architecture = kernels::architecture(gpu).unwrap_or_else(|_| "unknown".into());
                let dtype = self.dtype.as_str();
                format!("cuda-{architecture}-{dtype}-{}-{cpu}", crate::class::KERNELS)
            }
            other => format!("{other:?}-{cpu}").to_lowercase(),
        }
    }
}

/// Why something has no room on a GPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// Too little is free.
    #[error("{need_mib} MiB of the GPU's memory are needed, {free_mib} MiB are free")]
    #[allow(missing_docs)]
    Short { need_mib: u64, free_mib: u64 },
    /// The GPU does not answer.
    #[error("{0}")]
    Device(String),
}

impl RoomError {
    /// In words: `what` does not fit, and `advice` says what to do about it.
    pub fn told(self, what: &str, advice: &str) -> String {
        match self {
            Self::Short { .. } => format!("{what}: {self}: {advice}"),
            Self::Device(said) => said,
        }
    }
}

fn fits(needed_bytes: u64, free_bytes: u64) -> std::result::Result<(), RoomError> {
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(RoomError::Short { need_mib: needed_bytes.div_ceil(1 << 20), free_mib: free_bytes >> 20 })
}

/// `x` on the CPU, in f32.
///
/// # Errors
/// If the device failed at what it was given.
pub fn bring_back(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.to_dtype(DType::F32);
    }
    // A view would bring all of the memory it is a part of.
    x.force_contiguous()?.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_for_a_gpu_is_told_by_need_and_room() {
        assert_eq!(fits(1 << 30, 1 << 30), Ok(()));
        let error = fits((1 << 30) + 1, 1 << 30).expect_err("does not fit");
        assert_eq!(error.to_string(), "1025 MiB of the GPU's memory are needed, 1024 MiB are free");
    }
}
