//! A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as far as control groups need it.

use std::path::{Component, Path, PathBuf};

/// Where a part of a file system is mounted.
pub(super) struct Mount {
    /// The part, from the file system's root.
    root: PathBuf,
    /// Where it is.
    pub(super) point: PathBuf,
    kind: String,
    /// Options of the file system; those of version 1 are its controllers.
    options: String,
}

impl Mount {
    pub(super) fn parse(line: &str) -> Option<Self> {
        // Fields in between may be missing or several; a hyphen ends them.
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (unescaped(place.next()?), unescaped(place.next()?));
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?.to_owned(), system.nth(1).unwrap_or_default().to_owned());
        Some(Self { root, point, kind, options })
    }

    /// Version 2.
    pub(super) fn is_cgroup2(&self) -> bool {
        self.kind == "cgroup2"
    }

    /// Version 1, with this controller.
    pub(super) fn is_cgroup_with(&self, controller: &str) -> bool {
        self.kind == "cgroup" && self.options.split(',').any(|option| option == controller)
    }

    /// Where the group at `path` lies below the mount. What the mount does not show, it shows as its top: a container whose
    /// groups are named from the host's root, or the other way round.
    pub(super) fn below_root(&self, path: &Path) -> PathBuf {
        let below = path.strip_prefix(&self.root).unwrap_or(Path::new(""));
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        if is_plain { below.to_owned() } else { PathBuf::new() }
    }
}

/// Spaces, tabs, line ends and backslashes are written as a backslash and three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut pieces = field.split('\\');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok());
        match code {
            Some(code) => text.extend([char::from(code)].into_iter().chain(piece[3..].chars())),
            None => text.extend(['\\'].into_iter().chain(piece.chars())),
        }
    }
    text.into()
}
