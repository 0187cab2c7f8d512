//! How much memory there is, and whether a picture fits in it.
//!
//! The need itself is `plan::Footprint`'s; this file asks the system what it can give.

use plan::{Footprint, ImageSize, ModelSpec, Share};
use sysinfo::System;

/// Memory of this machine, or of the part of it this process may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) total_bytes: u64,
    pub(crate) available_bytes: u64,
}

impl Memory {
    /// What there is at this moment; zero in total if the system does not tell.
    pub(crate) fn measure() -> Self {
        let mut system = System::new();
        system.refresh_memory();
        let mut memory = Self { total_bytes: system.total_memory(), available_bytes: system.available_memory() };
        if let Some(group) = system.cgroup_limits() {
            // Files the group has cached count as used, but give way; what processes hold does not.
            memory.limit(group.total_memory, group.rss);
        }
        if let Some(limit_bytes) = address_space_bytes() {
            memory.limit(limit_bytes, 0);
        }
        memory
    }

    fn limit(&mut self, limit_bytes: u64, used_bytes: u64) {
        self.total_bytes = self.total_bytes.min(limit_bytes);
        self.available_bytes = self.available_bytes.min(limit_bytes.saturating_sub(used_bytes));
    }

    /// Refuses a picture that needs more than there is.
    pub(crate) fn check(&self, spec: &ModelSpec, size: ImageSize, weights_bytes: u64) -> Result<(), String> {
        let footprint = Footprint::of(spec, size, Share::whole(spec, size), size_of::<f32>() as u64);
        let need_bytes = footprint.on_cpu_bytes(weights_bytes);
        if self.total_bytes == 0 || need_bytes <= u128::from(self.available_bytes) {
            return Ok(());
        }
        Err(format!(
            "{size} needs {} of memory, {} is available: choose a smaller --size or free memory",
            readable(need_bytes),
            readable(self.available_bytes.into())
        ))
    }
}

/// The limit that `ulimit -v` sets, if there is one.
fn address_space_bytes() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes in the unit people compare memory in.
pub(crate) fn readable(bytes: u128) -> String {
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
mod tests {
    use plan::{DitSpec, TextSpec, VaeSpec};

    use super::*;

    fn check(size: ImageSize, available_bytes: u64) -> Result<(), String> {
        let spec = ModelSpec {
            dit: DitSpec {
                depth: 2,
                heads: 2,
                head_width: 8,
                caption_width: 16,
                sample_cells: 16,
                interpolation: 1.0,
                kv_compress: None,
            },
            vae: VaeSpec {
                widths: vec![16, 32, 64, 64],
                layers_per_block: 1,
                groups: 8,
                scaling_factor: 1.0,
                shift_factor: 0.0,
                latent_channels: 4,
                has_post_quant_conv: true,
                has_mid_attention: true,
            },
            text: TextSpec { width: 16, depth: 1, vocabulary: 100 },
        };
        Memory { total_bytes: 1 << 40, available_bytes }.check(&spec, size, 1 << 30)
    }

    #[test]
    fn a_picture_that_does_not_fit_is_refused_with_the_need_and_what_there_is() {
        let size = ImageSize { width_px: 1024, height_px: 1024 };
        assert_eq!(check(size, 16 << 30), Ok(()));
        let message = check(size, 1 << 30).expect_err("must be refused");
        assert!(message.starts_with("1024x1024 needs 1."), "{message}");
        assert!(message.contains("1.0 GiB is available"), "{message}");
    }

    #[test]
    fn the_largest_size_is_refused_too() {
        let size = ImageSize { width_px: u32::MAX - 15, height_px: u32::MAX - 15 };
        assert!(check(size, u64::MAX).is_err());
    }
}
