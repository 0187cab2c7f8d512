//! Which NVIDIA GPUs this machine has, asked of the driver at run time, so that a program without CUDA in it can say what
//! is wrong before it starts one that needs it.

use std::fmt;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute};

/// A GPU as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as in `cuda:0`.
    pub ordinal: usize,
    /// The product's name.
    pub name: String,
    /// Major and minor version of its architecture.
    pub architecture: (i32, i32),
    /// All of its memory.
    pub total_bytes: usize,
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ordinal, name, architecture: (major, minor), total_bytes } = self;
        write!(f, "cuda:{ordinal} {name}, sm_{major}{minor}, {} MiB", total_bytes >> 20)
    }
}

/// Why a GPU cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// There is no driver.
    #[error("this machine has no NVIDIA driver (libcuda is missing): install one, or use --device cpu")]
    NoDriver,
    /// The driver cannot run what was compiled for a newer one.
    #[error(
        "the NVIDIA driver speaks CUDA {}.{}, which is too old: CUDA 13.0 is needed, that is driver 580 or newer",
        .found / 1000, .found % 1000 / 10
    )]
    #[allow(missing_docs)]
    OldDriver { found: i32 },
    /// There is no such GPU.
    #[error("there is no cuda:{asked}: this machine has {}", listed(.has))]
    #[allow(missing_docs)]
    NoDevice { asked: usize, has: Vec<String> },
    /// The GPU lacks what the kernels are made of.
    #[error("cuda:{} is {}: its architecture is older than sm_80, the oldest with bf16 tensor cores", .0.ordinal, .0)]
    OldArchitecture(Gpu),
    /// The driver failed.
    #[error("the NVIDIA driver does not answer: {0}: see what nvidia-smi says")]
    Driver(String),
}

fn listed(names: &[String]) -> String {
    if names.is_empty() { "no GPU".into() } else { names.join("; ") }
}

/// What the least driver speaks: CUDA 13.0 as the driver writes it.
const LEAST_DRIVER: i32 = 13_000;
const LEAST_ARCHITECTURE: (i32, i32) = (8, 0);

/// GPU `asked`, if the driver is new enough and the GPU can run the kernels.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn find_gpu(asked: usize) -> Result<Gpu, GpuError> {
    if !has_driver() {
        return Err(GpuError::NoDriver);
    }
    check_driver(driver_version()?)?;
    choose(all()?, asked)
}

fn check_driver(found: i32) -> Result<(), GpuError> {
    if found < LEAST_DRIVER { Err(GpuError::OldDriver { found }) } else { Ok(()) }
}

fn choose(gpus: Vec<Gpu>, asked: usize) -> Result<Gpu, GpuError> {
    let has = gpus.iter().map(Gpu::to_string).collect();
    match gpus.into_iter().find(|gpu| gpu.ordinal == asked) {
        None => Err(GpuError::NoDevice { asked, has }),
        Some(gpu) if gpu.architecture < LEAST_ARCHITECTURE => Err(GpuError::OldArchitecture(gpu)),
        Some(gpu) => Ok(gpu),
    }
}

/// A program linked with the driver has found it by the time it runs.
#[cfg(feature = "cuda")]
fn has_driver() -> bool {
    true
}

#[cfg(not(feature = "cuda"))]
fn has_driver() -> bool {
    // SAFETY: it opens the driver's library, which runs the library's own initialisation and nothing else.
    unsafe { sys::is_culib_present() }
}

fn failed(error: &impl fmt::Debug) -> GpuError {
    GpuError::Driver(format!("{error:?}"))
}

fn driver_version() -> Result<i32, GpuError> {
    let mut version = 0;
    // SAFETY: the driver is there, and it writes one integer.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(|error| failed(&error))?;
    Ok(version)
}

fn all() -> Result<Vec<Gpu>, GpuError> {
    let gpu = |ordinal: i32| {
        let device = result::device::get(ordinal)?;
        let name = result::device::get_name(device)?;
        // SAFETY: the device was just given by the driver.
        let total_bytes = unsafe { result::device::total_mem(device)? };
        // SAFETY: as above.
        let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
        let major = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        Ok(Gpu { ordinal: ordinal as usize, name, architecture: (major, minor), total_bytes })
    };
    match result::init() {
        // A driver without a GPU is no fault of the driver's.
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(Vec::new()),
        ended => ended.map_err(|error| failed(&error))?,
    }
    let n = result::device::get_count().map_err(|error| failed(&error))?;
    (0..n).map(gpu).collect::<Result<_, cudarc::driver::DriverError>>().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(ordinal: usize, architecture: (i32, i32)) -> Gpu {
        Gpu { ordinal, name: "Card".into(), architecture, total_bytes: 80 << 30 }
    }

    #[test]
    fn an_old_driver_is_told_by_its_version() {
        assert_eq!(check_driver(13_000), Ok(()));
        let error = check_driver(12_080).expect_err("is too old").to_string();
        assert_eq!(
            error,
            "the NVIDIA driver speaks CUDA 12.8, which is too old: CUDA 13.0 is needed, that is driver 580 or newer"
        );
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_with_those_that_are() {
        let error = choose(vec![gpu(0, (9, 0))], 3).expect_err("there is one").to_string();
        assert_eq!(error, "there is no cuda:3: this machine has cuda:0 Card, sm_90, 81920 MiB");
        let error = choose(Vec::new(), 0).expect_err("there is none").to_string();
        assert_eq!(error, "there is no cuda:0: this machine has no GPU");
    }

    #[test]
    fn an_architecture_without_bf16_is_refused() {
        let error = choose(vec![gpu(0, (7, 5)), gpu(1, (8, 0))], 0).expect_err("is too old").to_string();
        assert!(error.contains("sm_75") && error.contains("older than sm_80"), "{error}");
        assert_eq!(choose(vec![gpu(0, (7, 5)), gpu(1, (8, 0))], 1), Ok(gpu(1, (8, 0))));
    }
}
