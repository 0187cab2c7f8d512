//! The control groups a process is in, versions 1 and 2: what each of them and those above it allow.
//!
//! `/proc/self/cgroup` names the process's group in each hierarchy, `/proc/self/mountinfo` where hierarchies are mounted and
//! which part of each. Whoever has a mount or a namespace of its own, as a container does, sees its group at the root of a
//! mount; whoever has none, as under Slurm or systemd, sits deeper, and all groups up to the root bind it. What cannot be read
//! sets no limit.

mod mount;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mount::Mount;

/// What a group allows all its processes.
pub(crate) struct MemoryLevel {
    /// Its folder.
    pub(crate) name: String,
    pub(crate) limit_bytes: u64,
    /// What its processes hold and cannot be made to give back.
    pub(crate) used_bytes: u64,
}

/// Memory limits of the process's groups, those above them included.
pub(crate) fn memory(root: &Path) -> Vec<MemoryLevel> {
    /// The limit at which processes are killed, and that of version 2 at which they are slowed down until they stand still.
    const LIMITS: [&str; 3] = ["memory.max", "memory.high", "memory.limit_in_bytes"];
    const USAGES: [&str; 2] = ["memory.current", "memory.usage_in_bytes"];
    let level = |dir: PathBuf| {
        let limit_bytes = LIMITS.iter().filter_map(|file| number(&dir.join(file))).min()?;
        let usage = USAGES.iter().find_map(|file| number(&dir.join(file))).unwrap_or(0);
        let used_bytes = usage.saturating_sub(reclaimable_bytes(&dir));
        let name = dir.strip_prefix(root).map_or_else(|_| dir.clone(), |dir| Path::new("/").join(dir));
        Some(MemoryLevel { name: name.display().to_string(), limit_bytes, used_bytes })
    };
    folders(root, "memory").into_iter().filter_map(level).collect()
}

/// Processors' worth of time the groups give, if any of them sets a limit; one at least.
pub(crate) fn n_processors(root: &Path) -> Option<usize> {
    let whole = |quota: u64, period: u64| usize::try_from(quota / period.max(1)).unwrap_or(usize::MAX).max(1);
    let limit = |dir: PathBuf| {
        let second = fs::read_to_string(dir.join("cpu.max")).ok().and_then(|text| {
            let (quota, period) = text.trim().split_once(' ')?;
            Some(whole(quota.parse().ok()?, period.parse().ok()?))
        });
        // Version 1 writes -1 for none.
        let first = || Some(whole(number(&dir.join("cpu.cfs_quota_us"))?, number(&dir.join("cpu.cfs_period_us"))?));
        second.or_else(first)
    };
    folders(root, "cpu").into_iter().filter_map(limit).min()
}

/// File pages and kernel objects that the kernel takes back before it kills anybody. Pages of tmpfs are not among them.
fn reclaimable_bytes(dir: &Path) -> u64 {
    let text = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let fields: BTreeMap<&str, u64> = text
        .lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name, value.trim().parse().ok()?))
        })
        .collect();
    // Version 1 counts the groups below in fields of their own.
    let field = |name: &str| fields.get(format!("total_{name}").as_str()).or_else(|| fields.get(name)).unwrap_or(&0);
    ["inactive_file", "active_file", "slab_reclaimable"].map(field).into_iter().fold(0, |sum, n| sum.saturating_add(*n))
}

/// The folders of the process's groups that have a say about `controller`, each from the bottom up.
fn folders(root: &Path, controller: &str) -> Vec<PathBuf> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mounts = fs::read_to_string(root.join("proc/self/mountinfo")).unwrap_or_default();
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let mut found = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path, where version 2 names no controllers (cgroups(7)).
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let is_second = controllers.is_empty();
        if !is_second && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        let of_hierarchy = |mount: &&Mount| {
            if is_second { mount.is_cgroup2() } else { mount.is_cgroup_with(controller) }
        };
        for mount in mounts.iter().filter(of_hierarchy) {
            let top = root.join(mount.point.strip_prefix("/").unwrap_or(&mount.point));
            let mut dir = top.join(mount.below_root(Path::new(path)));
            let mut is_own = true;
            loop {
                // A group of version 1 may leave those below it to themselves.
                let counts = is_own || number(&dir.join("memory.use_hierarchy")) != Some(0);
                if counts && !found.contains(&dir) {
                    found.push(dir.clone());
                }
                if dir == top || !dir.pop() {
                    break;
                }
                is_own = false;
            }
        }
    }
    found
}

/// A file with one number in it; `max` and -1 are none.
fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
