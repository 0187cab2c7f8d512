//! Whether a part fits into the worker's memory, or its GPU's: counted before it begins, and compared with what it took when it is done.

use machine::Memory;
use model::Place;
use plan::{Assignment, Footprint, ModelSpec, Share};

/// A part's need, and what was held before it.
pub(crate) struct Room {
    need_bytes: u64,
    held_bytes: Option<u64>,
}

impl Room {
    /// Passes if the part fits.
    ///
    /// # Errors
    /// The need and what is free, in words.
    pub(crate) fn check(place: &Place, spec: &ModelSpec, assignment: &Assignment) -> Result<Self, String> {
        let Assignment { request, mesh, rank, .. } = assignment;
        let size = request.size;
        let share = Share::of(mesh, *rank, request.is_guided());
        let footprint = Footprint::of(spec, size, share, place.value_bytes());
        if place.device().is_cpu() {
            let needed = footprint.beside_weights_bytes(place.value_bytes());
            let told =
                |shortage| format!("{size} needs {shortage}: choose a smaller size, more workers, or free memory");
            Memory::measure().check(needed).map_err(told)?;
        }
        let need_bytes = u64::try_from(footprint.on_gpu_bytes()).unwrap_or(u64::MAX);
        let advice = "choose a smaller size, more workers, or stop what else uses the GPU";
        place.check_room(need_bytes).map_err(|error| error.told(&format!("{size} does not fit"), advice))?;
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
