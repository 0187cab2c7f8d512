//! Files of checkpoints, one a step: whole and on the disk under their name, or not there.
//!
//! After a step's bytes comes a CRC-32C of the file's name, of the weights and numeric class that made the rows, and of
//! those bytes. So a file that is short, has a bit flipped, is another step's or comes from an attempt with other weights
//! is told from a whole one. What is not whole counts as absent.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use plan::{ImageId, ImageIdx, JobId};
use tempfile::NamedTempFile;
use wire::checksum;

use super::Origin;
use crate::folder::Folder;

const ENDING: &str = ".rows";

/// Which steps of which images.
pub(crate) type Steps = BTreeMap<ImageId, BTreeSet<usize>>;

/// The folder of checkpoints.
pub(super) struct Files {
    folder: Folder,
}

impl Files {
    pub(super) fn new(folder: Folder) -> Self {
        Self { folder }
    }

    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Steps that have a file, whole or not.
    pub(super) fn found(&self) -> io::Result<Steps> {
        let mut found = Steps::new();
        for entry in fs::read_dir(self.folder.path())? {
            if let Some((image, n_steps_done)) = step_of(&entry?.file_name().to_string_lossy()) {
                found.entry(image).or_default().insert(n_steps_done);
            }
        }
        Ok(found)
    }

    /// Brings a step's bytes to the disk; they have no name yet.
    pub(super) fn write(
        &self,
        image: &ImageId,
        n_steps_done: usize,
        origin: &Origin,
        bytes: &[u8],
    ) -> io::Result<NamedTempFile> {
        let mut partial = self.folder.partial()?;
        partial.write_all(bytes)?;
        partial.write_all(&seal(&name(image, n_steps_done), origin, bytes))?;
        partial.as_file().sync_all()?;
        Ok(partial)
    }

    /// Gives a step's file its name, which is on the disk after [`Self::sync`].
    pub(super) fn name(&self, image: &ImageId, n_steps_done: usize, partial: NamedTempFile) -> io::Result<()> {
        self.folder.name(partial, &name(image, n_steps_done))
    }

    /// Brings names to the disk.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.folder.sync()
    }

    /// A step's bytes, if its file is there, whole, and of `origin`.
    pub(super) fn read(&self, image: &ImageId, n_steps_done: usize, origin: &Origin) -> Option<Vec<u8>> {
        let mut bytes = match fs::read(self.path(image, n_steps_done)) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::warn!(%image, step = n_steps_done, %error, "a checkpoint cannot be read");
                return None;
            }
        };
        let is_whole = bytes.split_last_chunk::<4>().is_some_and(|(bytes, found)| {
            // The name first: no bytes and a checksum of zero would be a whole file otherwise.
            *found == seal(&name(image, n_steps_done), origin, bytes)
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
        self.folder.path().join(name(image, n_steps_done))
    }
}

/// What comes after the bytes of a file of this name.
fn seal(name: &str, origin: &Origin, bytes: &[u8]) -> [u8; 4] {
    let named = [name, "\n", &origin.weights_sha256, "\n", &origin.numeric_class].concat();
    checksum::append(checksum::crc32c(named.as_bytes()), bytes).to_le_bytes()
}

fn name(image: &ImageId, n_steps_done: usize) -> String {
    format!("{}-{}-{n_steps_done}{ENDING}", image.job, image.image)
}

/// Whose file a name is, if it is one of a checkpoint.
pub(crate) fn step_of(name: &str) -> Option<(ImageId, usize)> {
    let (image, n_steps_done) = name.strip_suffix(ENDING)?.rsplit_once('-')?;
    let (job, idx) = image.rsplit_once('-')?;
    let image = ImageId { job: JobId(job.to_owned()), image: ImageIdx(idx.parse().ok()?) };
    Some((image, n_steps_done.parse().ok()?))
}
