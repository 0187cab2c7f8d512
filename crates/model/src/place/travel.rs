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
    There(Values),
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
        // A band of fewer rows than keys are compressed by has none.
        let is_empty = x.elem_count() == 0;
        let nothing = || Way::There(Values::Bf16(Arc::new(Vec::new())));
        return Ok(Leaving(if is_empty { nothing() } else { Way::Copied(kernels::leave(&x.contiguous()?)?) }));
    }
    Ok(Leaving(Way::There(Values::F32(bring_back(x)?.flatten_all()?.to_vec1()?))))
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
            Way::There(values) => Ok(values),
            #[cfg(feature = "cuda")]
            Way::Copied(leaving) => Ok(Values::Bf16(Arc::new(leaving.wait()?))),
        }
    }
}

/// Rows of several ranks that are put together, from the top.
pub struct Gathering {
    place: Place,
    width: usize,
    rows: Rows,
}

enum Rows {
    OnCpu {
        values: Vec<f32>,
        n: usize,
    },
    #[cfg(feature = "cuda")]
    OnGpu(kernels::Arriving),
}

impl Place {
    /// Whether values leave here as bf16.
    pub fn sends_bf16(&self) -> bool {
        self.dtype == DType::BF16
    }

    /// Gives back the host's memory that is kept for what will travel.
    pub fn clear_spares(&self) {
        #[cfg(feature = "cuda")]
        if let Device::Cuda(gpu) = &self.device {
            kernels::clear_spares(gpu);
        }
    }

    /// Room for `n_rows` of `width` values. On a GPU what it is given behind this is not waited for when rows come.
    ///
    /// # Errors
    /// If memory is short.
    pub fn gather(&self, n_rows: usize, width: usize) -> Result<Gathering> {
        let rows = match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) if self.sends_bf16() => Rows::OnGpu(kernels::Arriving::new(gpu, n_rows, width)?),
            _ => Rows::OnCpu { values: Vec::with_capacity(n_rows * width), n: n_rows * width },
        };
        Ok(Gathering { place: self.clone(), width, rows })
    }
}

impl Gathering {
    /// Whether rows are to come in bf16.
    pub fn takes_bf16(&self) -> bool {
        self.place.sends_bf16()
    }

    /// Bytes of a row as it travels.
    pub fn row_bytes(&self) -> usize {
        self.width * self.place.value_bytes() as usize
    }

    /// The next rows, which lie where they are gathered.
    ///
    /// # Errors
    /// If they are of another type, or more than there is room for.
    pub fn add_own(&mut self, x: &Tensor) -> Result<()> {
        match &mut self.rows {
            Rows::OnCpu { values, n } => {
                // Nothing is copied twice where they lie on the CPU.
                let x = bring_back(x)?;
                kernels::with_values(&x, |x| extend(values, *n, x))?
            }
            #[cfg(feature = "cuda")]
            Rows::OnGpu(arriving) => arriving.add_own(&x.contiguous()?),
        }
    }

    /// The next rows, which came in f32.
    ///
    /// # Errors
    /// As above.
    pub fn add_f32(&mut self, came: &[f32]) -> Result<()> {
        match &mut self.rows {
            Rows::OnCpu { values, n } => extend(values, *n, came),
            #[cfg(feature = "cuda")]
            Rows::OnGpu(_) => bail!("f32 values came where bf16 is computed in"),
        }
    }

    /// The next rows, which came in bf16.
    ///
    /// # Errors
    /// As above.
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables))]
    pub fn add_bf16(&mut self, came: &[bf16]) -> Result<()> {
        match &mut self.rows {
            Rows::OnCpu { .. } => bail!("bf16 values came where f32 is computed in"),
            #[cfg(feature = "cuda")]
            Rows::OnGpu(arriving) => arriving.add(came),
        }
    }

    /// All rows, one tensor where the networks compute.
    ///
    /// # Errors
    /// If some are missing, or memory is short.
    pub fn whole(self) -> Result<Tensor> {
        match self.rows {
            Rows::OnCpu { values, n } => {
                if values.len() != n {
                    bail!("{} values came where {n} are gathered", values.len());
                }
                self.place.take(&Tensor::from_vec(values, (n / self.width.max(1), self.width), &Device::Cpu)?)
            }
            #[cfg(feature = "cuda")]
            Rows::OnGpu(arriving) => arriving.whole(),
        }
    }
}

fn extend(values: &mut Vec<f32>, n: usize, more: &[f32]) -> Result<()> {
    if values.len() + more.len() > n {
        bail!("{} values came where {n} are gathered and {} are there", more.len(), values.len());
    }
    values.extend_from_slice(more);
    Ok(())
}
