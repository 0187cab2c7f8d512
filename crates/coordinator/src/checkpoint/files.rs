//! Files of checkpoints, one a step: whole and on the disk under their name, or not there.
//!
//! Behind a step's bytes stands a CRC-32C of the file's name and those bytes, so that a file that is short, has a bit
//! flipped or is another step's is told from a whole one. What is not whole counts as absent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use plan::{ImageId, ImageIdx, JobId};
use tempfile::NamedTempFile;
use wire::checksum;

const ENDING: &str = ".rows";
const PARTIAL_ENDING: &str = ".partial";

/// Which steps of which images.
pub(super) type Steps = BTreeMap<ImageId, BTreeSet<usize>>;

/// The folder of checkpoints.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)
            .with_context(|| format!("create the folder of checkpoints {}", folder.display()))?;
        Ok(Self { folder })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Steps that have a file, whole or not. What a crash left half written goes.
    pub(super) fn found(&self) -> anyhow::Result<Steps> {
        let unread = || format!("read the folder of checkpoints {}", self.folder.display());
        let mut found = Steps::new();
        for entry in fs::read_dir(&self.folder).with_context(unread)? {
            let entry = entry.with_context(unread)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Some((image, n_steps_done)) = step_of(&name) {
                found.entry(image).or_default().insert(n_steps_done);
            } else if name.ends_with(PARTIAL_ENDING) {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(found)
    }

    /// Brings a step's bytes to the disk; they have no name yet.
    pub(super) fn write(&self, image: &ImageId, n_steps_done: usize, bytes: &[u8]) -> io::Result<NamedTempFile> {
        let mut partial = tempfile::Builder::new().prefix(".").suffix(PARTIAL_ENDING).tempfile_in(&self.folder)?;
        partial.write_all(bytes)?;
        partial.write_all(&seal(&name(image, n_steps_done), bytes))?;
        partial.as_file().sync_all()?;
        Ok(partial)
    }

    /// Gives a step's file its name, which is on the disk after [`Self::sync`].
    pub(super) fn name(&self, image: &ImageId, n_steps_done: usize, partial: NamedTempFile) -> io::Result<()> {
        partial.persist(self.path(image, n_steps_done)).map(drop).map_err(|refused| refused.error)
    }

    /// Brings names to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        if cfg!(not(unix)) {
            // Other systems have no such call.
            return Ok(());
        }
        match File::open(&self.folder)?.sync_all() {
            // Some file systems cannot sync a folder, and nothing more can be done there.
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
            synced => synced,
        }
    }

    /// A step's bytes, if its file is there and whole.
    pub(super) fn read(&self, image: &ImageId, n_steps_done: usize) -> Option<Vec<u8>> {
        let mut bytes = match fs::read(self.path(image, n_steps_done)) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%image, step = n_steps_done, %error, "a checkpoint cannot be read");
                return None;
            }
        };
        let is_whole = bytes.split_last_chunk::<4>().is_some_and(|(bytes, found)| {
            // The name first: no bytes and a checksum of zero would be a whole file otherwise.
            *found == seal(&name(image, n_steps_done), bytes)
        });
        if !is_whole {
            tracing::warn!(%image, step = n_steps_done, n_bytes = bytes.len(), "a checkpoint is damaged");
            return None;
        }
        bytes.truncate(bytes.len() - 4);
        Some(bytes)
    }

    /// Deletes a step's file, if it is there.
    pub(super) fn remove(&self, image: &ImageId, n_steps_done: usize) {
        drop(fs::remove_file(self.path(image, n_steps_done)));
    }

    pub(super) fn path(&self, image: &ImageId, n_steps_done: usize) -> PathBuf {
        self.folder.join(name(image, n_steps_done))
    }
}

/// What stands behind the bytes of a file of this name.
fn seal(name: &str, bytes: &[u8]) -> [u8; 4] {
    checksum::append(checksum::crc32c(name.as_bytes()), bytes).to_le_bytes()
}

fn name(image: &ImageId, n_steps_done: usize) -> String {
    format!("{}-{}-{n_steps_done}{ENDING}", image.job, image.image)
}

/// Whose file a name is, if it is one of ours.
fn step_of(name: &str) -> Option<(ImageId, usize)> {
    let (image, n_steps_done) = name.strip_suffix(ENDING)?.rsplit_once('-')?;
    let (job, idx) = image.rsplit_once('-')?;
    let image = ImageId { job: JobId(job.to_owned()), image: ImageIdx(idx.parse().ok()?) };
    Some((image, n_steps_done.parse().ok()?))
}
