//! fresco in a control group of its own, where the tester may make one.
//!
//! All layouts of groups, of both versions and in containers, are tested on fabricated trees by the crate `machine`; here it is
//! shown on this system that a process finds its own. Where no group can be made, the tests say so and show nothing.

use std::fs;
use std::path::{Path, PathBuf};

use crate::desk::{Desk, FRESCO, Run};

/// A control group that goes with the test.
struct Group {
    dir: PathBuf,
}

impl Group {
    /// A group in `parent` with a limit, if there is to be one.
    fn make(parent: &Path, name: &str, limit: Option<&str>) -> Option<Self> {
        let dir = parent.join(name);
        fs::create_dir(&dir).ok()?;
        let group = Self { dir };
        // A folder of another file system is no group.
        group.dir.join("cgroup.procs").exists().then_some(())?;
        if let Some(limit) = limit {
            let set =
                ["memory.max", "memory.limit_in_bytes"].map(|file| fs::write(group.dir.join(file), limit).is_ok());
            set.contains(&true).then_some(())?;
        }
        Some(group)
    }

    /// At the top of the hierarchy of either version.
    fn top(name: &str, limit: Option<&str>) -> Option<Self> {
        let name = format!("fresco-test-{}-{name}", std::process::id());
        let group = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"]
            .into_iter()
            .find_map(|top| Self::make(Path::new(top), &name, limit));
        if group.is_none() {
            println!("no control group can be made here: nothing is shown");
        }
        group
    }

    fn fresco(&self, desk: &Desk, args: &[&str]) -> Run {
        let enter = format!("echo $$ > '{}/cgroup.procs' && exec \"$0\" \"$@\"", self.dir.display());
        Run::of(&mut desk.command("sh", &[&["-c", &enter, FRESCO], args].concat()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.dir));
    }
}

/// What holds for a process in `group`, whose limit of 400 MiB is that of the group called `limited`.
fn check(group: &Group, limited: &Path) {
    let desk = Desk::new();
    let limited = limited.display().to_string();
    let doctor = group.fresco(&desk, &["doctor"]);
    assert!(
        doctor.stdout.contains(&format!("of 400.0 MiB available, limited by control group {limited}")),
        "{doctor:?}"
    );
    let large = ["render", "x", "--size", "2048", "--steps", "1", "--out", "large.png"];
    let refused = ["2048x2048 needs", &format!("control group {limited} allows 400.0 MiB"), "--size"];
    group.fresco(&desk, &large).refused(1, &refused);
    let small = group.fresco(&desk, &["render", "x", "--size", "64", "--steps", "1", "--out", "small.png"]);
    assert_eq!(small.code, Some(0), "{small:?}");
}

#[test]
fn a_picture_that_its_own_control_group_cannot_hold_is_refused_with_the_limit() {
    let Some(group) = Group::top("own", Some("419430400")) else { return };
    check(&group, &group.dir);
}

#[test]
fn a_picture_that_a_control_group_above_cannot_hold_is_refused_with_the_limit() {
    let Some(above) = Group::top("above", Some("419430400")) else { return };
    let Some(own) = Group::make(&above.dir, "own", None) else { return };
    check(&own, &above.dir);
}
