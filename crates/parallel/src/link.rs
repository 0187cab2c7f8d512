//! A rank's fabric as tensors see it: values in and out, in the type they are computed in, and the first fault remembered.
//!
//! The model's seams speak candle's errors; what the fabric said would be lost in them, so it is kept here. Values that
//! are not finite do not leave their rank: others would find them too, and nobody could say whose they were.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use fabric::{Fabric, FabricError, Payload};
use model::place::{Gathering, Leaving, Values, leave};
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

    /// Adds rows that came from rank `from`.
    pub(crate) fn add(&self, all: &mut Gathering, from: Rank, came: &Payload) -> Result<()> {
        match came {
            Payload::F32(values) if !all.takes_bf16() => all.add_f32(values),
            Payload::Bf16(values) if all.takes_bf16() => all.add_bf16((**values).as_ref()),
            other => self.wrong_type(from, if all.takes_bf16() { "bf16 values" } else { "f32 values" }, other),
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

/// Tensors to be sent: at once if they are in the host's memory, and what a GPU still copies in [`Self::send_late`], when
/// it was given what it computes meanwhile.
pub(crate) struct Departures<'a> {
    link: &'a Link<'a>,
    late: Vec<(Vec<Rank>, Tag, Leaving)>,
}

impl<'a> Departures<'a> {
    pub(crate) fn new(link: &'a Link<'a>) -> Self {
        Self { link, late: Vec::new() }
    }

    /// Has `x` leave for the ranks `to`.
    pub(crate) fn put(&mut self, to: Vec<Rank>, tag: Tag, x: &Tensor) -> Result<()> {
        let leaving = leave(x)?;
        if leaving.is_there() {
            return self.send(&to, tag, leaving);
        }
        self.late.push((to, tag, leaving));
        Ok(())
    }

    /// Sends what was not there at once.
    pub(crate) fn send_late(mut self) -> Result<()> {
        let late = std::mem::take(&mut self.late);
        late.into_iter().try_for_each(|(to, tag, leaving)| self.send(&to, tag, leaving))
    }

    fn send(&self, to: &[Rank], tag: Tag, leaving: Leaving) -> Result<()> {
        let values = when_there(leaving)?;
        to.iter().try_for_each(|to| self.link.send(*to, tag, &values))
    }
}

/// The values of `x`, from wherever it lies, ready to travel.
pub(crate) fn payload(x: &Tensor) -> Result<Payload> {
    when_there(leave(x)?)
}

/// Values that left, once they are there.
fn when_there(leaving: Leaving) -> Result<Payload> {
    Ok(match leaving.wait()? {
        Values::F32(values) => Payload::F32(Arc::new(values)),
        Values::Bf16(values) => Payload::Bf16(values),
    })
}
