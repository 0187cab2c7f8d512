//! A rank's fabric as tensors see it: values in and out, in the type they are computed in, and the first fault remembered.
//!
//! The model's seams speak candle's errors; what the fabric said would be lost in them, so it is kept here. Values that
//! are not finite do not leave their rank: others would find them too, and nobody could say whose they were. Rows travel
//! in pieces where they are many, so that no message is larger than a fabric takes.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};
use fabric::{Fabric, FabricError, Payload};
use model::Place;
use model::place::{Gathering, Leaving, Values, leave};
use plan::Rank;
use plan::program::Tag;

use crate::executor::{Watch, Work};
use crate::turn::Held;

/// Bytes of one piece of rows that travel: a good part of a message's limit, and all rows of most pictures.
const PIECE_BYTES: usize = 256 << 20;

/// One rank's way to the others.
pub struct Link<'a> {
    fabric: &'a dyn Fabric,
    /// Who hears that the rank moves, and may break it off; nobody in a measurement.
    watch: Option<&'a dyn Watch>,
    piece_bytes: usize,
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
    /// Whoever watches broke off.
    #[error("cancelled")]
    Cancelled,
}

impl<'a> Link<'a> {
    /// Over `fabric`.
    pub fn new(fabric: &'a dyn Fabric) -> Self {
        Self { fabric, watch: None, piece_bytes: PIECE_BYTES, fault: Mutex::default() }
    }

    /// The same, told to `watch`.
    #[must_use]
    pub fn watched(self, watch: &'a dyn Watch) -> Self {
        Self { watch: Some(watch), ..self }
    }

    /// The same with rows in pieces of at most so many bytes. What arrives does not depend on it.
    #[must_use]
    pub fn with_pieces_of(self, piece_bytes: usize) -> Self {
        Self { piece_bytes, ..self }
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.fabric.rank()
    }

    /// The first thing that went wrong on the way, if anything did.
    pub(crate) fn fault(&self) -> Option<LinkFault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A piece of work is done; an error if whoever watches breaks off.
    pub(crate) fn moved(&self, at: Work) -> Result<()> {
        match self.watch {
            Some(watch) if watch.moved(at).is_break() => self.keep(Err(LinkFault::Cancelled)),
            _ => Ok(()),
        }
    }

    /// Sends the values of `x` to the ranks `to`, if all of them are finite. A send that waits for credit waits without
    /// `turn`.
    pub(crate) fn send(&self, to: &[Rank], tag: Tag, x: &Payload, turn: Option<&mut Held<'_>>) -> Result<()> {
        self.send_piece(to, (tag, 0), x, turn)
    }

    fn send_piece(
        &self,
        to: &[Rank],
        (tag, piece_idx): (Tag, usize),
        x: &Payload,
        mut turn: Option<&mut Held<'_>>,
    ) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        let is_finite = match x {
            Payload::F32(values) => kernels::all_finite(values),
            Payload::F64(values) => values.iter().all(|value| value.is_finite()),
            Payload::Bf16(values) => kernels::all_finite_bf16((**values).as_ref()),
            Payload::Bytes(_) => true,
        };
        if !is_finite {
            return self.keep(Err(LinkFault::NotFinite(tag)));
        }
        let packed = fabric::Tag(tag.pack_piece(piece_idx));
        for to in to {
            if self.keep(self.fabric.try_send(*to, packed, x))? {
                continue;
            }
            let wait = || self.aside(|| self.fabric.send(*to, packed, x.clone()));
            let sent = match &mut turn {
                Some(turn) => turn.aside(wait),
                None => wait(),
            };
            self.keep(sent)?;
        }
        Ok(())
    }

    fn aside<T>(&self, wait: impl FnOnce() -> T) -> T {
        match self.watch {
            Some(watch) => watch.pulse().aside(wait),
            None => wait(),
        }
    }

    /// Rows in one piece of rows of `row_bytes`.
    fn piece_rows(&self, row_bytes: usize) -> usize {
        (self.piece_bytes / row_bytes.max(1)).max(1)
    }

    /// Pieces that `n_rows` rows of `row_bytes` travel in.
    pub(crate) fn n_pieces(&self, n_rows: usize, row_bytes: usize) -> usize {
        n_rows.div_ceil(self.piece_rows(row_bytes)).max(1)
    }

    /// Awaits the rows `tag` of rank `from`, as many as `all` expects of it, and adds them; waits without `turn`.
    pub(crate) fn gather(
        &self,
        all: &mut Gathering,
        (from, tag): (Rank, Tag),
        n_rows: usize,
        turn: &mut Held<'_>,
    ) -> Result<()> {
        for piece_idx in 0..self.n_pieces(n_rows, all.row_bytes()) {
            let packed = fabric::Tag(tag.pack_piece(piece_idx));
            let came = turn.aside(|| self.aside(|| self.fabric.recv(from, packed)));
            let came = self.keep(came)?;
            self.add(all, from, &came)?;
        }
        Ok(())
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
        self.keep(self.aside(|| self.fabric.recv(from, fabric::Tag(tag.pack()))))
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
    late: Vec<(Vec<Rank>, (Tag, usize), Leaving)>,
}

impl<'a> Departures<'a> {
    pub(crate) fn new(link: &'a Link<'a>) -> Self {
        Self { link, late: Vec::new() }
    }

    /// Has the rows `x` leave for the ranks `to`.
    pub(crate) fn put(&mut self, to: &[Rank], tag: Tag, x: &Tensor, turn: &mut Held<'_>) -> Result<()> {
        let n_rows = x.dim(0)?;
        let row_bytes = x.elem_count() / n_rows.max(1) * Place::of(x).value_bytes() as usize;
        let piece_rows = self.link.piece_rows(row_bytes);
        for (piece_idx, first) in (0..n_rows.max(1)).step_by(piece_rows).enumerate() {
            let piece =
                if n_rows <= piece_rows { x.clone() } else { x.narrow(0, first, piece_rows.min(n_rows - first))? };
            let leaving = leave(&piece)?;
            if leaving.is_there() {
                self.link.send_piece(to, (tag, piece_idx), &when_there(leaving)?, Some(&mut *turn))?;
            } else {
                self.late.push((to.to_vec(), (tag, piece_idx), leaving));
            }
        }
        Ok(())
    }

    /// Sends what was not there at once.
    pub(crate) fn send_late(mut self, turn: &mut Held<'_>) -> Result<()> {
        for (to, tag, leaving) in std::mem::take(&mut self.late) {
            self.link.send_piece(&to, tag, &when_there(leaving)?, Some(&mut *turn))?;
        }
        Ok(())
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

#[cfg(test)]
mod tests;
