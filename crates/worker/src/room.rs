//! Whether a part fits on the worker's GPU: counted before it begins, and compared with what it took when it is done.

use model::Place;
use plan::{Assignment, Footprint, ModelSpec, Share};

/// A part's need, and what was held before it.
pub(crate) struct Room {
    need_bytes: u64,
    held_bytes: Option<u64>,
}

impl Room {
    /// Passes if the part fits; a CPU's memory is the system's business.
    ///
    /// # Errors
    /// The need and what is free, in words.
    pub(crate) fn check(place: &Place, spec: &ModelSpec, assignment: &Assignment) -> Result<Self, String> {
        let size = assignment.request.size;
        let footprint = Footprint::of(spec, size, share(assignment), place.value_bytes());
        let need_bytes = u64::try_from(footprint.on_gpu_bytes()).unwrap_or(u64::MAX);
        place.check_room(need_bytes).map_err(|error| {
            format!("{size} does not fit: {error}: choose a smaller size, more workers, or stop what else uses the GPU")
        })?;
        Ok(Self { need_bytes, held_bytes: place.restart_peak() })
    }

    /// Says what the part took, aloud if it was more than counted.
    pub(crate) fn compare(&self, place: &Place, assignment: &Assignment) {
        let (Some(held_bytes), Some(peak_bytes)) = (self.held_bytes, place.peak_bytes()) else { return };
        let [took_mib, counted_mib] = [peak_bytes.saturating_sub(held_bytes), self.need_bytes].map(|bytes| bytes >> 20);
        let (epoch, size) = (assignment.epoch, assignment.request.size);
        if took_mib > counted_mib {
            tracing::warn!(%epoch, %size, took_mib, counted_mib, "a part took more of the gpu's memory than was counted");
        } else {
            tracing::info!(%epoch, %size, took_mib, counted_mib, "a part's memory on the gpu");
        }
    }
}

/// What the assignment's rank has of the picture.
fn share(assignment: &Assignment) -> Share {
    let Assignment { mesh, rank, request, .. } = assignment;
    let decode_rows = mesh.decode_bands().iter().filter(|(of, _)| of == rank).map(|(_, band)| band.n_rows()).sum();
    Share {
        token_rows: mesh.band(*rank).n_rows(),
        n_branches: mesh.branches(*rank, request.is_guided()).len(),
        decode_rows,
    }
}
