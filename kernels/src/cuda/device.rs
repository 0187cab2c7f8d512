//! Jobs on a device: memory is candle's tensors, and one stream keeps the order in which work was given.

use candle_core::backend::BackendDevice;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtod_async;
use candle_core::cuda_backend::cudarc::driver::sys::{CUfunction_attribute, CUresult};
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::{CudaError, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, DType, Device, Error, Result, Shape, Storage, Tensor, bail};
use half::bf16;

use super::job::{
    Address, Affine, Attention, Compression, Finite, Job, Modulation, MomentsOf, Number, Parameters, Product,
};
use super::{fault, pool};

/// Compiled by build.rs.
const MODULES: [(&str, &str); 4] = [
    ("attention", include_str!(concat!(env!("OUT_DIR"), "/attention.ptx"))),
    ("group_norm", include_str!(concat!(env!("OUT_DIR"), "/group_norm.ptx"))),
    ("product", include_str!(concat!(env!("OUT_DIR"), "/product.ptx"))),
    ("rows", include_str!(concat!(env!("OUT_DIR"), "/rows.ptx"))),
];

/// Which of the modules a kernel is in.
fn module_of(kernel: &str) -> &'static (&'static str, &'static str) {
    let idx = match kernel.split('_').next() {
        Some("attention") => 0,
        Some("product") => 2,
        Some("modulate" | "compress") => 3,
        _ => 1,
    };
    &MODULES[idx]
}

// SAFETY: all of them are `repr(C)` structs of numbers, and their kernels take one such struct by value.
unsafe impl DeviceRepr for Product {}
// SAFETY: as above.
unsafe impl DeviceRepr for Modulation {}
// SAFETY: as above.
unsafe impl DeviceRepr for Compression {}
// SAFETY: as above. The kernel's struct ends before the last field, which it does not read.
unsafe impl DeviceRepr for MomentsOf {}
// SAFETY: as above.
unsafe impl DeviceRepr for Affine {}
// SAFETY: as above.
unsafe impl DeviceRepr for Finite {}
// SAFETY: as above.
unsafe impl DeviceRepr for Attention {}

/// What a block may have without being asked for more.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// GPU `ordinal`, on a stream of its own that all threads share: what one thread gives it is done before what another
/// gives it later.
///
/// # Errors
/// If there is no such GPU, or its libraries are missing.
pub fn gpu(ordinal: usize) -> Result<Device> {
    let device = Device::new_cuda_with_stream(ordinal)?;
    if let Device::Cuda(gpu) = &device {
        pool::keep(gpu)?;
    }
    Ok(device)
}

/// The architecture's name, such as `sm_90`.
///
/// # Errors
/// If the GPU does not answer.
pub fn architecture(device: &CudaDevice) -> Result<String> {
    let (major, minor) = device.cuda_stream().context().compute_capability().w()?;
    Ok(format!("sm_{major}{minor}"))
}

/// The GPU `tensor` lies on, if it does.
pub(crate) fn on_gpu(tensor: &Tensor) -> Option<CudaDevice> {
    match tensor.device() {
        Device::Cuda(device) => Some(device.clone()),
        _ => None,
    }
}

/// How `tensor`'s values are stored.
pub(crate) fn number_of(tensor: &Tensor) -> Result<Number> {
    match tensor.dtype() {
        DType::F32 => Ok(Number::F32),
        DType::BF16 => Ok(Number::Bf16),
        other => bail!("a gpu computes in f32 or bf16, not {other:?}"),
    }
}

/// A tensor of f32 on the device.
pub(crate) fn vector(values: &[f32], device: &CudaDevice) -> Result<Tensor> {
    let upload = || Tensor::from_slice(values, values.len(), &Device::Cuda(device.clone()));
    upload().map_err(|error| explain(error, device, size_of_val(values)))
}

/// A tensor the caller has filled by a job before anybody reads it.
pub(crate) fn room(shape: impl Into<Shape>, number: Number, device: &CudaDevice) -> Result<Tensor> {
    let shape = shape.into();
    // A driver may refuse to allocate nothing.
    let len = shape.elem_count().max(1);
    let made = || {
        // SAFETY: bits of any kind are numbers of these types, and the caller's job writes all of them.
        Ok(unsafe {
            match number {
                Number::F32 => CudaStorage::wrap_cuda_slice(device.alloc::<f32>(len)?, device.clone()),
                Number::Bf16 => CudaStorage::wrap_cuda_slice(device.alloc::<bf16>(len)?, device.clone()),
            }
        })
    };
    let value_bytes = if number == Number::F32 { size_of::<f32>() } else { size_of::<bf16>() };
    let storage = made().map_err(|error| explain(error, device, len.saturating_mul(value_bytes)))?;
    Ok(Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false))
}

/// What the driver answered, if `error` is its answer.
fn answer(error: &Error) -> Option<CUresult> {
    match error {
        Error::WithBacktrace { inner, .. } | Error::Context { inner, .. } => answer(inner),
        Error::Cuda(inner) => match inner.downcast_ref::<CudaError>() {
            Some(CudaError::Cuda(answer) | CudaError::Load { cuda: answer, .. }) => Some(answer.0),
            _ => None,
        },
        _ => None,
    }
}

/// `error`; where memory was short for `need_bytes`, that and what is free in its place.
pub fn explain(error: Error, device: &CudaDevice, need_bytes: usize) -> Error {
    if answer(&error) == Some(CUresult::CUDA_ERROR_OUT_OF_MEMORY) {
        return Error::Msg(fault::out_of_memory(need_bytes, pool::free_bytes(device).unwrap_or(0)));
    }
    error
}

/// Runs `give` with the addresses of `tensors`, zero for none of them; they stay where they are until the device has done
/// what it was given meanwhile.
///
/// # Errors
/// If a tensor is strided or lies elsewhere.
pub(crate) fn with_addresses<const N: usize, R>(
    device: &CudaDevice,
    tensors: [Option<&Tensor>; N],
    give: impl FnOnce([Address; N]) -> Result<R>,
) -> Result<R> {
    let stream = device.cuda_stream();
    let held: Vec<_> = tensors.iter().map(|tensor| tensor.map(Tensor::storage_and_layout)).collect();
    let mut guards = Vec::with_capacity(N);
    let mut addresses = [0; N];
    for (address, held) in addresses.iter_mut().zip(&held) {
        let Some((storage, layout)) = held else { continue };
        let Storage::Cuda(storage) = &**storage else { bail!("expected a tensor on the gpu") };
        if !storage.device.same_device(device) {
            bail!("expected a tensor on the same gpu");
        }
        let Some((start, _)) = layout.contiguous_offsets() else {
            bail!("expected a contiguous tensor, got {layout:?}")
        };
        macro_rules! of {
            ($number:ty) => {{
                let (first, guard) = storage.as_cuda_slice::<$number>()?.device_ptr(&stream);
                guards.push(guard);
                first + (start * size_of::<$number>()) as Address
            }};
        }
        *address = match storage.dtype_of() {
            DType::BF16 => of!(bf16),
            DType::F64 => of!(f64),
            DType::U32 => of!(u32),
            _ => of!(f32),
        };
    }
    give(addresses)
}

/// The type of stored values, without candle's trait at every use.
trait DtypeOf {
    fn dtype_of(&self) -> DType;
}

impl DtypeOf for CudaStorage {
    fn dtype_of(&self) -> DType {
        candle_core::backend::BackendStorage::dtype(self)
    }
}

/// Writes the values of `from` over those of `to`, both whole tensors on one GPU.
///
/// # Errors
/// If they differ in shape or type, share memory, or lie elsewhere.
pub fn overwrite(to: &Tensor, from: &Tensor) -> Result<()> {
    let Some(device) = on_gpu(from) else { bail!("expected a tensor on the gpu") };
    if to.shape() != from.shape() || to.dtype() != from.dtype() {
        bail!("{:?} of {:?} cannot be written over {:?} of {:?}", from.dtype(), from.dims(), to.dtype(), to.dims());
    }
    let n_bytes = from.elem_count() * from.dtype().size_in_bytes();
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().w()?;
    with_addresses(&device, [Some(to), Some(from)], |[to, from]| {
        if to.abs_diff(from) < n_bytes as Address {
            bail!("values cannot be written over themselves");
        }
        // SAFETY: both are pieces of the device's memory of this many bytes, apart, and held until the copy is given.
        unsafe { memcpy_dtod_async(to, from, n_bytes, stream.cu_stream()) }.w()
    })
}

/// Gives `device` a job.
///
/// # Safety
/// The parameters' addresses hold what the kernel's struct says, and no other thread writes there.
pub(crate) unsafe fn run<P: Parameters + DeviceRepr>(
    device: &CudaDevice,
    number: Number,
    parameters: &P,
) -> Result<()> {
    let Job { kernel, blocks: [x, y, z], threads, shared_bytes } = parameters.job(number);
    let (module, ptx) = module_of(&kernel);
    let told = |error: Error| match answer(&error) {
        Some(code) => {
            let architecture = architecture(device).unwrap_or_else(|_| "unknown".into());
            Error::Msg(fault::at_launch(&kernel, &architecture, code))
        }
        None => error,
    };
    let function = device.get_or_load_custom_func(&kernel, module, ptx).map_err(told)?;
    if shared_bytes > DEFAULT_SHARED_BYTES {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared_bytes as i32).w().map_err(told)?;
    }
    let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes: shared_bytes };
    let mut launch = function.builder();
    launch.arg(parameters);
    // SAFETY: the kernel takes one struct, this one; the rest is the caller's.
    unsafe { launch.launch(config) }.w().map_err(told)?;
    Ok(())
}
