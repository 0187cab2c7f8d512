//! Values on their way between a GPU's memory and the host's, on streams of their own: the arithmetic given to the device
//! meanwhile goes on beside them.
//!
//! What leaves is copied into memory the GPU writes to by itself (page-locked), which is kept for the next, since locking
//! pages takes longer than the copy. What arrives is written into memory of the arithmetic's stream, like all that is
//! computed with: candle notes who reads a tensor on the stream it was made on, so memory of another stream would be given
//! back, and written anew, under the hands of the arithmetic.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_htod_async;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};
use candle_core::{CudaDevice, DeviceLocation, Result, Storage, Tensor, bail};
use half::bf16;

use super::device::{on_gpu, overwrite, room, with_addresses};
use super::job::Number;

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
        let mut too_much = Vec::new();
        let mut spare = lock(&self.spare);
        spare.push(memory);
        let mut bytes: usize = spare.iter().map(PinnedHostSlice::num_bytes).sum();
        while bytes > MOST_SPARE_BYTES {
            let oldest = spare.remove(0);
            bytes -= oldest.num_bytes();
            too_much.push(oldest);
        }
        // The driver is called without the lock.
        drop(spare);
        drop(too_much);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back the page-locked memory that is kept for the next tensors.
pub fn clear_spares(device: &CudaDevice) {
    if let Ok(ways) = Ways::of(device) {
        let spares = std::mem::take(&mut *lock(&ways.spare));
        drop(spares);
    }
}

/// A tensor's values that leave the GPU.
pub struct Leaving {
    /// Dropped first: it waits for the copy.
    to: PinnedHostSlice<bf16>,
    /// Read until the copy is done.
    from: Tensor,
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
    Ok(Leaving { to, from: x.clone(), ways })
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

/// Rows on the GPU that arrive piece by piece.
pub struct Arriving {
    all: Tensor,
    width: usize,
    /// Values that have come.
    n_come: usize,
    /// The memory is this tensor's from here on.
    has_room: CudaEvent,
    device: CudaDevice,
    ways: Arc<Ways>,
}

impl Arriving {
    /// Room for `n_rows` of `width` bf16 values on `device`. What the device is given behind this is not waited for.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(device: &CudaDevice, n_rows: usize, width: usize) -> Result<Self> {
        let all = room((n_rows, width), Number::Bf16, device)?;
        let has_room = device.cuda_stream().record_event(None).w()?;
        Ok(Self { all, width, n_come: 0, has_room, device: device.clone(), ways: Ways::of(device)? })
    }

    /// The next rows, from the host; they lie there when this returns.
    ///
    /// # Errors
    /// If they are no whole rows, or more than there is room for.
    pub fn add(&mut self, values: &[bf16]) -> Result<()> {
        if values.is_empty() {
            return Ok(());
        }
        let part = self.next(values.len())?;
        self.ways.into.wait(&self.has_room).w()?;
        with_addresses(&self.device, [Some(&part)], |[to]| {
            // SAFETY: the part has room for as many values, and nothing else reads or writes it yet.
            unsafe { memcpy_htod_async(to, values, self.ways.into.cu_stream()) }.w()
        })?;
        // The caller may let go of the values then, and all that is given to the device from now on finds them.
        self.ways.into.synchronize().w()
    }

    /// The next rows, from the GPU itself.
    ///
    /// # Errors
    /// As above, or if `x` is of another type.
    pub fn add_own(&mut self, x: &Tensor) -> Result<()> {
        if x.elem_count() == 0 {
            return Ok(());
        }
        overwrite(&self.next(x.elem_count())?, &x.reshape(((), self.width))?)
    }

    fn next(&mut self, n: usize) -> Result<Tensor> {
        let [first, n_rows] = [self.n_come, n].map(|values| values / self.width.max(1));
        if self.width == 0 || !n.is_multiple_of(self.width) || first + n_rows > self.all.dim(0)? {
            bail!("{n} values came where {:?} are gathered and {first} rows are there", self.all.dims());
        }
        self.n_come += n;
        self.all.narrow(0, first, n_rows)
    }

    /// All rows.
    ///
    /// # Errors
    /// If some did not come.
    pub fn whole(self) -> Result<Tensor> {
        if self.n_come != self.all.elem_count() {
            bail!("{} values came where {:?} are gathered", self.n_come, self.all.dims());
        }
        Ok(self.all)
    }
}
