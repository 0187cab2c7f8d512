//! A file as memory, read only, so that several networks can read weights without copying the file.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A mapped file.
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps all of the file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened or mapped.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read only and private to this process. Should another process change the file
        // meanwhile, values read may be wrong, as with any read; should it be truncated, the system ends this
        // process. Both need somebody to overwrite installed weights in place.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
