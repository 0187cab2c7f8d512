//! A rank's fabric as tensors see it: values in and out, in the type they are computed in, and the first fault remembered.
//!
//! The model's seams speak candle's errors; what the fabric said would be lost in them, so it is kept here. Values that
//! are not finite do not leave their rank: others would find them too, and nobody could say whose they were.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use fabric::{Fabric, FabricError, Payload};
use model::Place;
use model::place::{Leaving, Values, leave};
use plan::Rank;
use plan::program::Tag;

/// One rank's way to the others.
pub struct Link<'a> {
    fabric: &'a dyn Fabric,
    fault: Mutex<Option<LinkFault>>,
}

/// Why a tensor did not get through.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LinkFault {
    /// The fabric's doing.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// This rank's own: it has computed what must not leave.
    #[error("a tensor to be sent holds a value that is not finite")]
    NotFinite(Tag),
}

impl<'a> Link<'a> {
    /// Over `fabric`.
    pub fn new(fabric: &'a dyn Fabric) -> Self {
        Self { fabric, fault: Mutex::default() }
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.fabric.rank()
    }

    /// The first thing that went wrong on the way, if anything did.
    pub(crate) fn fault(&self) -> Option<LinkFault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends the values of `x` to rank `to`, if all of them are finite.
    pub(crate) fn send(&self, to: Rank, tag: Tag, x: &Payload) -> Result<()> {
        let is_finite = match x {
            Payload::F32(values) => kernels::all_finite(values),
            Payload::F64(values) => values.iter().all(|value| value.is_finite()),
            Payload::Bf16(values) => kernels::all_finite_bf16((**values).as_ref()),
            Payload::Bytes(_) => true,
        };
        if !is_finite {
            return self.keep(Err(LinkFault::NotFinite(tag)));
        }
        self.keep(self.fabric.send(to, fabric::Tag(tag.pack()), x.clone()))
    }

    /// Awaits f32 values.
    pub(crate) fn recv_f32(&self, from: Rank, tag: Tag) -> Result<Arc<Vec<f32>>> {
        match self.recv(from, tag)? {
            Payload::F32(values) => Ok(values),
            other => self.wrong_type(from, "f32 values", &other),
        }
    }

    /// Awaits bytes.
    pub(crate) fn recv_bytes(&self, from: Rank, tag: Tag) -> Result<bytes::Bytes> {
        match self.recv(from, tag)? {
            Payload::Bytes(values) => Ok(values),
            other => self.wrong_type(from, "bytes", &other),
        }
    }

    /// Awaits values of any type.
    pub(crate) fn recv(&self, from: Rank, tag: Tag) -> Result<Payload> {
        self.keep(self.fabric.recv(from, fabric::Tag(tag.pack())))
    }

    /// What came from rank `from` as rows of `width` values, where and in the type the networks compute.
    pub(crate) fn rows(&self, from: Rank, came: &Payload, width: usize, place: &Place) -> Result<Tensor> {
        match came {
            Payload::F32(values) if !place.sends_bf16() => place.arrive_f32(values, width),
            Payload::Bf16(values) if place.sends_bf16() => place.arrive_bf16((**values).as_ref(), width),
            other => self.wrong_type(from, if place.sends_bf16() { "bf16 values" } else { "f32 values" }, other),
        }
    }

    /// What came from rank `from` as f64 values.
    pub(crate) fn f64_values(&self, from: Rank, came: &Payload) -> Result<Arc<Vec<f64>>> {
        match came {
            Payload::F64(values) => Ok(Arc::clone(values)),
            other => self.wrong_type(from, "f64 values", other),
        }
    }

    fn wrong_type<T>(&self, peer: Rank, expected: &'static str, found: &Payload) -> Result<T> {
        let found = match found {
            Payload::F32(_) => "f32 values",
            Payload::F64(_) => "f64 values",
            Payload::Bf16(_) => "bf16 values",
            Payload::Bytes(_) => "bytes",
        };
        self.keep(Err(LinkFault::from(FabricError::Type { peer, expected, found })))
    }

    fn keep<T>(&self, result: std::result::Result<T, impl Into<LinkFault>>) -> Result<T> {
        result.map_err(|error| {
            let error: LinkFault = error.into();
            let message = error.to_string();
            self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            candle_core::Error::Msg(message)
        })
    }
}

/// The values of `x`, from wherever it lies, ready to travel.
pub(crate) fn payload(x: &Tensor) -> Result<Payload> {
    when_there(leave(x)?)
}

/// Values that left, once they are there.
pub(crate) fn when_there(leaving: Leaving) -> Result<Payload> {
    Ok(match leaving.wait()? {
        Values::F32(values) => Payload::F32(Arc::new(values)),
        Values::Bf16(values) => Payload::Bf16(values),
    })
}
