//! Initial noise from a file, in place of the seed's.
//!
//! Leaves out the seed's own noise; that is `model::noise`.

use std::io::ErrorKind;
use std::path::Path;

use candle_core::{Device, Tensor};
use kernels::MappedFile;
use plan::LatentSize;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::exit::Stop;

/// Name of the tensor, the same as in the files `render` writes.
const TENSOR: &str = "latents";

/// Noise to start from.
pub(crate) struct Latents {
    /// `[1, 4, rows, cols]` f32.
    pub(crate) tensor: Tensor,
    /// Over the values, so that it does not matter how the file is laid out.
    pub(crate) sha256: String,
}

impl Latents {
    /// Reads the noise for a latent of `size`.
    pub(crate) fn read(path: &Path, size: LatentSize) -> Result<Self, Stop> {
        let map = MappedFile::open(path).map_err(|error| {
            let said = format!("--latents {}: {error}", path.display());
            if error.kind() == ErrorKind::NotFound { Stop::NotFound(said) } else { Stop::Usage(said) }
        })?;
        Self::parse(&map, size).map_err(|fault| Stop::Usage(format!("--latents {}: {fault}", path.display())))
    }

    fn parse(bytes: &[u8], size: LatentSize) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| format!("is truncated or is no safetensors file ({error})"))?;
        let Ok(view) = file.tensor(TENSOR) else {
            return Err(format!("holds no tensor `{TENSOR}`; it holds: {}", listed(&file)));
        };
        let expected = [1, 4, size.rows, size.cols];
        if view.dtype() != Dtype::F32 || view.shape() != expected {
            return Err(format!(
                "tensor `{TENSOR}` is {:?} {:?}, F32 {expected:?} is needed for this size",
                view.dtype(),
                view.shape()
            ));
        }
        let values: Vec<f32> =
            view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        if let Some(idx) = values.iter().position(|value| !value.is_finite()) {
            return Err(format!("tensor `{TENSOR}` holds {} at element {idx}", values[idx]));
        }
        let tensor = Tensor::from_vec(values, &expected, &Device::Cpu).map_err(|error| error.to_string())?;
        Ok(Self { tensor, sha256: hex(&Sha256::digest(view.data())) })
    }
}

fn listed(file: &SafeTensors<'_>) -> String {
    let mut names = file.names();
    names.sort_unstable();
    names.truncate(10);
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    const SIZE: LatentSize = LatentSize { rows: 2, cols: 4 };

    fn file(name: &str, dtype: Dtype, shape: &[usize], value: f32) -> Vec<u8> {
        let bytes: Vec<u8> = match dtype {
            Dtype::F32 => (0..shape.iter().product()).flat_map(|_| value.to_le_bytes()).collect(),
            _ => vec![0; 2 * shape.iter().product::<usize>()],
        };
        let view = TensorView::new(dtype, shape.to_vec(), &bytes).expect("the sizes agree");
        safetensors::serialize([(name, view)], None).expect("a file can be made")
    }

    fn check_fault(bytes: &[u8], expected: &str) {
        let fault = Latents::parse(bytes, SIZE).err().expect("must be refused");
        assert!(fault.contains(expected), "{fault}");
    }

    #[test]
    fn noise_of_the_right_shape_is_taken() {
        let latents = Latents::parse(&file(TENSOR, Dtype::F32, &[1, 4, 2, 4], 0.5), SIZE).expect("is sound");
        assert_eq!(latents.tensor.dims(), [1, 4, 2, 4]);
        assert_eq!(latents.sha256.len(), 64);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        check_fault(b"PK\x03\x04", "is truncated or is no safetensors file");
        check_fault(&file("noise", Dtype::F32, &[1, 4, 2, 4], 0.0), "holds no tensor `latents`; it holds: noise");
        check_fault(
            &file(TENSOR, Dtype::F32, &[1, 4, 4, 2], 0.0),
            "is F32 [1, 4, 4, 2], F32 [1, 4, 2, 4] is needed for this size",
        );
        check_fault(&file(TENSOR, Dtype::F16, &[1, 4, 2, 4], 0.0), "is F16 [1, 4, 2, 4]");
        check_fault(&file(TENSOR, Dtype::F32, &[1, 4, 2, 4], f32::NAN), "holds NaN at element 0");
    }
}
