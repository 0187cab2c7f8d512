//! Checkpoints: rows of all ranks behind one step, put together, kept in memory and in a folder.
//!
//! The rows of a step are the same bits in every attempt, so what one attempt began another may complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use bytes::Bytes;
use control::Record;
use plan::ImageId;

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
    images: Mutex<BTreeMap<ImageId, BTreeMap<usize, Step>>>,
}

/// One step of one image.
struct Step {
    bytes: Vec<u8>,
    /// Which rows are there.
    has: Vec<bool>,
}

impl Step {
    fn is_whole(&self) -> bool {
        self.has.iter().all(|has| *has)
    }
}

impl Checkpoints {
    /// In `folder`, made if it is not there.
    pub(crate) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder)
            .with_context(|| format!("create the folder of checkpoints {}", folder.display()))?;
        Ok(Self { folder, images: Mutex::default() })
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

    /// Takes rows in. True if they complete their step, which is on the disk then.
    pub(crate) fn put(&self, image: &ImageId, place: Place, rows: &[u8]) -> std::io::Result<bool> {
        let whole = {
            let mut images = self.images();
            let steps = images.entry(image.clone()).or_default();
            let n_bytes = Place { n_rows: place.all_rows, ..place }.n_bytes();
            let step = steps
                .entry(place.n_steps_done)
                .or_insert_with(|| Step { bytes: vec![0; n_bytes], has: vec![false; place.all_rows] });
            let row_bytes = place.cols * 4;
            let (of_all, of_band) = (place.all_rows * row_bytes, place.n_rows * row_bytes);
            for plane in 0..2 * CHANNELS {
                let to = plane * of_all + place.first_row * row_bytes;
                step.bytes[to..to + of_band].copy_from_slice(&rows[plane * of_band..(plane + 1) * of_band]);
            }
            step.has[place.first_row..place.first_row + place.n_rows].fill(true);
            if !step.is_whole() {
                return Ok(false);
            }
            step.bytes.clone()
        };
        let path = self.path(image, place.n_steps_done);
        let partial = path.with_extension("partial");
        fs::write(&partial, whole).and_then(|()| fs::rename(&partial, &path))?;
        self.forget_older(image, place.n_steps_done);
        Ok(true)
    }

    fn forget_older(&self, image: &ImageId, n_steps_done: usize) {
        let mut images = self.images();
        let Some(steps) = images.get_mut(image) else { return };
        // Counted in steps that are there: a coordinator that was away has gaps.
        let whole = steps.iter().filter(|(n, step)| **n <= n_steps_done && step.is_whole()).map(|(n, _)| *n);
        let Some(oldest_kept) = whole.rev().nth(KEPT - 1) else { return };
        let older: Vec<usize> = steps.keys().copied().filter(|n| *n < oldest_kept).collect();
        for n in older {
            steps.remove(&n);
            drop(fs::remove_file(self.path(image, n)));
        }
    }

    /// Whether all rows behind a step are there.
    pub(crate) fn is_whole(&self, image: &ImageId, n_steps_done: usize) -> bool {
        self.images().get(image).and_then(|steps| steps.get(&n_steps_done)).is_some_and(Step::is_whole)
    }

    /// The whole latent and clean latent behind a step.
    pub(crate) fn get(&self, image: &ImageId, n_steps_done: usize) -> Option<Bytes> {
        {
            let images = self.images();
            let step = images.get(image).and_then(|steps| steps.get(&n_steps_done));
            if let Some(step) = step.filter(|step| step.is_whole()) {
                return Some(step.bytes.clone().into());
            }
        }
        fs::read(self.path(image, n_steps_done)).ok().map(Bytes::from)
    }

    /// Forgets an image that is over.
    pub(crate) fn remove(&self, image: &ImageId) {
        self.images().remove(image);
        let prefix = format!("{}-{}-", image.job, image.image);
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for file in files.filter(|file| file.file_name().to_string_lossy().starts_with(&prefix)) {
            drop(fs::remove_file(file.path()));
        }
    }

    fn path(&self, image: &ImageId, n_steps_done: usize) -> PathBuf {
        self.folder.join(format!("{}-{}-{n_steps_done}.rows", image.job, image.image))
    }

    fn images(&self) -> MutexGuard<'_, BTreeMap<ImageId, BTreeMap<usize, Step>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn bands_in_any_order_make_a_whole_that_outlives_the_process() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Checkpoints::open(folder.path().to_owned()).expect("the folder can be used");
        let image = ImageId { job: JobId("job".into()), image: ImageIdx(0) };
        let checkpoints = open();
        assert!(!checkpoints.put(&image, place(1, 1, 2), &rows(1, 2)).expect("is taken"));
        assert_eq!(checkpoints.get(&image, 1), None, "half a checkpoint is none");
        assert!(checkpoints.put(&image, place(1, 0, 1), &rows(0, 1)).expect("is taken"));
        assert_eq!(checkpoints.get(&image, 1).expect("is whole"), rows(0, 3));
        assert_eq!(open().get(&image, 1).expect("is on the disk"), rows(0, 3));
        for n in 2..4 {
            assert!(checkpoints.put(&image, place(n, 0, 3), &rows(0, 3)).expect("is taken"));
        }
        assert_eq!(open().get(&image, 1), None, "two steps back nobody goes");
        checkpoints.remove(&image);
        assert_eq!((checkpoints.get(&image, 3), open().get(&image, 3)), (None, None));
    }
}
