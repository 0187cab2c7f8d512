//! Checkpoints: rows of all ranks behind one step, put together, kept in memory and in a folder.
//!
//! The rows of a step are the same bits in every attempt, so what one attempt began another may complete. Rows are
//! taken of the latest epoch alone, and of none once its image is over: what was on its way then leaves nothing here.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use control::Record;
use plan::{Epoch, ImageId};
use tempfile::NamedTempFile;
use tokio::sync::Notify;

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

/// All images' checkpoints.
pub(crate) struct Checkpoints {
    folder: PathBuf,
    images: Mutex<BTreeMap<ImageId, Rows>>,
    /// A step was kept, or an image is over.
    changed: Notify,
}

/// What is here of one image.
struct Rows {
    /// The latest of its epochs.
    epoch: Epoch,
    steps: BTreeMap<usize, Step>,
}

/// One step of one image.
struct Step {
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
    #[error("the checkpoint cannot be kept in {folder}: {error}: make room, it is tried again")]
    #[allow(missing_docs)]
    Disk { folder: String, error: io::Error },
}

impl Checkpoints {
    /// In `folder`, made if it is not there.
    pub(crate) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)
            .with_context(|| format!("create the folder of checkpoints {}", folder.display()))?;
        Ok(Self { folder, images: Mutex::default(), changed: Notify::new() })
    }

    /// Sends images whose checkpoint is gone back to their beginning.
    pub(crate) fn check(&self, records: &mut [Record]) {
        for record in records {
            if let Record::Image { id, image, .. } = record {
                let n = image.n_steps_done;
                if n > 0 && !self.path(id, n).is_file() && image.artifact.is_none() {
                    tracing::warn!(image = %id, step = n, "its checkpoint is gone: it begins anew");
                    image.n_steps_done = 0;
                }
            }
        }
    }

    /// From now on rows of `epoch` are taken, and of none before it. To be called while the epoch is known to be on:
    /// whatever ends its image then comes later.
    pub(crate) fn open_epoch(&self, image: &ImageId, epoch: Epoch) {
        let mut images = self.images();
        let rows = images.entry(image.clone()).or_insert_with(|| Rows { epoch, steps: BTreeMap::new() });
        rows.epoch = rows.epoch.max(epoch);
    }

    /// Takes rows in. True if they complete their step, which is in a file then.
    pub(crate) fn put(&self, image: &ImageId, epoch: Epoch, place: Place, rows: &[u8]) -> Result<bool, PutError> {
        let n = place.n_steps_done;
        let path = self.path(image, n);
        let whole = {
            let mut images = self.images();
            let steps = steps_of(&mut images, image, epoch)?;
            let n_bytes = Place { n_rows: place.all_rows, ..place }.n_bytes();
            // Kept before a restart, and whoever sent these did not hear of it.
            if !steps.contains_key(&n) && path.metadata().is_ok_and(|file| file.len() == n_bytes as u64) {
                return Ok(true);
            }
            let step = steps.entry(n).or_insert_with(|| Step {
                bytes: vec![0; n_bytes],
                has: vec![false; place.all_rows],
                is_kept: false,
            });
            let row_bytes = place.cols * 4;
            let (of_all, of_band) = (place.all_rows * row_bytes, place.n_rows * row_bytes);
            for plane in 0..2 * CHANNELS {
                let to = plane * of_all + place.first_row * row_bytes;
                step.bytes[to..to + of_band].copy_from_slice(&rows[plane * of_band..(plane + 1) * of_band]);
            }
            step.has[place.first_row..place.first_row + place.n_rows].fill(true);
            if !step.is_whole() {
                drop(images);
                self.changed.notify_waiters();
                return Ok(false);
            }
            step.bytes.clone()
        };
        // Named after its image, so that what a crash leaves behind goes with the image.
        let partial = tempfile::Builder::new().prefix(&prefix(image)).suffix(".partial").tempfile_in(&self.folder);
        let partial = partial.map_err(|error| self.disk(error))?;
        fs::write(partial.path(), whole).map_err(|error| self.disk(error))?;
        self.keep(image, epoch, n, partial)?;
        Ok(true)
    }

    /// Gives a step's file its name, unless nobody wants it any more.
    fn keep(&self, image: &ImageId, epoch: Epoch, n_steps_done: usize, partial: NamedTempFile) -> Result<(), PutError> {
        let mut images = self.images();
        let steps = steps_of(&mut images, image, epoch)?;
        partial.persist(self.path(image, n_steps_done)).map_err(|refused| self.disk(refused.error))?;
        if let Some(step) = steps.get_mut(&n_steps_done) {
            step.is_kept = true;
        }
        self.forget_older(image, steps, n_steps_done);
        drop(images);
        self.changed.notify_waiters();
        Ok(())
    }

    fn disk(&self, error: io::Error) -> PutError {
        PutError::Disk { folder: self.folder.display().to_string(), error }
    }

    fn forget_older(&self, image: &ImageId, steps: &mut BTreeMap<usize, Step>, n_steps_done: usize) {
        // Counted in steps that are there: a coordinator that was away has gaps.
        let kept = steps.iter().filter(|(n, step)| **n <= n_steps_done && step.is_kept).map(|(n, _)| *n);
        let Some(oldest_kept) = kept.rev().nth(KEPT - 1) else { return };
        let older: Vec<usize> = steps.keys().copied().filter(|n| *n < oldest_kept).collect();
        for n in older {
            steps.remove(&n);
            drop(fs::remove_file(self.path(image, n)));
        }
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
            if is_settled(steps_of(&mut self.images(), image, epoch)?, n_steps_done) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// The whole latent and clean latent behind a step.
    pub(crate) fn get(&self, image: &ImageId, n_steps_done: usize) -> Option<Bytes> {
        {
            let images = self.images();
            let step = images.get(image).and_then(|rows| rows.steps.get(&n_steps_done));
            if let Some(step) = step.filter(|step| step.is_kept) {
                return Some(step.bytes.clone().into());
            }
        }
        fs::read(self.path(image, n_steps_done)).ok().map(Bytes::from)
    }

    /// Forgets an image that is over.
    pub(crate) fn remove(&self, image: &ImageId) {
        {
            let mut images = self.images();
            images.remove(image);
            let prefix = prefix(image);
            let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
            for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix)) {
                drop(fs::remove_file(file.path()));
            }
        }
        self.changed.notify_waiters();
    }

    fn path(&self, image: &ImageId, n_steps_done: usize) -> PathBuf {
        self.folder.join(format!("{}{n_steps_done}.rows", prefix(image)))
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<ImageId, Rows>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the names of an image's files begin with.
fn prefix(image: &ImageId) -> String {
    format!("{}-{}-", image.job, image.image)
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use plan::{ImageIdx, JobId};

    use super::*;

    fn place(n_steps_done: usize, first_row: usize, n_rows: usize) -> Place {
        Place { n_steps_done, first_row, n_rows, all_rows: 3, cols: 1 }
    }

    /// Rows of which every value is its plane and row.
    fn rows(first_row: usize, n_rows: usize) -> Vec<u8> {
        let value = |plane: usize, row: usize| ((plane * 10 + row) as f32).to_le_bytes();
        (0..8).flat_map(|plane| (first_row..first_row + n_rows).flat_map(move |row| value(plane, row))).collect()
    }

    fn image() -> ImageId {
        ImageId { job: JobId("job".into()), image: ImageIdx(0) }
    }

    #[test]
    fn bands_in_any_order_make_a_whole_that_outlives_the_process() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Checkpoints::open(folder.path().to_owned()).expect("the folder can be used");
        let (checkpoints, image, epoch) = (open(), image(), Epoch(1));
        checkpoints.open_epoch(&image, epoch);
        assert!(!checkpoints.put(&image, epoch, place(1, 1, 2), &rows(1, 2)).expect("is taken"));
        assert_eq!(checkpoints.get(&image, 1), None, "half a checkpoint is none");
        assert!(checkpoints.put(&image, epoch, place(1, 0, 1), &rows(0, 1)).expect("is taken"));
        assert_eq!(checkpoints.get(&image, 1).expect("is whole"), rows(0, 3));
        let restarted = open();
        assert_eq!(restarted.get(&image, 1).expect("is on the disk"), rows(0, 3));
        restarted.open_epoch(&image, epoch);
        let again = restarted.put(&image, epoch, place(1, 1, 2), &rows(1, 2));
        assert!(again.expect("is taken"), "what was kept before a restart is whole");
        for n in 2..4 {
            assert!(checkpoints.put(&image, epoch, place(n, 0, 3), &rows(0, 3)).expect("is taken"));
        }
        assert_eq!(open().get(&image, 1), None, "two steps back nobody goes");
        checkpoints.remove(&image);
        assert_eq!((checkpoints.get(&image, 3), open().get(&image, 3)), (None, None));
    }

    #[test]
    fn an_older_step_is_not_forgotten_before_a_newer_one_is_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path().to_owned()).expect("the folder can be used");
        let (image, epoch) = (image(), Epoch(1));
        checkpoints.open_epoch(&image, epoch);
        for n in 1..3 {
            assert!(checkpoints.put(&image, epoch, place(n, 0, 3), &rows(0, 3)).expect("is taken"));
        }
        for n in 3..6 {
            assert!(!checkpoints.put(&image, epoch, place(n, 0, 2), &rows(0, 2)).expect("is taken"));
        }
        assert!(checkpoints.get(&image, 1).is_some() && checkpoints.get(&image, 2).is_some());
        assert!(checkpoints.put(&image, epoch, place(3, 2, 1), &rows(2, 1)).expect("is taken"));
        assert_eq!(checkpoints.get(&image, 1), None);
        assert!(checkpoints.get(&image, 2).is_some() && checkpoints.get(&image, 3).is_some());
    }

    #[test]
    fn rows_that_come_behind_the_end_of_their_image_or_epoch_leave_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path().to_owned()).expect("the folder can be used");
        let image = image();
        let is_over = |epoch| {
            let put = checkpoints.put(&image, epoch, place(1, 0, 3), &rows(0, 3));
            matches!(put, Err(PutError::Over(over)) if over == epoch)
        };
        checkpoints.open_epoch(&image, Epoch(1));
        checkpoints.remove(&image);
        assert!(is_over(Epoch(1)), "the image is over");
        assert!(checkpoints.images().is_empty());
        assert_eq!(fs::read_dir(folder.path()).expect("is a folder").count(), 0);
        checkpoints.open_epoch(&image, Epoch(2));
        assert!(is_over(Epoch(1)), "the image goes on in another epoch");
        checkpoints.open_epoch(&image, Epoch(1));
        assert!(!is_over(Epoch(2)), "an epoch that is known late does not replace its successor");
    }

    #[tokio::test]
    async fn rows_are_waited_for_until_their_rank_has_sent_newer_ones_or_the_image_is_over() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let checkpoints = Checkpoints::open(folder.path().to_owned()).expect("the folder can be used");
        let (image, epoch) = (image(), Epoch(1));
        checkpoints.open_epoch(&image, epoch);
        let put = |n, first_row| checkpoints.put(&image, epoch, place(n, first_row, 1), &rows(first_row, 1));
        let kept = |n| checkpoints.until_kept(&image, epoch, n);
        put(4, 0).expect("is taken");
        assert!(kept(4).now_or_never().is_none());
        put(5, 0).expect("is taken");
        assert!(kept(4).now_or_never().is_none(), "newer rows of the same rank say nothing of the others");
        let (waited, _) = tokio::join!(kept(4), async { put(5, 1).expect("is taken") });
        waited.expect("that rank will not send step 4 any more");
        let (waited, _) = tokio::join!(kept(5), async { put(5, 2).expect("is taken") });
        waited.expect("it is whole");
        put(6, 0).expect("is taken");
        let (waited, ()) = tokio::join!(kept(6), async { checkpoints.remove(&image) });
        assert!(matches!(waited, Err(PutError::Over(Epoch(1)))), "the image is over");
    }
}
