//! Most memory in use: this process's as Linux tells it, or on a GPU its driver's.

use model::Place;

/// Begins a new peak; gives what is in use now, if the system tells.
pub(super) fn restart_peak(place: &Place) -> Option<u64> {
    if !place.device().is_cpu() {
        return place.restart_peak();
    }
    // `5` resets the peak and nothing else (proc(5)).
    std::fs::write("/proc/self/clear_refs", "5").ok()?;
    field("VmRSS:")
}

/// The most in use since the last restart.
pub(super) fn peak(place: &Place) -> Option<u64> {
    if place.device().is_cpu() { field("VmHWM:") } else { place.peak_bytes() }
}

fn field(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
