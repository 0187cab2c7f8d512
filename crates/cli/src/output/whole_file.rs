//! Files that appear under their names whole, or not at all, on file systems of all kinds.
//!
//! Leaves out which names.

use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, PersistError};

/// Bytes that are whole and on the disk, in a file that removes itself unless it is given a name.
#[derive(Debug)]
pub(super) struct Whole(NamedTempFile);

impl Whole {
    /// Writes `bytes` into a file of `folder`.
    pub(super) fn write(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        let mut file = partial_file(folder)?;
        file.as_file_mut().write_all(bytes)?;
        match file.as_file().sync_all() {
            // Some file systems cannot say when bytes are on the disk. They are whole all the same.
            Err(error) if !matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Err(error),
            _ => Ok(Self(file)),
        }
    }

    /// Gives the file its name, which must be free unless `can_replace`.
    ///
    /// # Errors
    /// If it cannot have the name; [`ErrorKind::AlreadyExists`] if that is taken.
    pub(super) fn name(self, name: &Path, can_replace: bool) -> Result<(), (io::Error, Self)> {
        let named = if can_replace {
            self.0.persist(name)
        } else {
            claim(self.0, name, |file, name| file.persist_noclobber(name))
        };
        match named {
            Ok(_) => {
                sync_folder(name.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")));
                Ok(())
            }
            Err(PersistError { error, file }) => Err((error, Self(file))),
        }
    }

    /// Leaves the file under the name it has. Gives that name.
    pub(super) fn keep(self) -> io::Result<PathBuf> {
        self.0.into_temp_path().keep().map_err(|refused| refused.error)
    }
}

/// Does in `folder` what giving a file its name will take there.
pub(super) fn probe(folder: &Path) -> io::Result<()> {
    let file = Whole::write(folder, b"")?;
    let mut name = file.0.path().as_os_str().to_owned();
    name.push("-probe");
    let name = PathBuf::from(name);
    file.name(&name, false).map_err(|(error, _)| error)?;
    std::fs::remove_file(name)
}

/// Gives `file` a name that nothing has. `at_once` does so in one operation, which some file systems have not: exFAT, and
/// many that come by FUSE or SMB, know neither hard links nor a rename that replaces nothing.
fn claim(
    file: NamedTempFile,
    name: &Path,
    at_once: impl FnOnce(NamedTempFile, &Path) -> Result<File, PersistError>,
) -> Result<File, PersistError> {
    let PersistError { error, file } = match at_once(file, name) {
        Ok(named) => return Ok(named),
        Err(refused) => refused,
    };
    if error.kind() == ErrorKind::AlreadyExists || name.symlink_metadata().is_ok() {
        return Err(PersistError { error: ErrorKind::AlreadyExists.into(), file });
    }
    file.persist(name)
}

/// A file that removes itself unless it is given its final name.
fn partial_file(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".fresco-tmp");
    #[cfg(unix)]
    {
        // The library would make the file readable to its owner alone; the user's umask decides instead.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(Permissions::from_mode(0o666));
    }
    builder.tempfile_in(folder).map_err(|error| {
        // The library adds the name it chose for the file, which means nothing to the user.
        let said = error.to_string();
        io::Error::new(error.kind(), said.split(" at path ").next().unwrap_or(&said).to_owned())
    })
}

/// Makes the name as durable as the bytes. Some file systems cannot; the picture is whole all the same.
fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(%error, "the folder could not be synced");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As file systems without hard links refuse them.
    fn refuse(file: NamedTempFile, _: &Path) -> Result<File, PersistError> {
        Err(PersistError { error: ErrorKind::PermissionDenied.into(), file })
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            folder.read_dir().expect("is a folder").map(|entry| entry.expect("is an entry").path()).collect();
        files.sort();
        files
    }

    #[test]
    fn a_name_is_claimed_where_the_file_system_cannot_do_so_at_once() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let name = folder.path().join("a.png");
        let whole = |bytes: &[u8]| Whole::write(folder.path(), bytes).expect("can be written").0;
        claim(whole(b"first"), &name, refuse).expect("the name is free");
        let refused = claim(whole(b"second"), &name, refuse).expect_err("the name is taken");
        assert_eq!(refused.error.kind(), ErrorKind::AlreadyExists);
        drop(refused);
        assert_eq!(std::fs::read(&name).expect("is there"), b"first");
        assert_eq!(files(folder.path()), [name]);
    }

    #[test]
    fn a_link_to_nothing_is_a_name_that_is_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let name = folder.path().join("a.png");
        std::os::unix::fs::symlink("nowhere", &name).expect("a link can be made");
        let file = Whole::write(folder.path(), b"x").expect("can be written").0;
        let refused = claim(file, &name, refuse).expect_err("the name is taken");
        assert_eq!(refused.error.kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        probe(folder.path()).expect("files can be written");
        assert_eq!(files(folder.path()), Vec::<PathBuf>::new());
        assert!(probe(&folder.path().join("nowhere")).is_err());
    }
}
