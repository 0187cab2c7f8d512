//! Memory the kernels write into: cache-line aligned weights, fresh outputs, and f32 slices of tensors.

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, bail};

use crate::simd::LANES;

/// Zeroed f32 in whole, aligned cache lines.
pub(crate) struct AlignedBuffer {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

impl AlignedBuffer {
    /// Room for at least `len` values.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0.0; LANES]); len.div_ceil(LANES)] }
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: a `Line` is sixteen f32 without padding (64 bytes, alignment 64), so the lines are one run of f32.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LANES) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LANES) }
    }
}

/// A pointer that tasks on several threads may write through, each to places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut(*mut f32);

// SAFETY: users of `SharedMut` write disjoint places; each use states why they are disjoint.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    pub(crate) fn new(slice: &mut [f32]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The pointer, `offset` values in.
    ///
    /// # Safety
    /// `offset` lies inside the slice this was made from.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's.
        unsafe { self.0.add(offset) }
    }
}

/// Runs `f` on the values of a contiguous f32 tensor on the CPU.
///
/// # Errors
/// If the tensor is on another device, of another type, or strided.
pub fn with_values<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(cpu) = &*storage else { bail!("expected a tensor on the cpu") };
    Ok(f(contiguous(cpu.as_slice::<f32>()?, layout)?))
}

fn contiguous<'a>(values: &'a [f32], layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

/// Whether two tensors keep their values in the same memory, so that one cannot be read while the other is
/// written.
pub(crate) fn share_memory(a: &Tensor, b: &Tensor) -> bool {
    // One guard after the other: both at once could wait for each other.
    let at = |tensor: &Tensor| std::ptr::from_ref(&*tensor.storage_and_layout().0);
    std::ptr::eq(at(a), at(b))
}

/// Runs `f` on the values of a contiguous f32 tensor, which it may change.
///
/// Every clone of the tensor sees the change: meant for tensors the caller has just made.
///
/// # Errors
/// As for [`with_values`], or if `f` fails.
pub(crate) fn with_values_mut(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    struct Change<F>(std::sync::Mutex<Option<F>>);
    impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for Change<F> {
        fn name(&self) -> &'static str {
            "change"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
            let CpuStorage::F32(values) = storage else { bail!("expected f32 values") };
            let change = self.0.lock().ok().and_then(|mut change| change.take());
            change.map_or(Ok(()), |change| change(&mut values[start..end]))
        }
    }
    tensor.inplace_op1(&Change(std::sync::Mutex::new(Some(f))))
}

/// A fresh output with these axes that the caller fills completely.
///
/// # Errors
/// If no memory could hold it: tasks write through bare pointers, so its length must not wrap around.
pub(crate) fn output(axes: &[usize]) -> Result<Vec<f32>> {
    let len = axes.iter().try_fold(1, |len: usize, &axis| len.checked_mul(axis));
    let Some(len) = len.filter(|&len| len <= isize::MAX as usize / size_of::<f32>()) else {
        bail!("an output of shape {axes:?} fits no memory")
    };
    // Zeroed memory of this size comes from the system untouched, so this costs no pass over it.
    Ok(vec![0.0; len])
}
