//! A folder that one store owns: a marker names the store, and files get into it whole and durable, in one way.
//!
//! Several farms may be pointed at one folder by mistake, and a store may be lost or restored from a backup. So nothing
//! is ever deleted here because a listing shows it: who deletes knows from its own records that it put the file there.
//! Leaves out what the files are: pictures are in `artifact.rs`, checkpoints in `checkpoint.rs`.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::identity::Identity;

/// The file that says whose a folder is.
pub(crate) const MARKER: &str = "fresco-store.json";
const PARTIAL_ENDING: &str = ".partial";

/// What a marker says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    /// For whoever finds the file.
    about: String,
    /// The store whose files these are.
    pub(crate) store: String,
    /// When it began to use the folder.
    pub(crate) since: String,
    /// Stores the folder was taken over from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    earlier_stores: Vec<String>,
}

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FolderError {
    /// The disk or a permission is at fault.
    #[error("the folder {path} cannot be used: {error}")]
    #[allow(missing_docs)]
    Io { path: String, error: io::Error },
    /// Another store's files are in it.
    #[error(
        "the folder {path} belongs to the store {other} (since {since}), and not to {own} in {store}: name another \
         folder, or take it over with --adopt, which deletes nothing"
    )]
    #[allow(missing_docs)]
    Foreign { path: String, other: String, since: String, own: String, store: String },
    /// The store is gone, and its files are not.
    #[error(
        "the store {store} is {fault}, and the folder {path} belongs to the store {other} (since {since}): restore \
         that store from a backup, name another folder, or begin anew with --adopt, which deletes nothing"
    )]
    #[allow(missing_docs)]
    NoStore { store: String, fault: &'static str, path: String, other: String, since: String },
    /// A process of the same store is at work in it.
    #[error("the folder {path} is in use by another coordinator: end that one, or name another folder")]
    #[allow(missing_docs)]
    InUse { path: String },
    /// The marker is not one.
    #[error("the marker {path} is not understood ({reason}): restore it, or take the folder over with --adopt")]
    #[allow(missing_docs)]
    Unreadable { path: String, reason: String },
}

/// A folder of one store.
pub(crate) struct Folder {
    path: PathBuf,
    store: String,
}

/// Keeps other coordinators out of a folder for as long as it is held.
pub(crate) struct FolderLock {
    _marker: File,
}

impl Folder {
    /// Refuses to begin a new store beside the files of another: a store that was cut to nothing or is gone must not
    /// look like a farm without jobs.
    ///
    /// # Errors
    /// If `store` is missing or empty and a folder has a marker.
    pub(crate) fn refuse_new_store(store: &Path, folders: &[&Path]) -> Result<(), FolderError> {
        let fault = match fs::metadata(store) {
            Ok(file) if file.len() == 0 => "empty",
            Err(error) if error.kind() == ErrorKind::NotFound => "missing",
            // Whatever else is wrong with it is said when it is opened.
            _ => return Ok(()),
        };
        for folder in folders {
            if let Some(marker) = read_marker(folder)? {
                return Err(FolderError::NoStore {
                    store: store.display().to_string(),
                    fault,
                    path: folder.display().to_string(),
                    other: marker.store,
                    since: marker.since,
                });
            }
        }
        Ok(())
    }

    /// Opens `path` for the store `identity`, which lies in `store`; makes and marks the folder if it is not there. One
    /// that nobody has marked is marked, whatever is in it. With `adopt` one of another store is taken over.
    ///
    /// # Errors
    /// If the folder belongs to another store or cannot be used.
    pub(crate) fn open(path: PathBuf, store: &Path, identity: &Identity, adopt: bool) -> Result<Self, FolderError> {
        fs::create_dir_all(&path).map_err(|error| io_error(&path, error))?;
        let folder = Self { path, store: identity.id.clone() };
        let (marker, is_free) = match read_marker(&folder.path) {
            Err(FolderError::Unreadable { .. }) if adopt => (None, false),
            marker => {
                let marker = marker?;
                let is_free = marker.is_none();
                (marker, is_free)
            }
        };
        match marker {
            Some(marker) if marker.store == identity.id => {}
            Some(marker) if !adopt => {
                return Err(FolderError::Foreign {
                    path: folder.path.display().to_string(),
                    other: marker.store,
                    since: marker.since,
                    own: identity.id.clone(),
                    store: store.display().to_string(),
                });
            }
            marker => {
                if marker.is_some() {
                    // A new marker would be another file, whose lock nobody holds.
                    folder.lock()?;
                }
                let earlier_stores = marker
                    .map_or_else(Vec::new, |marker| marker.earlier_stores.into_iter().chain([marker.store]).collect());
                match folder.mark(earlier_stores, is_free) {
                    // Another store took the folder at the same moment, and says so in its marker.
                    Err(error)
                        if is_free
                            && error.kind() == ErrorKind::AlreadyExists
                            && read_marker(&folder.path)?.is_some() =>
                    {
                        return Self::open(folder.path, store, identity, adopt);
                    }
                    marked => marked.map_err(|error| io_error(&folder.path, error))?,
                }
            }
        }
        // Whoever is at work here is writing some of them.
        drop(folder.lock()?);
        folder.clear_partials().map_err(|error| io_error(&folder.path, error))?;
        Ok(folder)
    }

    /// Marks the folder; one that was free a moment ago only if it still is.
    fn mark(&self, earlier_stores: Vec<String>, is_free: bool) -> io::Result<()> {
        let about = "Files in this folder belong to one store of fresco; keep this file with them.".to_owned();
        let marker = Marker { about, store: self.store.clone(), since: crate::identity::now(), earlier_stores };
        let mut partial = self.partial()?;
        serde_json::to_writer_pretty(&mut partial, &marker)?;
        partial.write_all(b"\n")?;
        partial.as_file().sync_all()?;
        if !is_free {
            self.name(partial, MARKER)?;
        } else if let Err(refused) = partial.persist_noclobber(self.path.join(MARKER)) {
            if refused.error.kind() == ErrorKind::AlreadyExists {
                return Err(refused.error);
            }
            // Some file systems cannot give a name only if it is free.
            self.name(refused.file, MARKER)?;
        }
        self.sync()
    }

    /// Keeps coordinators of the same store out, such as one that runs on a copy of it.
    ///
    /// # Errors
    /// If one is at work here.
    pub(crate) fn lock(&self) -> Result<FolderLock, FolderError> {
        let marker = self.path.join(MARKER);
        let marker = File::open(&marker).map_err(|error| io_error(&marker, error))?;
        match marker.try_lock() {
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse { path: self.path.display().to_string() }),
            // Some file systems have no locks; the marker alone must do there.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(FolderLock { _marker: marker }),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the folder is the one that was opened. A file that is missing while a disk is not mounted is not lost.
    pub(crate) fn is_there(&self) -> bool {
        matches!(read_marker(&self.path), Ok(Some(marker)) if marker.store == self.store)
    }

    /// A file without a name yet; it goes if it gets none.
    pub(crate) fn partial(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().prefix(&self.partial_prefix()).suffix(PARTIAL_ENDING).tempfile_in(&self.path)
    }

    /// Gives a file its name, in place of one of the same name; the name is on the disk after [`Self::sync`].
    pub(crate) fn name(&self, partial: NamedTempFile, name: &str) -> io::Result<()> {
        partial.persist(self.path.join(name)).map(drop).map_err(|refused| refused.error)
    }

    /// Brings names to the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if cfg!(not(unix)) {
            // Other systems have no such call.
            return Ok(());
        }
        match File::open(&self.path)?.sync_all() {
            // Some file systems cannot sync a folder, and nothing more can be done there.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            synced => synced,
        }
    }

    /// Whether `name` is of a file that never got its name, and that no process of this store is writing.
    pub(crate) fn is_left_over(&self, name: &str) -> bool {
        name.starts_with('.') && name.ends_with(PARTIAL_ENDING) && !name.starts_with(&self.partial_prefix())
    }

    /// Deletes what a crash of this store's own process left half written; who sent it sends it again.
    fn clear_partials(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&self.partial_prefix()) && name.ends_with(PARTIAL_ENDING) {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(())
    }

    fn partial_prefix(&self) -> String {
        format!(".{}-", self.store)
    }
}

fn io_error(path: &Path, error: io::Error) -> FolderError {
    FolderError::Io { path: path.display().to_string(), error }
}

/// The marker of a folder, if it has one.
fn read_marker(folder: &Path) -> Result<Option<Marker>, FolderError> {
    let path = folder.join(MARKER);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(&path, error)),
    };
    let unreadable = |error: serde_json::Error| FolderError::Unreadable {
        path: path.display().to_string(),
        reason: error.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(unreadable)
}

#[cfg(test)]
mod tests;
