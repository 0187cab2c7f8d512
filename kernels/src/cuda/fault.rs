//! What a driver's refusals mean for whoever reads them, in plain words. Pure: numbers in, sentences out.

use cudarc::driver::sys::CUresult;

/// Memory that is short: what was asked for and what there was.
pub(crate) fn out_of_memory(need_bytes: usize, free_bytes: usize) -> String {
    let [need, free] = [need_bytes.div_ceil(1 << 20), free_bytes >> 20];
    format!(
        "the GPU is out of memory: {need} MiB more are needed, {free} MiB are free: \
         choose a smaller size, more workers, or stop what else uses the GPU"
    )
}

/// Why `kernel` did not start, or the ones before it failed.
pub(crate) fn at_launch(kernel: &str, architecture: &str, code: CUresult) -> String {
    match code {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => format!(
            "the kernel {kernel} is not compiled for this GPU ({architecture}): build fresco-cuda anew with \
             deploy/cuda/build.sh, which compiles for sm_80 and what came after it"
        ),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => format!(
            "the NVIDIA driver is older than the compiler of the kernel {kernel}: \
             CUDA 13.0 is needed, that is driver 580 or newer"
        ),
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => format!("the GPU is out of memory: none is left to start {kernel} in"),
        other => format!(
            "the GPU failed at {kernel} or what was begun before it ({other:?}, code {}): \
             this process cannot use it any more; see what nvidia-smi and the system's log say",
            other as u32
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_short_is_told_by_need_and_free() {
        let said = out_of_memory((3 << 20) + 1, (2 << 20) + 1);
        assert!(said.starts_with("the GPU is out of memory: 4 MiB more are needed, 2 MiB are free: "), "{said}");
    }

    #[test]
    fn a_missing_architecture_an_old_driver_and_a_lost_gpu_are_told_apart() {
        let said = |code| at_launch("product_bf16", "sm_75", code);
        let missing = said(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        assert!(missing.contains("not compiled for this GPU (sm_75)") && missing.contains("build.sh"), "{missing}");
        let old = said(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        assert!(old.contains("driver 580 or newer"), "{old}");
        let lost = said(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert!(lost.contains("CUDA_ERROR_ILLEGAL_ADDRESS, code 700"), "{lost}");
    }
}
