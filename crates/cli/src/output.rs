//! Where pictures go: names, checks before the work starts, and writes that leave a whole file or none.
//!
//! Leaves out what is in the files.

use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use plan::RenderRequest;
use tempfile::NamedTempFile;

use crate::args::BitDepth;
use crate::exit::Stop;
use plan::ArtifactKind;

/// The name one picture will have.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    path: PathBuf,
    pub(crate) kind: ArtifactKind,
    on_conflict: OnConflict,
}

/// What to do about a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnConflict {
    Refuse,
    Replace,
    /// Take the next free name: nobody asked for this one.
    Number,
}

impl Target {
    /// The target of the picture of `request`, one of `count`.
    pub(crate) fn of(
        request: &RenderRequest,
        count: u32,
        out: Option<&Path>,
        force: bool,
        bit_depth: BitDepth,
    ) -> Result<Self, Stop> {
        let Some(out) = out else {
            let path = PathBuf::from(format!("{}-s{}.png", slug(&request.prompt), request.seed));
            let on_conflict = if force { OnConflict::Replace } else { OnConflict::Number };
            return Ok(Self { path, kind: bit_depth.into(), on_conflict });
        };
        let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        let kind = match ending.as_str() {
            "png" => bit_depth.into(),
            "safetensors" => ArtifactKind::Safetensors,
            _ if out.is_dir() => return Err(is_a_folder(out)),
            _ => {
                let shown = out.display();
                return Err(Stop::Usage(format!("--out {shown}: the name must end in .png or .safetensors")));
            }
        };
        let path = if count > 1 { with_stem_end(out, &format!("-{}", request.seed)) } else { out.to_owned() };
        Ok(Self { path, kind, on_conflict: if force { OnConflict::Replace } else { OnConflict::Refuse } })
    }

    /// A file of a name, of bytes that are there already.
    pub(crate) fn named(path: PathBuf, kind: ArtifactKind, force: bool) -> Self {
        Self { path, kind, on_conflict: if force { OnConflict::Replace } else { OnConflict::Refuse } }
    }

    /// The name of the preview beside the picture.
    pub(crate) fn preview(&self) -> Self {
        let path = with_stem_end(&self.path, ".preview").with_extension("png");
        let on_conflict = if self.on_conflict == OnConflict::Number { OnConflict::Refuse } else { self.on_conflict };
        Self { path, kind: ArtifactKind::Png8, on_conflict }
    }

    /// The same name, to be written again and again.
    pub(crate) fn replacing(self) -> Self {
        Self { on_conflict: OnConflict::Replace, ..self }
    }

    /// The path as the user gave it.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a name that could not be written, before any work is done for it.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let path = self.path.display();
        let dir = folder_of(&self.path);
        match dir.metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(Stop::Usage(format!("--out {path}: {} is not a folder", dir.display())).into()),
            Err(error) => {
                let fault = format!("--out {path}: folder {}: {error}: create it, or choose another", dir.display());
                return Err(Stop::Usage(fault).into());
            }
        }
        match self.path.symlink_metadata() {
            Ok(found) if found.is_dir() || self.path.is_dir() => return Err(is_a_folder(&self.path).into()),
            Ok(_) if self.on_conflict == OnConflict::Refuse => return Err(exists(&self.path).into()),
            _ => {}
        }
        let probe = partial_file(dir).with_context(|| format!("--out {path}: cannot write to {}", dir.display()))?;
        probe.close().with_context(|| format!("--out {path}: cannot write to {}", dir.display()))
    }

    /// Writes the file, which appears under its name only when it is whole and on the disk. Gives that name.
    pub(crate) fn write(&self, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        let dir = folder_of(&self.path);
        let fault = |error: std::io::Error| anyhow!("cannot write {}: {error}", self.path.display());
        let mut file = partial_file(dir).map_err(fault)?;
        file.as_file_mut().write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(fault)?;
        if self.on_conflict == OnConflict::Replace {
            file.persist(&self.path).map_err(|refused| fault(refused.error))?;
            sync_folder(dir);
            return Ok(self.path.clone());
        }
        for name in self.names() {
            match file.persist_noclobber(&name) {
                Ok(_) => {
                    sync_folder(dir);
                    return Ok(name);
                }
                Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => file = refused.file,
                Err(refused) => return Err(fault(refused.error)),
            }
        }
        Err(exists(&self.path).into())
    }

    /// Names to try, in order.
    fn names(&self) -> impl Iterator<Item = PathBuf> {
        const MOST: u32 = 100_000;
        let last = if self.on_conflict == OnConflict::Number { MOST } else { 1 };
        let numbered = (2..=last).map(|number| with_stem_end(&self.path, &format!("-{number}")));
        [self.path.clone()].into_iter().chain(numbered)
    }
}

fn is_a_folder(path: &Path) -> Stop {
    Stop::Usage(format!("{} is a folder: give --out the name of a file in it", path.display()))
}

fn exists(path: &Path) -> Stop {
    Stop::Usage(format!("{} exists: choose another name with --out, or replace it with --force", path.display()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// `a/b.png` with the end `-2` is `a/b-2.png`.
pub(crate) fn with_stem_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(end);
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// A file that removes itself unless it is given its final name.
fn partial_file(dir: &Path) -> std::io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".").suffix(".fresco-tmp");
    #[cfg(unix)]
    {
        // The library would make the file readable to its owner alone; the user's umask decides instead.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(Permissions::from_mode(0o666));
    }
    builder.tempfile_in(dir).map_err(|error| {
        // The library adds the name it chose for the file, which means nothing to the user.
        let said = error.to_string();
        std::io::Error::new(error.kind(), said.split(" at path ").next().unwrap_or(&said).to_owned())
    })
}

/// Makes the name as durable as the bytes. Some file systems cannot; the picture is whole all the same.
fn sync_folder(dir: &Path) {
    if let Err(error) = File::open(dir).and_then(|dir| dir.sync_all()) {
        tracing::debug!(%error, "the folder could not be synced");
    }
}

/// The prompt as a file name.
fn slug(prompt: &str) -> String {
    const MOST_BYTES: usize = 60;
    let mut slug = String::new();
    let words = prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    for word in words.map(str::to_lowercase) {
        let room = MOST_BYTES.saturating_sub(slug.len() + 1);
        if word.len() <= room {
            slug = if slug.is_empty() { word } else { format!("{slug}-{word}") };
            continue;
        }
        if slug.is_empty() {
            let end = (0..=room).rev().find(|&end| word.is_char_boundary(end)).unwrap_or(0);
            slug.push_str(&word[..end]);
        }
        break;
    }
    if slug.is_empty() { "picture".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_slug(prompt: &str, expected: &str) {
        assert_eq!(slug(prompt), expected);
    }

    #[test]
    fn a_prompt_becomes_a_file_name() {
        check_slug("Snowy mountains, at sunset!", "snowy-mountains-at-sunset");
        check_slug("../../etc/passwd\n", "etc-passwd");
        check_slug("", "picture");
        check_slug("…", "picture");
        check_slug("Übersicht 東京", "übersicht-東京");
        check_slug(&"very ".repeat(40), "very-very-very-very-very-very-very-very-very-very-very-very");
        check_slug(&"東".repeat(40), &"東".repeat(19));
    }

    #[test]
    fn an_end_goes_before_the_ending() {
        assert_eq!(with_stem_end(Path::new("a/b.c.png"), "-2"), Path::new("a/b.c-2.png"));
        assert_eq!(with_stem_end(Path::new("b"), "-2"), Path::new("b-2"));
    }

    #[test]
    fn a_default_name_that_is_taken_gets_a_number() {
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        let target =
            |on_conflict| Target { path: dir.path().join("a.png"), kind: ArtifactKind::Safetensors, on_conflict };
        let write = |on_conflict| target(on_conflict).write(b"x").map_err(|error| error.to_string());
        assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a.png")));
        assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a-2.png")));
        assert_eq!(write(OnConflict::Number), Ok(dir.path().join("a-3.png")));
        assert_eq!(write(OnConflict::Replace), Ok(dir.path().join("a.png")));
        assert!(write(OnConflict::Refuse).expect_err("is taken").contains("exists"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("is a folder").count(), 3);
    }
}
