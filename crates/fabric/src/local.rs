//! Ranks of one process: a tensor is handed over as it is, shared and never encoded.
//!
//! There is no credit to wait for, since nothing is copied: what is in flight is memory its sender made anyway.

use std::sync::Arc;
use std::time::Duration;

use plan::{Epoch, Rank};

use crate::seat::Seat;
use crate::{Fabric, FabricError, Payload, Tag};

/// All ranks of one epoch, in one process.
pub struct Group {
    epoch: Epoch,
    silence: Duration,
    seats: Arc<[Seat]>,
}

impl Group {
    /// A group of `n_ranks`; a wait ends when the peer sent nothing for `silence`.
    pub fn new(epoch: Epoch, n_ranks: usize, silence: Duration) -> Self {
        let seats = (0..n_ranks).map(|_| Seat::new(epoch, n_ranks)).collect();
        Self { epoch, silence, seats }
    }

    /// Every rank's view, in rank order.
    pub fn fabrics(&self) -> Vec<Arc<dyn Fabric>> {
        let view = |rank_idx: usize| -> Arc<dyn Fabric> {
            let rank = Rank(u16::try_from(rank_idx).unwrap_or(u16::MAX));
            Arc::new(Local { epoch: self.epoch, rank, silence: self.silence, seats: self.seats.clone() })
        };
        (0..self.seats.len()).map(view).collect()
    }

    /// Ends all waits of all ranks at once and forgets what is in flight.
    pub fn abort(&self) {
        self.seats.iter().for_each(Seat::abort);
    }
}

/// One rank's view of a [`Group`].
struct Local {
    epoch: Epoch,
    rank: Rank,
    silence: Duration,
    seats: Arc<[Seat]>,
}

impl Local {
    fn own(&self) -> &Seat {
        &self.seats[usize::from(self.rank.0)]
    }
}

impl Fabric for Local {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn n_ranks(&self) -> usize {
        self.seats.len()
    }

    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn send(&self, to: Rank, tag: Tag, payload: Payload) -> Result<(), FabricError> {
        let seat = self.seats.get(usize::from(to.0)).ok_or_else(|| self.own().no_such_rank(to))?;
        if seat.is_aborted() {
            return Err(FabricError::Aborted { epoch: self.epoch });
        }
        seat.put(self.rank, tag, Ok(payload));
        Ok(())
    }

    fn recv(&self, from: Rank, tag: Tag) -> Result<Payload, FabricError> {
        self.own().recv(from, tag, self.silence, || None)
    }
}
