//! Checkpoints: rows of all ranks after one step, put together in memory and kept in a folder.
//!
//! The rows of a step are the same bits in every attempt with the same weights and numeric class, so what one attempt
//! began another may complete. Rows are taken of the latest epoch alone, and of none once its image is over: what was on
//! its way then leaves nothing here. What is kept is in its file alone; memory has the steps that are not whole yet.
//!
//! Files are deleted of images this process was told about, never because a listing shows them: the store may have been
//! restored from a backup, and what it does not know may be another's. `gc.rs` is for those.
//!
//! What may block on the disk is called on threads that may; [`Checkpoints::open_epoch`] and [`Checkpoints::remove`]
//! never wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use control::Record;
use plan::{Epoch, ImageId};
use tokio::sync::Notify;

use files::Files;

use crate::folder::Folder;

mod files;

pub(crate) use files::{Steps, step_of};

#[cfg(test)]
mod tests;

/// Complete checkpoints kept of one image: the last, and the one before it in case the last counts for nobody.
const KEPT: usize = 2;
const CHANNELS: usize = 4;

/// Where rows belong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Steps done.
    pub(crate) n_steps_done: usize,
    /// First latent row.
    pub(crate) first_row: usize,
    /// Latent rows.
    pub(crate) n_rows: usize,
    /// Latent rows of the whole picture.
    pub(crate) all_rows: usize,
    /// Latent columns.
    pub(crate) cols: usize,
}

impl Place {
    /// Bytes the rows have: two latents of f32.
    pub(crate) fn n_bytes(&self) -> usize {
        2 * CHANNELS * self.n_rows * self.cols * 4
    }
}

/// What made an image's rows: with another, other bits come out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Origin {
    pub(crate) weights_sha256: String,
    pub(crate) numeric_class: String,
}

/// All images' checkpoints.
pub(crate) struct Checkpoints {
    files: Files,
    /// Held while files get their names and lose them, so that what is of an image that is over is deleted before the
    /// next attempt at it keeps anything. Taken before `state`, which nobody holds while the disk is at work.
    disk: Mutex<()>,
    state: Mutex<State>,
    /// A step was kept, or an image is over.
    changed: Notify,
}

#[derive(Default)]
struct State {
    images: BTreeMap<ImageId, Rows>,
    /// Steps that have a file.
    filed: Steps,
    /// Files of images that are over, to be deleted.
    over: Steps,
}

/// What is here of one image.
struct Rows {
    /// The latest of its epochs.
    epoch: Epoch,
    origin: Origin,
    steps: BTreeMap<usize, Step>,
}

/// One step of one image.
struct Step {
    /// None while a whole step goes to its file, and once it is there.
    bytes: Vec<u8>,
    /// Which rows are there.
    has: Vec<bool>,
    /// Whether they are in a file.
    is_kept: bool,
}

impl Step {
    fn is_whole(&self) -> bool {
        self.has.iter().all(|has| *has)
    }
}

/// Why rows were not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PutError {
    /// Nobody wants them any more.
    #[error("epoch {0} is over")]
    Over(Epoch),
    /// They could not be written.
    #[error("the checkpoint cannot be kept in {folder}: {error}: free some space; the upload will be retried")]
    #[allow(missing_docs)]
    Disk { folder: String, error: io::Error },
}

impl Checkpoints {
    /// In `folder`.
    pub(crate) fn new(folder: Folder) -> Self {
        Self { files: Files::new(folder), disk: Mutex::default(), state: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn folder(&self) -> &Folder {
        self.files.folder()
    }

    /// Takes in what was kept before a restart. An image whose last checkpoint is gone goes back to the newest one before
    /// it that has a file, or to its beginning. Whether the files are whole is seen when they are needed.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(crate) fn check(&self, records: &mut [Record]) -> io::Result<()> {
        let (mut found, mut filed) = (self.files.found()?, Steps::new());
        for record in records {
            let Record::Image { id, image, .. } = record else { continue };
            if image.phase.is_over() {
                continue;
            }
            let (steps, n) = (found.remove(id).unwrap_or_default(), image.n_steps_done);
            let newest = steps.range(..=n).next_back().copied().unwrap_or(0);
            if newest < n {
                tracing::warn!(image = %id, step = n, newest, "its checkpoint is gone: it goes back to a step before");
                image.n_steps_done = newest;
            }
            if !steps.is_empty() {
                filed.insert(id.clone(), steps);
            }
        }
        self.state().filed = filed;
        Ok(())
    }

    /// From now on rows of `epoch` are taken, and of none before it. To be called while the epoch is known to be on:
    /// whatever ends its image then comes later.
    pub(crate) fn open_epoch(&self, image: &ImageId, epoch: Epoch, origin: Origin) {
        let mut state = self.state();
        let new = || Rows { epoch, origin: origin.clone(), steps: BTreeMap::new() };
        let rows = state.images.entry(image.clone()).or_insert_with(new);
        if rows.origin != origin && rows.epoch < epoch {
            // What was begun with other weights nobody completes.
            rows.steps.clear();
            rows.origin = origin;
        }
        rows.epoch = rows.epoch.max(epoch);
    }

    /// Takes rows in. True if they complete their step, which is in a file and on the disk then.
    pub(crate) fn put(&self, image: &ImageId, epoch: Epoch, place: Place, rows: &[u8]) -> Result<bool, PutError> {
        let n = place.n_steps_done;
        let n_bytes = Place { n_rows: place.all_rows, ..place }.n_bytes();
        if self.was_kept(image, epoch, n, n_bytes)? {
            return Ok(true);
        }
        let whole = {
            let mut state = self.state();
            let steps = steps_of(&mut state.images, image, epoch)?;
            let step = steps.entry(n).or_insert_with(|| Step {
                bytes: vec![0; n_bytes],
                has: vec![false; place.all_rows],
                is_kept: false,
            });
            if step.is_kept {
                return Ok(true);
            }
            if step.is_whole() {
                return Ok(false);
            }
            let row_bytes = place.cols * 4;
            let (of_all, of_band) = (place.all_rows * row_bytes, place.n_rows * row_bytes);
            for plane in 0..2 * CHANNELS {
                let to = plane * of_all + place.first_row * row_bytes;
                step.bytes[to..to + of_band].copy_from_slice(&rows[plane * of_band..(plane + 1) * of_band]);
            }
            step.has[place.first_row..place.first_row + place.n_rows].fill(true);
            if !step.is_whole() {
                drop(state);
                self.changed.notify_waiters();
                return Ok(false);
            }
            std::mem::take(&mut step.bytes)
        };
        let kept = self.keep(image, epoch, n, &whole);
        if kept.is_err()
            && let Ok(steps) = steps_of(&mut self.state().images, image, epoch)
            && let Some(step) = steps.get_mut(&n)
        {
            // Whoever sent the last rows sends them again.
            step.bytes = whole;
            step.has[place.first_row..place.first_row + place.n_rows].fill(false);
        }
        kept.map(|()| true)
    }

    /// Whether a step was kept before a restart, and whoever sends its rows did not hear of it.
    fn was_kept(&self, image: &ImageId, epoch: Epoch, n_steps_done: usize, n_bytes: usize) -> Result<bool, PutError> {
        let origin = {
            let mut state = self.state();
            let is_here = steps_of(&mut state.images, image, epoch)?.contains_key(&n_steps_done);
            if is_here || !state.has_file(image, n_steps_done) {
                return Ok(false);
            }
            state.origin_of(image)
        };
        Ok(self.files.read(image, n_steps_done, &origin).is_some_and(|bytes| bytes.len() == n_bytes))
    }

    /// Brings a step to the disk, unless nobody wants it any more.
    fn keep(&self, image: &ImageId, epoch: Epoch, n_steps_done: usize, whole: &[u8]) -> Result<(), PutError> {
        let origin = self.state().origin_of(image);
        let partial = self.files.write(image, n_steps_done, &origin, whole).map_err(|error| self.fault(error))?;
        {
            let _disk = self.disk();
            let left_behind = self.state().over.remove(image);
            left_behind.into_iter().flatten().for_each(|n| self.files.remove(image, n));
            {
                let mut state = self.state();
                steps_of(&mut state.images, image, epoch)?;
                state.filed.entry(image.clone()).or_default().insert(n_steps_done);
            }
            self.files.name(image, n_steps_done, partial).map_err(|error| self.fault(error))?;
        }
        // Others may give their files names meanwhile, and this brings those to the disk too.
        self.files.sync().map_err(|error| self.fault(error))?;
        {
            let _disk = self.disk();
            let older = {
                let mut state = self.state();
                if let Some(step) = steps_of(&mut state.images, image, epoch)?.get_mut(&n_steps_done) {
                    step.is_kept = true;
                }
                state.forget_older(image, n_steps_done)
            };
            older.into_iter().for_each(|n| self.files.remove(image, n));
        }
        self.changed.notify_waiters();
        Ok(())
    }

    fn fault(&self, error: io::Error) -> PutError {
        PutError::Disk { folder: self.folder().path().display().to_string(), error }
    }

    /// Waits until all rows behind a step are kept, or never will be: a rank has sent newer ones without these.
    ///
    /// # Errors
    /// If the epoch is over.
    pub(crate) async fn until_kept(&self, image: &ImageId, epoch: Epoch, n_steps_done: usize) -> Result<(), PutError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if is_settled(steps_of(&mut self.state().images, image, epoch)?, n_steps_done) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// The whole latent and clean latent after a step, if they are here and as they were kept. Blocks.
    pub(crate) fn get(&self, image: &ImageId, n_steps_done: usize) -> Option<Bytes> {
        let origin = {
            let state = self.state();
            if !state.has_file(image, n_steps_done) {
                return None;
            }
            state.origin_of(image)
        };
        self.files.read(image, n_steps_done, &origin).map(Bytes::from)
    }

    /// The newest step up to `most` that is whole; 0 if none is. Files that are damaged count for nothing from then on.
    /// Blocks.
    pub(crate) fn newest_whole(&self, image: &ImageId, most: usize) -> usize {
        loop {
            let newest = {
                let state = self.state();
                let steps = state.filed.get(image);
                steps.and_then(|steps| steps.range(..=most).next_back().copied())
            };
            let Some(newest) = newest else { return 0 };
            if self.get(image, newest).is_some() {
                return newest;
            }
            // Its file is written over when its rows come again.
            let mut state = self.state();
            if let Some(steps) = state.filed.get_mut(image) {
                steps.remove(&newest);
            }
            if let Some(rows) = state.images.get_mut(image) {
                rows.steps.remove(&newest);
            }
        }
    }

    /// Forgets an image that is over. True if its files are to be deleted by [`Self::sweep`] and nobody is at it.
    pub(crate) fn remove(&self, image: &ImageId) -> bool {
        let is_owed = {
            let mut state = self.state();
            state.images.remove(image);
            match state.filed.remove(image) {
                Some(steps) => {
                    let was_idle = state.over.is_empty();
                    state.over.entry(image.clone()).or_default().extend(steps);
                    was_idle
                }
                None => false,
            }
        };
        self.changed.notify_waiters();
        is_owed
    }

    /// Deletes the files of images that are over.
    pub(crate) fn sweep(&self) {
        loop {
            let _disk = self.disk();
            let Some((image, steps)) = self.state().over.pop_first() else { return };
            steps.into_iter().for_each(|n| self.files.remove(&image, n));
        }
    }

    /// Deletes a file of an image that is not being made. Whether it is gone. Blocks.
    pub(crate) fn remove_unknown(&self, image: &ImageId, n_steps_done: usize) -> bool {
        let _disk = self.disk();
        let is_known = {
            let state = self.state();
            state.images.contains_key(image) || state.filed.contains_key(image)
        };
        if is_known {
            return false;
        }
        self.files.remove(image, n_steps_done);
        !self.files.path(image, n_steps_done).exists()
    }

    fn disk(&self) -> MutexGuard<'_, ()> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_file(&self, image: &ImageId, n_steps_done: usize) -> bool {
        self.filed.get(image).is_some_and(|steps| steps.contains(&n_steps_done))
    }

    fn origin_of(&self, image: &ImageId) -> Origin {
        self.images.get(image).map(|rows| rows.origin.clone()).unwrap_or_default()
    }

    /// Forgets the steps of an image that nobody goes back to once `n_steps_done` are kept; those that have a file.
    fn forget_older(&mut self, image: &ImageId, n_steps_done: usize) -> BTreeSet<usize> {
        let of_image = self.images.get_mut(image).zip(self.filed.get_mut(image));
        let Some((rows, filed)) = of_image else { return BTreeSet::new() };
        // Counted in steps that are there: a coordinator that was away has gaps. What is in a file and not in memory
        // was kept before a restart.
        let is_kept = |n: &&usize| rows.steps.get(n).is_none_or(|step| step.is_kept);
        let mut kept = filed.range(..=n_steps_done).rev().filter(is_kept);
        let Some(oldest_kept) = kept.nth(KEPT - 1).copied() else { return BTreeSet::new() };
        rows.steps = rows.steps.split_off(&oldest_kept);
        let kept = filed.split_off(&oldest_kept);
        std::mem::replace(filed, kept)
    }
}

fn steps_of<'a>(
    images: &'a mut BTreeMap<ImageId, Rows>,
    image: &ImageId,
    epoch: Epoch,
) -> Result<&'a mut BTreeMap<usize, Step>, PutError> {
    let rows = images.get_mut(image).filter(|rows| rows.epoch == epoch);
    rows.map(|rows| &mut rows.steps).ok_or(PutError::Over(epoch))
}

/// Whether nobody need wait for a step: it is kept, or rows are missing whose rank has gone on to newer ones, as it
/// may while the coordinator is away.
fn is_settled(steps: &BTreeMap<usize, Step>, n_steps_done: usize) -> bool {
    let Some(step) = steps.get(&n_steps_done) else { return true };
    let lacks = |newer: &Step| newer.has.iter().zip(&step.has).any(|(newer, own)| *newer && !*own);
    step.is_kept || steps.range(n_steps_done + 1..).any(|(_, newer)| lacks(newer))
}
