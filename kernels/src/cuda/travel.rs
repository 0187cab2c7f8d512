//! Values on their way between a GPU's memory and the host's, on streams of their own: the arithmetic given to the device
//! meanwhile goes on beside them.
//!
//! What leaves is copied into memory the GPU writes to by itself (page-locked), which is kept for the next, since locking
//! pages takes longer than the copy.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, PinnedHostSlice};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DeviceLocation, Result, Storage, Tensor, bail};
use half::bf16;

use super::device::{explain, on_gpu};

/// Page-locked memory that is kept while nobody uses it.
const MOST_SPARE_BYTES: usize = 1 << 30;

/// The ways out of and into one GPU.
struct Ways {
    out: Arc<CudaStream>,
    into: Arc<CudaStream>,
    spare: Mutex<Vec<PinnedHostSlice<bf16>>>,
}

impl Ways {
    /// Those of `device`, made at their first use.
    fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        static ALL: OnceLock<Mutex<HashMap<usize, Arc<Ways>>>> = OnceLock::new();
        let DeviceLocation::Cuda { gpu_id } = device.location() else { bail!("expected a gpu") };
        let mut all = lock(ALL.get_or_init(Mutex::default));
        if let Some(ways) = all.get(&gpu_id) {
            return Ok(Arc::clone(ways));
        }
        let stream = device.cuda_stream();
        let new_stream = || stream.context().new_stream().w();
        let ways = Arc::new(Self { out: new_stream()?, into: new_stream()?, spare: Mutex::default() });
        all.insert(gpu_id, Arc::clone(&ways));
        Ok(ways)
    }

    fn memory(&self, len: usize) -> Result<PinnedHostSlice<bf16>> {
        // A copy fills all of the memory it is given; the sizes that travel are few and come again.
        let found = {
            let mut spare = lock(&self.spare);
            spare.iter().rposition(|memory| memory.len() == len).map(|idx| spare.remove(idx))
        };
        if let Some(memory) = found {
            return Ok(memory);
        }
        // Not write-combined: the host reads it.
        // SAFETY: bits of any kind are bf16, and nobody reads them before the copy has written them.
        unsafe { self.out.context().alloc_pinned_with_flags(len, 0) }.w()
    }

    fn take_back(&self, memory: PinnedHostSlice<bf16>) {
        let mut spare = lock(&self.spare);
        spare.push(memory);
        let mut bytes: usize = spare.iter().map(PinnedHostSlice::num_bytes).sum();
        while bytes > MOST_SPARE_BYTES {
            bytes -= spare.remove(0).num_bytes();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A tensor's values that leave the GPU.
pub struct Leaving {
    /// Read until the copy is done.
    from: Tensor,
    to: PinnedHostSlice<bf16>,
    ways: Arc<Ways>,
}

/// Begins to copy the values of `x`, bf16, as they are once the device has done what it was given so far.
///
/// # Errors
/// If `x` is of another type, strided or elsewhere, or there is no memory.
pub fn leave(x: &Tensor) -> Result<Leaving> {
    let Some(device) = on_gpu(x) else { bail!("expected a tensor on the gpu") };
    if x.elem_count() == 0 {
        bail!("a tensor without values does not travel");
    }
    let ways = Ways::of(&device)?;
    // Whatever computes `x` was given to the arithmetic's stream before.
    ways.out.join(&device.cuda_stream()).w()?;
    let mut to = ways.memory(x.elem_count())?;
    {
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("expected a tensor on the gpu") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {layout:?}")
        };
        ways.out.memcpy_dtoh(&storage.as_cuda_slice::<bf16>()?.slice(start..end), &mut to).w()?;
    }
    Ok(Leaving { from: x.clone(), to, ways })
}

impl Leaving {
    /// Waits until the values are there.
    ///
    /// # Errors
    /// If the device failed at them or at what was given to it before.
    pub fn wait(self) -> Result<HostValues> {
        let at = self.to.as_ptr().w()?;
        Ok(HostValues { at, len: self.from.elem_count(), memory: Some(self.to), ways: self.ways })
    }
}

/// Values in memory a GPU has written; it goes back for the next ones.
pub struct HostValues {
    at: *const bf16,
    len: usize,
    memory: Option<PinnedHostSlice<bf16>>,
    ways: Arc<Ways>,
}

// SAFETY: the memory is this value's alone, and is only read.
unsafe impl Send for HostValues {}
// SAFETY: as above.
unsafe impl Sync for HostValues {}

impl AsRef<[bf16]> for HostValues {
    fn as_ref(&self) -> &[bf16] {
        // SAFETY: `memory` holds as many values and more, all written before this was made, and lives as long as this.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for HostValues {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.ways.take_back(memory);
        }
    }
}

/// Rows of `width` values on the GPU `device`, where they lie when this returns.
///
/// # Errors
/// If they are no whole rows or there is no room.
pub fn arrive(device: &CudaDevice, values: &[bf16], width: usize) -> Result<Tensor> {
    if width == 0 || !values.len().is_multiple_of(width) {
        bail!("{} values are no rows of {width}", values.len());
    }
    let ways = Ways::of(device)?;
    let there = ways.into.clone_htod(values).w();
    let there = there.map_err(|error| explain(error, device, size_of_val(values)))?;
    // The caller may let go of the values then. Who reads the tensor waits for its writing by itself.
    ways.into.synchronize().w()?;
    let storage = CudaStorage::wrap_cuda_slice(there, device.clone());
    let shape = (values.len() / width, width);
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}
