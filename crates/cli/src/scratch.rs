//! What must not outlive the program: previews, folders of private farms, files that are not whole yet.
//!
//! They go with the value that stands for them, or all at once when a signal ends the program. Leaves out the signals:
//! `interrupt`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static ALL: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn all() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file or folder that goes away with this value, or with the program.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A file of this name, which need not be there yet.
    pub(crate) fn file(path: PathBuf) -> Self {
        all().insert(path.clone());
        Self(path)
    }

    /// A new folder among the system's temporary ones, called `fresco-` and more.
    pub(crate) fn folder() -> io::Result<Self> {
        let mut all = all();
        let path = tempfile::Builder::new().prefix("fresco-").tempdir()?.keep();
        all.insert(path.clone());
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut all = all();
        all.remove(&self.0);
        remove(&self.0);
    }
}

/// Does `work` on files, which the end of the program waits for.
pub(crate) fn unbroken<T>(work: impl FnOnce() -> T) -> T {
    let _all = all();
    work()
}

/// Removes everything. While the result is kept, nothing of the kind comes into being.
pub(crate) fn remove_all() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    let all = all();
    all.iter().for_each(|path| remove(path));
    all
}

/// What cannot be removed stays: there is nobody who could do more about it.
fn remove(path: &Path) {
    /// The workers of a private farm may be writing into its folder.
    const TRIES: usize = 100;
    if path.is_dir() {
        let _ = (0..TRIES).any(|_| std::fs::remove_dir_all(path).is_ok() || !path.exists());
    } else {
        // If it is gone already, somebody has done this for us.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_scratch_goes_with_its_value() {
        let folder = Scratch::folder().expect("a temporary folder can be made");
        let path = folder.path().to_owned();
        assert!(path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("fresco-")), "{path:?}");
        let file = Scratch::file(path.join("preview.png"));
        std::fs::write(file.path(), "x").expect("a file can be written");
        drop(file);
        assert!(!path.join("preview.png").exists());
        std::fs::write(path.join("left"), "x").expect("a file can be written");
        drop(folder);
        assert!(!path.exists());
    }
}
