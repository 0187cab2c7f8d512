//! Finished pictures in a folder, each under the hash of its bytes; whole or not there.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// What the name of a picture that is not whole begins and ends with.
const PARTIAL: (&str, &str) = (".", ".partial");

/// The folder of pictures.
pub(crate) struct Artifacts {
    folder: PathBuf,
}

/// Why a picture was not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArtifactError {
    /// The disk or folder is at fault.
    #[error("the picture cannot be kept in {folder}: {error}: make room, it is tried again")]
    Disk { folder: String, error: std::io::Error },
    /// Other bytes came than were announced.
    #[error("the picture's bytes have the sha256 {found}, {expected} was announced")]
    Hash { expected: String, found: String },
}

/// A picture on its way in.
pub(crate) struct Incoming<'a> {
    artifacts: &'a Artifacts,
    file: NamedTempFile,
    hash: Sha256,
}

impl Artifacts {
    /// In `folder`, made if it is not there. What a crash left half written goes; who sent it sends it again.
    pub(crate) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("create the folder of pictures {}", folder.display()))?;
        let unread = || format!("read the folder of pictures {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(unread)? {
            let entry = entry.with_context(unread)?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(PARTIAL.0) && name.ends_with(PARTIAL.1) {
                drop(fs::remove_file(entry.path()));
            }
        }
        Ok(Self { folder })
    }

    /// The names of all pictures.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_name(name)).collect()
    }

    /// Removes a picture that is no image's any more.
    pub(crate) fn remove(&self, sha256: &str) {
        if !is_name(sha256) {
            return;
        }
        let path = self.folder.join(sha256);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a picture that is no image's cannot be removed: it may be by hand");
            }
            _ => {}
        }
    }

    fn fault(&self, error: std::io::Error) -> ArtifactError {
        ArtifactError::Disk { folder: self.folder.display().to_string(), error }
    }

    /// Begins to take a picture in.
    pub(crate) fn begin(&self) -> Result<Incoming<'_>, ArtifactError> {
        let file = tempfile::Builder::new().prefix(PARTIAL.0).suffix(PARTIAL.1).tempfile_in(&self.folder);
        Ok(Incoming { artifacts: self, file: file.map_err(|error| self.fault(error))?, hash: Sha256::new() })
    }

    /// A picture's file, if `sha256` is the name of one.
    pub(crate) fn file(&self, sha256: &str) -> Option<File> {
        is_name(sha256).then(|| File::open(self.folder.join(sha256)).ok()).flatten()
    }
}

fn is_name(sha256: &str) -> bool {
    sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Incoming<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(|error| self.artifacts.fault(error))
    }

    /// Keeps the picture, durably, if it is the one announced.
    pub(crate) fn finish(self, expected: &str) -> Result<(), ArtifactError> {
        let found: String = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found != expected {
            return Err(ArtifactError::Hash { expected: expected.to_owned(), found });
        }
        let artifacts = self.artifacts;
        let fault = |error| artifacts.fault(error);
        self.file.as_file().sync_all().map_err(fault)?;
        self.file.persist(artifacts.folder.join(&found)).map_err(|refused| fault(refused.error))?;
        // Some file systems cannot sync a folder; the picture is whole all the same.
        drop(File::open(&artifacts.folder).and_then(|folder| folder.sync_all()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_picture_is_kept_under_its_hash_and_another_is_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let artifacts = Artifacts::open(folder.path().to_owned()).expect("the folder can be used");
        let mut incoming = artifacts.begin().expect("a file can be made");
        incoming.write(b"a").and_then(|()| incoming.write(b"bc")).expect("is written");
        incoming.finish(SHA256_OF_ABC).expect("is what was announced");
        let mut bytes = Vec::new();
        artifacts.file(SHA256_OF_ABC).expect("is there").read_to_end(&mut bytes).expect("can be read");
        assert_eq!(bytes, b"abc");

        let other = artifacts.begin().expect("a file can be made");
        assert!(matches!(other.finish(SHA256_OF_ABC), Err(ArtifactError::Hash { .. })));
        assert_eq!(fs::read_dir(folder.path()).expect("is a folder").count(), 1, "nothing half is left");
        assert!(artifacts.file("../../etc/passwd").is_none());
    }

    #[test]
    fn pictures_are_named_and_removed_and_nothing_else_is() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in [SHA256_OF_ABC, "notes"] {
            fs::write(folder.path().join(name), "abc").expect("can be written");
        }
        let artifacts = Artifacts::open(folder.path().to_owned()).expect("the folder can be used");
        assert_eq!(artifacts.names(), [SHA256_OF_ABC]);
        for name in [SHA256_OF_ABC, SHA256_OF_ABC, "notes", "../notes"] {
            artifacts.remove(name);
        }
        assert_eq!(artifacts.names(), [""; 0]);
        assert!(folder.path().join("notes").exists());
    }

    #[test]
    fn what_a_crash_left_half_written_goes_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in [".a1b2c3.partial", ".notes", "b.partial", SHA256_OF_ABC] {
            fs::write(folder.path().join(name), "abc").expect("can be written");
        }
        let artifacts = Artifacts::open(folder.path().to_owned()).expect("the folder can be used");
        assert!(artifacts.file(SHA256_OF_ABC).is_some());
        assert_eq!(fs::read_dir(folder.path()).expect("is a folder").count(), 3);
    }
}
