//! Values on their way between a place and whoever sends or receives them.
//!
//! They travel in the type they were computed in. From a GPU they leave beside its arithmetic: what is given to it behind
//! [`leave`] is not waited for.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;

use super::{Place, bring_back};

/// Values in the host's memory.
pub enum Values {
    /// Of a CPU, or of a GPU that computes in f32.
    F32(Vec<f32>),
    /// Of a GPU.
    Bf16(Arc<dyn AsRef<[bf16]> + Send + Sync>),
}

/// A tensor's values on their way to the host.
pub struct Leaving(Way);

enum Way {
    There(Vec<f32>),
    #[cfg(feature = "cuda")]
    Copied(kernels::Leaving),
}

/// Begins to bring the values of `x` to the host; on a CPU they are there.
///
/// # Errors
/// If memory is short or the device failed.
pub fn leave(x: &Tensor) -> Result<Leaving> {
    #[cfg(feature = "cuda")]
    if !x.device().is_cpu() && x.dtype() == DType::BF16 {
        return Ok(Leaving(Way::Copied(kernels::leave(&x.contiguous()?)?)));
    }
    Ok(Leaving(Way::There(bring_back(x)?.flatten_all()?.to_vec1()?)))
}

impl Leaving {
    /// Whether nothing is left to wait for.
    pub fn is_there(&self) -> bool {
        match self.0 {
            Way::There(_) => true,
            #[cfg(feature = "cuda")]
            Way::Copied(_) => false,
        }
    }

    /// Waits until the values are there.
    ///
    /// # Errors
    /// If the device failed.
    pub fn wait(self) -> Result<Values> {
        match self.0 {
            Way::There(values) => Ok(Values::F32(values)),
            #[cfg(feature = "cuda")]
            Way::Copied(leaving) => Ok(Values::Bf16(Arc::new(leaving.wait()?))),
        }
    }
}

impl Place {
    /// Whether values leave here as bf16.
    pub fn sends_bf16(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// Rows of `width` values that came in f32, here.
    ///
    /// # Errors
    /// If they are no whole rows, or memory is short.
    pub fn arrive_f32(&self, values: &[f32], width: usize) -> Result<Tensor> {
        let shape = (n_rows(values.len(), width)?, width);
        self.take(&Tensor::from_slice(values, shape, &Device::Cpu)?)
    }

    /// Rows of `width` values that came in bf16, here.
    ///
    /// # Errors
    /// As above, or if this place does not compute in bf16.
    pub fn arrive_bf16(&self, values: &[bf16], width: usize) -> Result<Tensor> {
        let shape = (n_rows(values.len(), width)?, width);
        match &self.device {
            _ if !self.sends_bf16() => bail!("bf16 values came where f32 is computed in"),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => kernels::arrive(gpu, values, width),
            device => Tensor::from_slice(values, shape, device),
        }
    }
}

fn n_rows(n: usize, width: usize) -> Result<usize> {
    if width == 0 || !n.is_multiple_of(width) {
        bail!("{n} values are no rows of {width}");
    }
    Ok(n / width)
}
