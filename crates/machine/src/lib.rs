//! What this process may use of the machine it runs on: memory, processors, connections.
//!
//! Memory is the least of what the system has, what control groups allow (`group.rs`) and what `ulimit -v` allows; what to do
//! where there are no files for connections is in `refusals.rs`. Leaves out GPUs, and what a picture needs: that is `plan`'s
//! arithmetic.
#![forbid(unsafe_code)]

mod group;
mod refusals;

use std::path::Path;

use sysinfo::System;

pub use refusals::Refusals;

/// Memory this process may fill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// What there is in all, for this process and those it shares it with; zero if the system does not tell.
    pub total_bytes: u64,
    /// What of it can be filled now. Files that are merely cached give way, so they do not count as used; swap does not
    /// count at all.
    pub available_bytes: u64,
    /// What holds this process to less than the machine has.
    pub limit: Option<Limit>,
}

/// A limit below what the machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Bytes it allows to all who share it.
    pub bytes: u64,
    /// Who sets it, such as `control group /sys/fs/cgroup/batch`.
    pub by: String,
}

/// Less memory than needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of memory, {} is available{}", readable(*need_bytes), readable(memory.available_bytes.into()), memory.because())]
pub struct Shortage {
    /// What is needed.
    pub need_bytes: u128,
    /// What there is.
    pub memory: Memory,
}

impl Memory {
    /// A machine that says nothing: all is held to fit.
    pub const UNKNOWN: Self = Self { total_bytes: 0, available_bytes: 0, limit: None };

    /// What there is at this moment.
    pub fn measure() -> Self {
        let mut system = System::new();
        system.refresh_memory();
        let (total_bytes, available_bytes) = (system.total_memory(), system.available_memory());
        Self::under(Path::new("/"), Self { total_bytes, available_bytes, limit: None })
    }

    /// What is left of `machine`'s memory to a process that sees `/proc` and its mounts below `root`.
    fn under(root: &Path, machine: Self) -> Self {
        let mut memory = machine;
        for level in group::memory(root) {
            memory.limit(level.limit_bytes, level.used_bytes, || format!("control group {}", level.name));
        }
        if let Some(limit_bytes) = address_space_bytes(root) {
            memory.limit(limit_bytes, 0, || "ulimit -v".to_owned());
        }
        memory
    }

    fn limit(&mut self, limit_bytes: u64, used_bytes: u64, by: impl FnOnce() -> String) {
        let left_bytes = limit_bytes.saturating_sub(used_bytes);
        // A limit above what the machine has allows all of it: version 1 writes "none" as some huge number.
        if limit_bytes >= self.total_bytes && left_bytes >= self.available_bytes && self.total_bytes > 0 {
            return;
        }
        if self.limit.is_none() || left_bytes < self.available_bytes {
            self.limit = Some(Limit { bytes: limit_bytes, by: by() });
        }
        let least = |now: u64, limit: u64| if self.total_bytes == 0 { limit } else { now.min(limit) };
        self.available_bytes = least(self.available_bytes, left_bytes);
        self.total_bytes = least(self.total_bytes, limit_bytes);
    }

    /// Passes if `need_bytes` can be filled now, or if the system does not tell.
    ///
    /// # Errors
    /// The need, what is available and what limits it.
    pub fn check(&self, need_bytes: u128) -> Result<(), Shortage> {
        if self.total_bytes == 0 || need_bytes <= u128::from(self.available_bytes) {
            return Ok(());
        }
        Err(Shortage { need_bytes, memory: self.clone() })
    }

    /// Why there is not more, in brackets; nothing if that is all the machine has.
    fn because(&self) -> String {
        let limit = self.limit.as_ref();
        limit.map(|limit| format!(" ({} allows {})", limit.by, readable(limit.bytes.into()))).unwrap_or_default()
    }
}

/// Processors this process may keep busy: those it may run on, as far as its control groups give it time for.
pub fn n_processors() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    group::n_processors(Path::new("/")).map_or(allowed, |quota| quota.min(allowed))
}

/// The limit that `ulimit -v` sets, if there is one.
fn address_space_bytes(root: &Path) -> Option<u64> {
    let limits = std::fs::read_to_string(root.join("proc/self/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes in the unit people compare memory in.
pub fn readable(bytes: u128) -> String {
    const MIB: u128 = 1 << 20;
    const GIB: u128 = 1 << 30;
    // An f64 holds any number of bytes to far more digits than are shown.
    if bytes < GIB {
        format!("{:.1} MiB", bytes as f64 / MIB as f64)
    } else {
        format!("{:.1} GiB", bytes as f64 / GIB as f64)
    }
}

#[cfg(test)]
mod tests;
