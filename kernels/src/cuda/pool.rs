//! The memory a GPU's tensors come from: the driver's pool, which keeps what was given back, and tells how much of it was in
//! use at most.

use std::ffi::c_void;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::{DriverError, device as of_driver, mem_pool};
use candle_core::cuda_backend::cudarc::driver::sys::{CUmemPool_attribute, CUmemoryPool};
use candle_core::{CudaDevice, Result};

/// The pool that allocations of `device` come from; none where a driver has no pools.
fn pool(device: &CudaDevice) -> std::result::Result<Option<CUmemoryPool>, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread()?;
    // SAFETY: the device is that of a living context.
    unsafe { of_driver::get_mem_pool(context.cu_device()) }.map(Some)
}

fn get(pool: CUmemoryPool, attribute: CUmemPool_attribute) -> std::result::Result<u64, DriverError> {
    let mut value = 0u64;
    // SAFETY: the pool is the device's own, and the attributes asked for in this file are 64-bit numbers.
    unsafe { mem_pool::get_attribute(pool, attribute, (&raw mut value).cast::<c_void>()) }?;
    Ok(value)
}

fn set(pool: CUmemoryPool, attribute: CUmemPool_attribute, mut value: u64) -> std::result::Result<(), DriverError> {
    // SAFETY: as above; the driver reads the number before it returns.
    unsafe { mem_pool::set_attribute(pool, attribute, (&raw mut value).cast::<c_void>()) }
}

/// Lets the pool keep what is given back to it: by default all of it goes back to the system whenever the device is waited
/// for, and the next step maps its memory anew.
pub(crate) fn keep(device: &CudaDevice) -> Result<()> {
    if let Some(pool) = pool(device).w()? {
        set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX).w()?;
    }
    Ok(())
}

/// Memory of the GPU nobody uses, what this process's pool keeps for later included.
///
/// # Errors
/// If the GPU does not answer.
pub fn free_bytes(device: &CudaDevice) -> Result<usize> {
    let free = device.cuda_stream().context().mem_get_info().w()?.0;
    let Some(pool) = pool(device).w()? else { return Ok(free) };
    let reserved = get(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT).w()?;
    let used = get(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT).w()?;
    Ok(free + reserved.saturating_sub(used) as usize)
}

/// Begins a new peak of this process's memory on the GPU; gives what is in use now, nothing if the driver does not tell.
///
/// # Errors
/// If the GPU does not answer.
pub fn restart_peak(device: &CudaDevice) -> Result<Option<u64>> {
    let Some(pool) = pool(device).w()? else { return Ok(None) };
    // Zero is the one value that can be set.
    set(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0).w()?;
    get(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT).w().map(Some)
}

/// The most in use since the last restart.
///
/// # Errors
/// If the GPU does not answer.
pub fn peak_bytes(device: &CudaDevice) -> Result<Option<u64>> {
    let Some(pool) = pool(device).w()? else { return Ok(None) };
    get(pool, CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH).w().map(Some)
}
