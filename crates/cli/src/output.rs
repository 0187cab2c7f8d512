//! Where pictures go: what `--out` means, names, and what is checked before any work is done.
//!
//! `render` and `download` have the same rules. Leaves out what is in the files, how a name is made of a prompt
//! (`output/name.rs`) and how a file comes to be whole or not at all (`output/whole_file.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use plan::{ArtifactKind, RenderRequest};
use sha2::{Digest, Sha256};

use crate::args::BitDepth;
use crate::exit::Stop;
use crate::latents::hex;
use crate::scratch;
use name::{slug, with_stem_end};
use whole_file::Whole;

mod name;
mod whole_file;

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

/// What `--out` names.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Out<'a> {
    /// A folder; empty for the current one, if `--out` was not given.
    Folder(&'a Path),
    /// A file, and whether its ending is that of a PNG; else it is that of tensors.
    File { path: &'a Path, is_png: bool },
}

impl<'a> Out<'a> {
    /// Reads `--out`.
    ///
    /// # Errors
    /// If it is neither a folder that exists nor has the ending of a picture.
    pub(crate) fn read(out: Option<&'a Path>) -> Result<Self, Stop> {
        let Some(path) = out else { return Ok(Self::Folder(Path::new(""))) };
        if path.is_dir() {
            return Ok(Self::Folder(path));
        }
        let shown = path.display();
        if shown.to_string().ends_with(std::path::is_separator) {
            return Err(Stop::Usage(format!("--out {shown}: there is no such folder: create it, or choose another")));
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_lowercase();
        match ending.as_str() {
            "png" => Ok(Self::File { path, is_png: true }),
            "safetensors" => Ok(Self::File { path, is_png: false }),
            _ => {
                let fault = format!(
                    "--out {shown}: the name must end in .png or .safetensors, or be that of a folder that exists"
                );
                Err(Stop::Usage(fault))
            }
        }
    }
}

impl Target {
    /// The target of the picture of `request`, which is one of several if `is_numbered`; pictures get their seeds into
    /// their names then. The ending decides what it is written as.
    pub(crate) fn of_request(
        request: &RenderRequest,
        out: Out<'_>,
        is_numbered: bool,
        bit_depth: BitDepth,
        force: bool,
    ) -> Self {
        let own_name = || format!("{}-s{}", slug(&request.prompt), request.seed);
        let kind = match out {
            Out::File { is_png: false, .. } => ArtifactKind::Safetensors,
            _ => bit_depth.into(),
        };
        Self::new(out, is_numbered.then_some(request.seed), kind, force, own_name)
    }

    /// The target of a picture of job `id` that is there already, of `kind`; with its `seed` in its name if the job has
    /// several.
    ///
    /// # Errors
    /// If the ending is that of another kind.
    pub(crate) fn of_artifact(
        id: &str,
        seed: Option<u64>,
        kind: ArtifactKind,
        out: Out<'_>,
        force: bool,
    ) -> Result<Self, Stop> {
        if let Out::File { path, is_png } = out
            && is_png != (kind != ArtifactKind::Safetensors)
        {
            let (path, ending) = (path.display(), ending_of(kind));
            return Err(Stop::Usage(format!("--out {path}: the pictures of this job are {ending}: end it so")));
        }
        let own_name = || seed.map_or_else(|| id.to_owned(), |seed| format!("{id}-{seed}"));
        Ok(Self::new(out, seed, kind, force, own_name))
    }

    fn new(
        out: Out<'_>,
        number: Option<u64>,
        kind: ArtifactKind,
        force: bool,
        own_name: impl FnOnce() -> String,
    ) -> Self {
        let (path, otherwise) = match out {
            Out::Folder(folder) => (folder.join(format!("{}{}", own_name(), ending_of(kind))), OnConflict::Number),
            Out::File { path, .. } => {
                let numbered = number.map(|number| with_stem_end(path, &format!("-{number}")));
                (numbered.unwrap_or_else(|| path.to_owned()), OnConflict::Refuse)
            }
        };
        Self { path, kind, on_conflict: if force { OnConflict::Replace } else { otherwise } }
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

    /// Whether the file is there and holds `n_bytes` of this hash.
    pub(crate) fn holds(&self, n_bytes: u64, sha256: &str) -> bool {
        let is_as_long = self.path.metadata().is_ok_and(|found| found.is_file() && found.len() == n_bytes);
        is_as_long && std::fs::read(&self.path).is_ok_and(|bytes| hex(&Sha256::digest(&bytes)) == sha256)
    }

    /// Refuses a name that cannot be given to a file.
    pub(crate) fn check_name(&self) -> Result<(), Stop> {
        let path = self.path.display();
        let found = match self.path.symlink_metadata() {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => {
                let way_out = if error.kind() == ErrorKind::InvalidFilename { ": choose a shorter name" } else { "" };
                return Err(Stop::Usage(format!("--out {path}: {error}{way_out}")));
            }
        };
        if self.on_conflict == OnConflict::Number {
            return Ok(());
        }
        let what = match self.path.metadata() {
            Ok(of_target) if of_target.is_dir() => "a folder",
            Ok(of_target) if !of_target.is_file() => "no file but a pipe, a device or the like",
            Err(_) if found.is_symlink() => "a link to nothing",
            _ if self.on_conflict == OnConflict::Refuse => {
                let fault = format!("{path} exists: choose another name with --out, or replace it with --force");
                return Err(Stop::Usage(fault));
            }
            _ => return Ok(()),
        };
        Err(Stop::Usage(format!("--out {path}: it is {what}: choose another name")))
    }

    /// Writes the file, which appears under its name only when it is whole and on the disk. Gives that name.
    ///
    /// # Errors
    /// If the file cannot be written. If it is whole but cannot have its name, it stays, and the error says where.
    pub(crate) fn write(&self, bytes: &[u8]) -> anyhow::Result<PathBuf> {
        self.write_whole(bytes).map_err(|(error, unnamed)| {
            let path = self.path.display();
            let fault = match error.kind() {
                ErrorKind::AlreadyExists => format!("cannot write {path}: it exists by now"),
                _ => format!("cannot write {path}: {error}"),
            };
            match unnamed.map(Whole::keep) {
                Some(Ok(kept)) => anyhow!("{fault}: the picture is whole in {}", kept.display()),
                Some(Err(lost)) => anyhow!("{fault}: and it could not be kept: {lost}"),
                None => anyhow!(fault),
            }
        })
    }

    /// As [`Self::write`], of bytes nobody will miss: nothing stays if they cannot have their name.
    pub(crate) fn write_draft(&self, bytes: &[u8]) -> std::io::Result<()> {
        self.write_whole(bytes).map(drop).map_err(|(error, _)| error)
    }

    fn write_whole(&self, bytes: &[u8]) -> Result<PathBuf, (std::io::Error, Option<Whole>)> {
        scratch::unbroken(|| {
            let mut file = Whole::write(folder_of(&self.path), bytes).map_err(|error| (error, None))?;
            let can_replace = self.on_conflict == OnConflict::Replace;
            for name in self.names() {
                match file.name(&name, can_replace) {
                    Ok(()) => return Ok(name),
                    Err((error, unnamed)) if error.kind() == ErrorKind::AlreadyExists => file = unnamed,
                    Err((error, unnamed)) => return Err((error, Some(unnamed))),
                }
            }
            Err((ErrorKind::AlreadyExists.into(), Some(file)))
        })
    }

    /// Names to try, in order.
    fn names(&self) -> impl Iterator<Item = PathBuf> {
        const MOST: u32 = 100_000;
        let last = if self.on_conflict == OnConflict::Number { MOST } else { 1 };
        let numbered = (2..=last).map(|number| with_stem_end(&self.path, &format!("-{number}")));
        [self.path.clone()].into_iter().chain(numbered)
    }
}

/// Gives targets of the same name numbers: long prompts may begin alike.
pub(crate) fn keep_apart(targets: &mut [Target]) {
    // Names that are taken, each with the last number it was given with.
    let mut taken: BTreeMap<PathBuf, u32> = BTreeMap::new();
    for target in targets {
        let mut name = target.path.clone();
        if let Some(mut number) = taken.get(&name).copied() {
            while taken.contains_key(&name) {
                number += 1;
                name = with_stem_end(&target.path, &format!("-{number}"));
            }
            taken.insert(std::mem::replace(&mut target.path, name.clone()), number);
        }
        taken.insert(name, 1);
    }
}

/// Refuses targets that could not be written, before any work is done for them.
pub(crate) fn check<'a>(targets: impl IntoIterator<Item = &'a Target>) -> anyhow::Result<()> {
    let mut folders = BTreeSet::new();
    for target in targets {
        let (path, folder) = (target.path.display(), folder_of(&target.path));
        let is_new = folders.insert(folder);
        if is_new {
            check_folder(folder).map_err(|fault| Stop::Usage(format!("--out {path}: {fault}")))?;
        }
        target.check_name()?;
        if is_new {
            // Thousands of names share a folder; what goes for one goes for all.
            scratch::unbroken(|| whole_file::probe(folder))
                .map_err(|error| anyhow!("--out {path}: cannot write to {}: {error}", folder.display()))?;
        }
    }
    Ok(())
}

fn check_folder(folder: &Path) -> Result<(), String> {
    let shown = folder.display();
    match folder.metadata() {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(format!("{shown} is not a folder")),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("folder {shown}: {error}: create it, or choose another"))
        }
        Err(error) => Err(format!("folder {shown}: {error}: choose another")),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn ending_of(kind: ArtifactKind) -> &'static str {
    match kind {
        ArtifactKind::Png8 | ArtifactKind::Png16 => ".png",
        ArtifactKind::Safetensors => ".safetensors",
    }
}

#[cfg(test)]
mod tests;
