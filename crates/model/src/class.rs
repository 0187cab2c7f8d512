//! The numeric class: a name for the arithmetic. Equal requests give equal bytes within one class.
//!
//! Our kernels give the same bits on every machine with fused multiply-add. The text encoder's matrix product,
//! a library's, cuts its sums by instruction set and by the size of the processor's first cache; so the class
//! holds a fingerprint of what that product gives for known values.

use std::sync::OnceLock;

use candle_core::{Device, Result, Tensor};
use sha2::{Digest, Sha256};

/// Raised when a change to the kernels changes bits.
pub(crate) const KERNELS: u32 = 2;

/// The class of this machine, such as `cpu-avx512-f32-2-3fa2`.
pub fn numeric_class() -> &'static str {
    static CLASS: OnceLock<String> = OnceLock::new();
    CLASS.get_or_init(|| {
        // Without a fingerprint no class but this machine's own can be claimed.
        let library = fingerprint().unwrap_or_else(|_| "unknown".into());
        format!("cpu-{}-f32-{KERNELS}-{library}", kernels::isa())
    })
}

/// Four hexadecimal digits of the library's products at T5's inner lengths.
fn fingerprint() -> Result<String> {
    let mut hash = Sha256::new();
    for inner in [64, 1024, 4096, 10_240] {
        let values = |rows: usize, factor: usize| {
            let values = (0..rows * inner).map(|i| (i * factor % 1009) as f32 / 1009.0 - 0.5).collect();
            Tensor::from_vec(values, (rows, inner), &Device::Cpu)
        };
        let product = values(24, 7)?.matmul(&values(80, 13)?.t()?)?.flatten_all()?.to_vec1::<f32>()?;
        product.iter().for_each(|value| hash.update(value.to_le_bytes()));
    }
    Ok(hash.finalize()[..2].iter().map(|byte| format!("{byte:02x}")).collect())
}
