//! Whether values are numbers at all.

use candle_core::{Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use crate::buffer::with_values;

/// Values looked at together: enough for a thread, and soon done with where the first is at fault.
const CHUNK: usize = 1 << 16;

/// Whether all values of `tensors`, which lie on one device, are finite.
///
/// # Errors
/// If one is not contiguous f32 on the CPU, or f32 or bf16 on a GPU.
pub fn is_finite(tensors: &[Tensor]) -> Result<bool> {
    #[cfg(feature = "cuda")]
    if let Some(device) = tensors.first().and_then(crate::cuda::device::on_gpu) {
        return crate::cuda::ops::is_finite(&device, tensors);
    }
    for x in tensors {
        if !with_values(x, |values| values.par_chunks(CHUNK).all(all_finite))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether all values are finite; on the calling thread.
pub fn all_finite(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    // Comparing each chunk as a whole keeps the loop free of branches.
    let is_finite = |finite, value: &f32| finite & (value.to_bits() & EXPONENT != EXPONENT);
    values.chunks(CHUNK).all(|chunk| chunk.iter().fold(true, is_finite))
}

/// Whether all values are finite; on the calling thread.
pub fn all_finite_bf16(values: &[bf16]) -> bool {
    const EXPONENT: u16 = 0x7f80;
    let is_finite = |finite, value: &bf16| finite & (value.to_bits() & EXPONENT != EXPONENT);
    values.chunks(CHUNK).all(|chunk| chunk.iter().fold(true, is_finite))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_that_is_no_number_is_found_among_many() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, CHUNK - 1, CHUNK, 2 * CHUNK + 6] {
                let mut values = vec![f32::MAX; 2 * CHUNK + 7];
                let narrow =
                    |values: &[f32]| values.iter().map(|value| bf16::from_f32(value / 2.0)).collect::<Vec<_>>();
                assert!(all_finite(&values) && all_finite_bf16(&narrow(&values)));
                values[at] = bad;
                assert!(!all_finite(&values) && !all_finite_bf16(&narrow(&values)), "{bad} at {at}");
            }
        }
    }
}
