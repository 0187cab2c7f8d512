//! Pictures of the work in between: what the model believes, every few steps, beside the picture to come.
//!
//! A preview that fails costs a warning and no more: the picture is what was asked for.

use std::fs::File;
use std::io::Read;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::Tensor;
use model::Progress;

use crate::engine::Loaded;
use crate::exit::Stop;
use crate::output::Target;
use crate::scratch::Scratch;
use worker::image::{encode_preview, is_preview};

/// The preview of one picture. Its file goes away with it.
pub(crate) struct Preview {
    every: usize,
    target: Target,
    written: Option<Scratch>,
}

impl Preview {
    /// A preview after every `every` steps; none if that is 0. One that a killed render left behind is replaced.
    ///
    /// # Errors
    /// If the file's name is taken or cannot be given to a file.
    pub(crate) fn new(every: u32, picture: &Target) -> Result<Option<Self>, Stop> {
        if every == 0 {
            return Ok(None);
        }
        let mut target = picture.preview();
        if is_left_behind(target.path()) {
            target = target.replacing();
        }
        target.check_name()?;
        Ok(Some(Self { every: every as usize, target: target.replacing(), written: None }))
    }

    /// Writes the preview if `progress` is a step that calls for one. Gives what went wrong.
    pub(crate) fn show(&mut self, progress: &Progress<'_>, model: &Loaded) -> Option<String> {
        match *progress {
            // The last step's picture is about to be made anyway.
            Progress::Step { step, steps, clean, .. } if step + 1 < steps && (step + 1).is_multiple_of(self.every) => {
                self.write(clean, model).err().map(|error| format!("no preview after step {}: {error:#}", step + 1))
            }
            _ => None,
        }
    }

    fn write(&mut self, clean: &Tensor, model: &Loaded) -> anyhow::Result<()> {
        let image = model.decode(clean, &mut |_| ControlFlow::Continue(()))?;
        let bytes = encode_preview(&image)?;
        let path = self.target.path();
        self.written.get_or_insert_with(|| Scratch::file(path.to_owned()));
        self.target.write_draft(&bytes)?;
        tracing::debug!(path = %path.display(), "preview written");
        Ok(())
    }
}

/// Whether the file is a preview of a render that came to no good end.
fn is_left_behind(path: &Path) -> bool {
    /// The mark stands before the pixels.
    const MARKED_WITHIN_BYTES: u64 = 4096;
    let mut start = Vec::new();
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    is_file
        && File::open(path).and_then(|file| file.take(MARKED_WITHIN_BYTES).read_to_end(&mut start)).is_ok()
        && is_preview(&start)
}
