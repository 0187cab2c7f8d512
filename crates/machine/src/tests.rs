//! Fabricated trees of control groups, as machines and containers show them.

use std::fs;

use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MACHINE: Memory = Memory { total_bytes: 24 * GIB, available_bytes: 22 * GIB, limit: None };
/// What version 1 writes where there is no limit.
const HUGE: &str = "9223372036854771712\n";

/// A file system of which only `/proc` and control groups matter.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(groups: &str, mounts: &str) -> Self {
        let tree = Self(tempfile::tempdir().expect("a folder can be made"));
        tree.write("proc/self/cgroup", groups).write("proc/self/mountinfo", mounts)
    }

    fn write(self, path: &str, text: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("lies in a folder")).expect("a folder can be made");
        fs::write(path, text).expect("a file can be written");
        self
    }

    /// A group of version 2 that uses 150 MiB, 100 of them files.
    fn second(self, dir: &str, limit: &str) -> Self {
        self.write(&format!("{dir}/memory.max"), limit)
            .write(&format!("{dir}/memory.high"), "max\n")
            .write(&format!("{dir}/memory.current"), &format!("{}\n", 150 * MIB))
            .write(
                &format!("{dir}/memory.stat"),
                &format!(
                    "anon {}\nfile {}\ninactive_file {}\nactive_file {}\n",
                    50 * MIB,
                    100 * MIB,
                    60 * MIB,
                    40 * MIB
                ),
            )
    }

    /// The same of version 1, all of it in groups below.
    fn first(self, dir: &str, limit: &str) -> Self {
        self.write(&format!("{dir}/memory.limit_in_bytes"), limit)
            .write(&format!("{dir}/memory.usage_in_bytes"), &format!("{}\n", 150 * MIB))
            .write(
                &format!("{dir}/memory.stat"),
                &format!("inactive_file 0\ntotal_inactive_file {}\ntotal_active_file {}\n", 60 * MIB, 40 * MIB),
            )
            .write(&format!("{dir}/memory.use_hierarchy"), "1\n")
    }

    fn memory(&self) -> Memory {
        Memory::under(self.0.path(), MACHINE)
    }

    fn processors(&self) -> Option<usize> {
        group::n_processors(self.0.path())
    }
}

fn check(tree: &Tree, limit_bytes: u64, name: &str) {
    let memory = tree.memory();
    let by = format!("control group {name}");
    assert_eq!(memory.limit, Some(Limit { bytes: limit_bytes, by }));
    assert_eq!((memory.total_bytes, memory.available_bytes), (limit_bytes, limit_bytes - 50 * MIB));
}

const SECOND: &str = "25 1 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
const FIRST: &str = "31 25 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
    35 25 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n";

#[test]
fn a_group_deep_in_the_hierarchy_is_found_from_the_root_of_the_machine() {
    for limit_bytes in [400 * MIB, 2 * GIB, 8 * GIB] {
        let limit = format!("{limit_bytes}\n");
        let own = Tree::new("0::/system.slice/fresco.service\n", SECOND)
            .second("sys/fs/cgroup/system.slice", "max\n")
            .second("sys/fs/cgroup/system.slice/fresco.service", &limit);
        check(&own, limit_bytes, "/sys/fs/cgroup/system.slice/fresco.service");
        let parent = Tree::new("0::/slurm/job_7/step_0\n", SECOND)
            .second("sys/fs/cgroup/slurm/job_7", &limit)
            .second("sys/fs/cgroup/slurm/job_7/step_0", "max\n");
        check(&parent, limit_bytes, "/sys/fs/cgroup/slurm/job_7");
        let own = Tree::new("4:memory:/slurm/uid_1\n3:cpu,cpuacct:/\n", FIRST)
            .first("sys/fs/cgroup/memory", HUGE)
            .first("sys/fs/cgroup/memory/slurm", HUGE)
            .first("sys/fs/cgroup/memory/slurm/uid_1", &limit);
        check(&own, limit_bytes, "/sys/fs/cgroup/memory/slurm/uid_1");
        let parent = Tree::new("4:memory:/slurm/uid_1\n0::/\n", FIRST)
            .first("sys/fs/cgroup/memory", HUGE)
            .first("sys/fs/cgroup/memory/slurm", &limit)
            .first("sys/fs/cgroup/memory/slurm/uid_1", HUGE);
        check(&parent, limit_bytes, "/sys/fs/cgroup/memory/slurm");
    }
}

#[test]
fn a_container_finds_its_group_at_the_top_of_its_mount() {
    let limit = format!("{}\n", 2 * GIB);
    let mounted = |root: &str, kind: &str, options: &str| {
        format!(
            "9 8 0:3 / / rw - overlay overlay rw\n35 25 0:32 {root} /sys/fs/cgroup rw master:1 - {kind} cgroup {options}\n"
        )
    };
    // A namespace of its own; the same entered from outside; a mount of its own; groups named from a root that is not seen.
    for (groups, root) in [
        ("0::/\n", "/"),
        ("0::/../other\n", "/"),
        ("0::/docker/abc\n", "/docker/abc"),
        ("0::/docker/abc\n", "/"),
        ("0::/\n", "/../.."),
    ] {
        let tree = Tree::new(groups, &mounted(root, "cgroup2", "rw")).second("sys/fs/cgroup", &limit);
        check(&tree, 2 * GIB, "/sys/fs/cgroup");
    }
    let tree = Tree::new("4:memory:/kubepods/pod1/c2\n", &mounted("/kubepods/pod1", "cgroup", "rw,memory"))
        .first("sys/fs/cgroup", HUGE)
        .first("sys/fs/cgroup/c2", &limit);
    check(&tree, 2 * GIB, "/sys/fs/cgroup/c2");
}

#[test]
fn where_both_versions_are_mounted_the_one_with_the_limit_binds() {
    let mounts = format!("{FIRST}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
    let groups = "4:memory:/a\n3:cpu,cpuacct:/a\n1:name=systemd:/a\n0::/a\n";
    let tree = Tree::new(groups, &mounts)
        .write("sys/fs/cgroup/unified/a/cgroup.procs", "1\n")
        .first("sys/fs/cgroup/memory/a", &format!("{}\n", 400 * MIB));
    check(&tree, 400 * MIB, "/sys/fs/cgroup/memory/a");
}

#[test]
fn the_tightest_of_several_limits_is_the_one_that_leaves_least() {
    let tree = Tree::new("0::/a/b\n", SECOND)
        .second("sys/fs/cgroup/a/b", &format!("{GIB}\n"))
        .second("sys/fs/cgroup/a", &format!("{}\n", 2 * GIB))
        // The group above is nearly full of what others hold.
        .write("sys/fs/cgroup/a/memory.current", &format!("{}\n", 2 * GIB));
    let memory = tree.memory();
    assert_eq!(memory.available_bytes, 100 * MIB, "2 GiB less what is held there beside 100 MiB of files");
    assert_eq!(memory.limit.expect("there is one").by, "control group /sys/fs/cgroup/a");
    assert_eq!(memory.total_bytes, GIB);
    let soft = Tree::new("0::/a\n", SECOND)
        .second("sys/fs/cgroup/a", &format!("{}\n", 2 * GIB))
        .write("sys/fs/cgroup/a/memory.high", &format!("{GIB}\n"));
    check(&soft, GIB, "/sys/fs/cgroup/a");
}

#[test]
fn what_is_no_limit_or_cannot_be_read_limits_nothing() {
    let none = [
        Tree::new("", ""),
        Tree::new("0::/a\n", SECOND),
        Tree::new("0::/a\n", SECOND).second("sys/fs/cgroup/a", "max\n"),
        Tree::new("4:memory:/a\n", FIRST).first("sys/fs/cgroup/memory/a", HUGE),
        Tree::new("4:memory:/a\n", FIRST).first("sys/fs/cgroup/memory/a", &u64::MAX.to_string()),
        Tree::new("nonsense\n4:memory\n:::\n", "nonsense\n - \n1 2 3 - cgroup2\n"),
        // A limit of another hierarchy, of another group.
        Tree::new("3:cpu,cpuacct:/a\n", FIRST).first("sys/fs/cgroup/memory/a", "1000\n"),
        Tree::new("4:memory:/a\n", FIRST).first("sys/fs/cgroup/memory/b", "1000\n"),
        // A group of version 1 above, which does not count those below it.
        Tree::new("4:memory:/a/b\n", FIRST)
            .first("sys/fs/cgroup/memory/a", "1000\n")
            .write("sys/fs/cgroup/memory/a/memory.use_hierarchy", "0\n"),
    ];
    for (idx, tree) in none.iter().enumerate() {
        assert_eq!(tree.memory(), MACHINE, "tree {idx}");
    }
}

#[test]
fn a_mount_point_with_a_space_is_read_as_it_is_meant() {
    let mounts = "25 1 0:23 / /my\\040groups rw - cgroup2 cgroup2 rw\n";
    let tree = Tree::new("0::/a\n", mounts).second("my groups/a", &format!("{GIB}\n"));
    check(&tree, GIB, "/my groups/a");
}

#[test]
fn the_limit_of_the_address_space_counts_too() {
    let limits = format!("Limit Soft Hard Units\nMax address space         {}  unlimited  bytes\n", 3 * GIB);
    let tree = Tree::new("", "").write("proc/self/limits", &limits);
    let limit = Some(Limit { bytes: 3 * GIB, by: "ulimit -v".into() });
    assert_eq!(tree.memory(), Memory { total_bytes: 3 * GIB, available_bytes: 3 * GIB, limit });
}

#[test]
fn processors_are_counted_by_the_time_that_groups_give() {
    let second = |own: &str, above: &str| {
        let tree = Tree::new("0::/a/b\n", SECOND).write("sys/fs/cgroup/a/b/cpu.max", own);
        tree.write("sys/fs/cgroup/a/cpu.max", above).processors()
    };
    assert_eq!(second("max 100000\n", "max 100000\n"), None);
    assert_eq!(second("250000 100000\n", "max 100000\n"), Some(2));
    assert_eq!(second("400000 100000\n", "150000 100000\n"), Some(1));
    assert_eq!(second("1000 100000\n", "max 100000\n"), Some(1), "less than one is one");
    let first = |quota: &str| {
        let tree = Tree::new("3:cpu,cpuacct:/a\n", FIRST).write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", quota);
        tree.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n").processors()
    };
    assert_eq!((first("-1\n"), first("300000\n")), (None, Some(3)));
}

#[test]
fn a_shortage_says_the_need_what_there_is_and_what_limits_it() {
    let limit = Some(Limit { bytes: 400 * MIB, by: "control group /a".into() });
    let memory = Memory { total_bytes: 400 * MIB, available_bytes: 398 * MIB, limit };
    assert_eq!(memory.check(398 << 20), Ok(()));
    let shortage = memory.check(802 << 20).expect_err("it is too much");
    assert_eq!(shortage.to_string(), "802.0 MiB of memory, 398.0 MiB is available (control group /a allows 400.0 MiB)");
    let shortage = MACHINE.check(1 << 40).expect_err("it is too much");
    assert_eq!(shortage.to_string(), "1024.0 GiB of memory, 22.0 GiB is available");
    assert_eq!(Memory::UNKNOWN.check(1 << 40), Ok(()));
}
