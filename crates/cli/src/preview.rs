//! Pictures of the work in between: what the model believes, every few steps, beside the picture to come.
//!
//! A preview that fails costs a warning and no more: the picture is what was asked for.

use candle_core::Tensor;
use model::Progress;

use crate::engine::Loaded;
use crate::interrupt;
use crate::output::Target;
use worker::image::{BitDepth, encode_png};

/// The preview of one picture. Its file goes away with it.
pub(crate) struct Preview {
    every: usize,
    target: Target,
    is_written: bool,
}

impl Preview {
    /// A preview after every `every` steps; none if that is 0.
    ///
    /// # Errors
    /// If the file's name is taken or cannot be written.
    pub(crate) fn new(every: u32, picture: &Target) -> anyhow::Result<Option<Self>> {
        if every == 0 {
            return Ok(None);
        }
        let target = picture.preview();
        target.check()?;
        Ok(Some(Self { every: every as usize, target: target.replacing(), is_written: false }))
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
        let image = model.decode(clean, &mut |_| interrupt::flow())?;
        self.target.write(&encode_png(&image, BitDepth::Eight, None)?)?;
        self.is_written = true;
        tracing::debug!(path = %self.target.path().display(), "preview written");
        Ok(())
    }
}

impl Drop for Preview {
    fn drop(&mut self) {
        if self.is_written {
            // If it is gone already, somebody has done this for us.
            let _ = std::fs::remove_file(self.target.path());
        }
    }
}
