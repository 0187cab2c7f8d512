//! Finished pictures in a folder, each under the hash of its bytes; whole or not there.
//!
//! A picture may be several images', and one that goes may be on its way in again. So it is condemned first, and
//! whatever may still mean it is asked or comes again: a picture that is handed in anew is condemned no more, and a
//! worker that says it has finished a condemned one is told to make it again.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use tempfile::TempPath;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::folder::Folder;

/// Condemned names that are remembered. Who means one of them says so within moments.
const MOST_CONDEMNED: usize = 100_000;

/// The folder of pictures.
pub(crate) struct Artifacts {
    folder: Folder,
    names: Mutex<Names>,
    /// Whether pictures may be named by records that are not understood: then none is deleted.
    keeps_all: bool,
}

/// Held while a picture gets its name or loses it.
#[derive(Default)]
struct Names {
    /// Nobody has these; gone, or to go.
    condemned: BTreeSet<String>,
    /// In the order they were condemned.
    order: VecDeque<String>,
    /// To be removed by a sweep.
    doomed: VecDeque<String>,
}

/// Why a picture was not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    /// The disk or folder is at fault.
    #[error("the picture cannot be kept in {folder}: {error}: free some space; the upload will be retried")]
    #[allow(missing_docs)]
    Disk { folder: String, error: io::Error },
    /// Other bytes came than were announced.
    #[error("the picture's bytes have the sha256 {found}, {expected} was announced")]
    #[allow(missing_docs)]
    Hash { expected: String, found: String },
}

/// Why a picture cannot be given out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It is not there, or its bytes are not those that were kept.
    #[error("its file {path} {fault}")]
    #[allow(missing_docs)]
    Lost { path: String, fault: String },
    /// That may pass.
    #[error("the folder of pictures {folder} cannot be read: {reason}")]
    #[allow(missing_docs)]
    Away { folder: String, reason: String },
}

/// A picture on its way in.
pub(crate) struct Incoming {
    artifacts: Arc<Artifacts>,
    file: File,
    path: TempPath,
    hash: Sha256,
}

/// A picture on its way out.
pub(crate) struct Outgoing {
    file: File,
    path: String,
    sha256: String,
    left_bytes: u64,
    hash: Sha256,
}

impl Artifacts {
    /// In `folder`.
    pub(crate) fn new(folder: Folder) -> Self {
        Self { folder, names: Mutex::default(), keeps_all: false }
    }

    /// With `keeps_all` no picture is deleted: records that are not understood may name it.
    pub(crate) fn keeping_all(self, keeps_all: bool) -> Self {
        Self { keeps_all, ..self }
    }

    /// Whether nothing is deleted.
    pub(crate) fn keeps_all(&self) -> bool {
        self.keeps_all
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has pictures removed that no image has. True if [`Self::sweep`] is to be called and nobody is at it.
    pub(crate) fn remove(&self, sha256: impl IntoIterator<Item = String>) -> bool {
        if self.keeps_all {
            return false;
        }
        let mut names = self.names();
        let was_idle = names.doomed.is_empty();
        for name in sha256.into_iter().filter(|name| is_name(name)) {
            names.condemn(&name);
            names.doomed.push_back(name);
        }
        was_idle && !names.doomed.is_empty()
    }

    /// From now on no worker is believed that says it has finished one of these.
    pub(crate) fn condemn<'a>(&self, sha256: impl IntoIterator<Item = &'a str>) {
        let mut names = self.names();
        sha256.into_iter().for_each(|name| names.condemn(name));
    }

    /// An image has these after all.
    pub(crate) fn pardon<'a>(&self, sha256: impl IntoIterator<Item = &'a str>) {
        let mut names = self.names();
        for name in sha256 {
            names.condemned.remove(name);
        }
    }

    /// Whether a picture is gone or about to go.
    pub(crate) fn is_condemned(&self, sha256: &str) -> bool {
        self.names().condemned.contains(sha256)
    }

    /// Removes what is to be removed. Blocks.
    pub(crate) fn sweep(&self) {
        loop {
            let mut names = self.names();
            let Some(name) = names.doomed.pop_front() else { return };
            self.remove_condemned(&names, &name);
        }
    }

    /// Removes one picture now, unless it was pardoned or handed in anew. Whether it is gone. Blocks.
    pub(crate) fn remove_now(&self, sha256: &str) -> bool {
        self.remove_condemned(&self.names(), sha256)
    }

    fn remove_condemned(&self, names: &Names, name: &str) -> bool {
        if !names.condemned.contains(name) {
            return false;
        }
        let path = self.folder.path().join(name);
        match std::fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a picture that no image has cannot be removed: `fresco gc` tries again");
                false
            }
        }
    }

    fn fault(&self, error: io::Error) -> ArtifactError {
        ArtifactError::Disk { folder: self.folder.path().display().to_string(), error }
    }

    /// Begins to take a picture in.
    pub(crate) async fn begin(self: &Arc<Self>) -> Result<Incoming, ArtifactError> {
        let artifacts = Arc::clone(self);
        let made = blocking(move || artifacts.folder.partial()).await;
        let (file, path) = made.map_err(|error| self.fault(error))?.into_parts();
        Ok(Incoming { artifacts: Arc::clone(self), file: File::from_std(file), path, hash: Sha256::new() })
    }

    /// Whether a picture's file is there, if `sha256` is the name of one.
    pub(crate) async fn has(&self, sha256: &str) -> bool {
        is_name(sha256) && tokio::fs::try_exists(self.folder.path().join(sha256)).await.unwrap_or(false)
    }

    /// Begins to give out a picture of so many bytes.
    pub(crate) async fn open(&self, sha256: &str, size_bytes: u64) -> Result<Outgoing, ReadError> {
        let path = self.folder.path().join(sha256);
        let lost = |fault: String| ReadError::Lost { path: path.display().to_string(), fault };
        let away = |error: io::Error| ReadError::Away {
            folder: self.folder.path().display().to_string(),
            reason: error.to_string(),
        };
        if !is_name(sha256) {
            return Err(lost("has no name that a picture can have".into()));
        }
        let file = match File::open(&path).await {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.folder.is_there() {
                    return Err(lost("is missing".into()));
                }
                let folder = self.folder.path().display().to_string();
                return Err(ReadError::Away { folder, reason: "it is not there: is its disk mounted?".into() });
            }
            Err(error) => return Err(away(error)),
        };
        let found = file.metadata().await.map_err(away)?.len();
        if found != size_bytes {
            return Err(lost(format!("has {found} bytes instead of {size_bytes}")));
        }
        let (path, sha256) = (path.display().to_string(), sha256.to_owned());
        Ok(Outgoing { file, path, sha256, left_bytes: size_bytes, hash: Sha256::new() })
    }
}

impl Names {
    fn condemn(&mut self, name: &str) {
        if self.condemned.insert(name.to_owned()) {
            self.order.push_back(name.to_owned());
        }
        // What waits to be removed stays condemned until it is.
        while self.order.len() > MOST_CONDEMNED
            && self.doomed.is_empty()
            && let Some(oldest) = self.order.pop_front()
        {
            self.condemned.remove(&oldest);
        }
    }
}

pub(crate) fn is_name(sha256: &str) -> bool {
    sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Incoming {
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.hash.update(bytes);
        self.file.write_all(bytes).await.map_err(|error| self.artifacts.fault(error))
    }

    /// Keeps the picture, durably, if it is the one announced.
    pub(crate) async fn finish(mut self, expected: &str) -> Result<(), ArtifactError> {
        let found = hex(self.hash);
        if found != expected {
            return Err(ArtifactError::Hash { expected: expected.to_owned(), found });
        }
        let fault = |error| self.artifacts.fault(error);
        self.file.flush().await.map_err(fault)?;
        self.file.sync_all().await.map_err(fault)?;
        let file = self.file.into_std().await;
        let (artifacts, path) = (Arc::clone(&self.artifacts), self.path);
        let named = blocking(move || {
            {
                let mut names = artifacts.names();
                artifacts.folder.name(tempfile::NamedTempFile::from_parts(file, path), &found)?;
                names.condemned.remove(&found);
            }
            artifacts.folder.sync()
        });
        named.await.map_err(fault)
    }
}

impl Outgoing {
    /// The next bytes, at most so many; none at the end. The last ones come only if all were those of the picture.
    pub(crate) async fn next(&mut self, most_bytes: usize) -> Result<Vec<u8>, ReadError> {
        use tokio::io::AsyncReadExt;
        let lost = |path: &str, fault: String| ReadError::Lost { path: path.to_owned(), fault };
        let mut chunk = vec![0; most_bytes.min(usize::try_from(self.left_bytes).unwrap_or(usize::MAX))];
        if let Err(error) = self.file.read_exact(&mut chunk).await {
            // A file that ends too early is lost; a disk that does not answer may answer again.
            return Err(match error.kind() {
                ErrorKind::UnexpectedEof => lost(&self.path, "is cut".into()),
                _ => ReadError::Away { folder: self.path.clone(), reason: error.to_string() },
            });
        }
        self.hash.update(&chunk);
        self.left_bytes -= chunk.len() as u64;
        if self.left_bytes == 0 && hex(self.hash.clone()) != self.sha256 {
            return Err(lost(&self.path, "is damaged: it has other bytes than were kept".into()));
        }
        Ok(chunk)
    }
}

#[cfg(test)]
pub(crate) mod tests;
