//! Numbers as memory: a payload's bytes without a copy, and the memory an arriving payload is written to.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use half::bf16;

use crate::spares::Spares;
use crate::{Bf16Values, Payload};

#[cfg(target_endian = "big")]
compile_error!("payloads travel as they lie in memory, which must be little-endian");

/// What the numbers of a payload are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dtype {
    Bytes,
    F32,
    F64,
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::Bytes => 1,
            Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

struct F32Memory(Arc<Vec<f32>>);

impl AsRef<[u8]> for F32Memory {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct F64Memory(Arc<Vec<f64>>);

impl AsRef<[u8]> for F64Memory {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

struct Bf16Memory(Bf16Values);

impl AsRef<[u8]> for Bf16Memory {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice((*self.0).as_ref())
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::F32(ours), Self::F32(others)) => ours == others,
            (Self::F64(ours), Self::F64(others)) => ours == others,
            (Self::Bf16(ours), Self::Bf16(others)) => (**ours).as_ref() == (**others).as_ref(),
            (Self::Bytes(ours), Self::Bytes(others)) => ours == others,
            _ => false,
        }
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {} bytes", self.dtype(), self.n_bytes())
    }
}

impl Payload {
    /// Bytes of memory the numbers fill.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(values.as_slice()),
            Self::F64(values) => size_of_val(values.as_slice()),
            Self::Bf16(values) => size_of_val((**values).as_ref()),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    pub(crate) fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::F64(_) => Dtype::F64,
            Self::Bf16(_) => Dtype::Bf16,
            Self::Bytes(_) => Dtype::Bytes,
        }
    }

    /// The numbers' own memory, shared and not copied.
    pub(crate) fn into_memory(self) -> Bytes {
        match self {
            Self::F32(values) => Bytes::from_owner(F32Memory(values)),
            Self::F64(values) => Bytes::from_owner(F64Memory(values)),
            Self::Bf16(values) => Bytes::from_owner(Bf16Memory(values)),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// Memory of the announced length that arriving bytes are written to in order.
pub(crate) enum Destination {
    Bytes(Vec<u8>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bf16(Vec<bf16>),
}

impl Destination {
    /// Memory for `n_bytes`, which are whole numbers of `dtype`: the caller has checked that, and the limit.
    pub(crate) fn new(dtype: Dtype, n_bytes: usize, spares: &Spares) -> Self {
        let n = n_bytes / dtype.size_bytes();
        match dtype {
            Dtype::Bytes => Self::Bytes(vec![0; n]),
            Dtype::F32 => Self::F32(spares.of_f32.take(n)),
            Dtype::F64 => Self::F64(vec![0.0; n]),
            Dtype::Bf16 => Self::Bf16(spares.of_bf16.take(n)),
        }
    }

    pub(crate) fn memory(&mut self) -> &mut [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::F32(values) => bytemuck::cast_slice_mut(values),
            Self::F64(values) => bytemuck::cast_slice_mut(values),
            Self::Bf16(values) => bytemuck::cast_slice_mut(values),
        }
    }

    pub(crate) fn into_payload(self, spares: &Spares) -> Payload {
        match self {
            Self::Bytes(bytes) => Payload::Bytes(bytes.into()),
            Self::F32(values) => Payload::F32(spares.of_f32.lend(values)),
            Self::F64(values) => Payload::F64(Arc::new(values)),
            Self::Bf16(values) => Payload::Bf16(spares.of_bf16.lend(values)),
        }
    }
}
