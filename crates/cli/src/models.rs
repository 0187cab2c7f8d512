//! Where models are looked for by name.
//!
//! Leaves out what is in a model folder; that is `model::folder`'s.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::exit::Stop;

/// The model folder that `asked`, a path or a name, means.
pub(crate) fn find(asked: &str) -> Result<PathBuf, Stop> {
    let path = Path::new(asked);
    if asked.contains(std::path::is_separator) {
        return match path.metadata() {
            Ok(found) if found.is_dir() => of_cache(path),
            Ok(_) => Err(Stop::Usage(format!("model `{asked}` is not a folder: give the folder that holds its parts"))),
            Err(error) => Err(Stop::NotFound(format!("model folder `{asked}`: {error}: give a folder that exists"))),
        };
    }
    let executable = std::env::current_exe().and_then(|path| path.canonicalize()).ok();
    let places = places(std::env::var_os("FRESCO_MODELS"), executable.as_deref());
    of_cache(&find_in(asked, &places)?)
}

/// The folder itself, or what was downloaded last if it is a repository in Hugging Face's cache.
fn of_cache(dir: &Path) -> Result<PathBuf, Stop> {
    let snapshots = dir.join("snapshots");
    if !snapshots.is_dir() || dir.join("transformer").is_dir() || dir.join("model_index.json").is_file() {
        return Ok(dir.to_owned());
    }
    let main = std::fs::read_to_string(dir.join("refs").join("main")).unwrap_or_default();
    let main = Path::new(main.trim()).file_name().map(|commit| snapshots.join(commit));
    if let Some(main) = main.filter(|main| main.is_dir()) {
        return Ok(main);
    }
    let entries = std::fs::read_dir(&snapshots).into_iter().flatten();
    let all: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect();
    match &all[..] {
        [only] => Ok(only.clone()),
        _ => Err(Stop::Usage(format!(
            "model `{}` is a repository of a cache with {} snapshots: give the folder of one in {}",
            dir.display(),
            all.len(),
            snapshots.display()
        ))),
    }
}

/// A folder here that looks like a model goes before the places, and any other folder here behind them: the
/// default's name is a word a project may well have a folder for.
fn find_in(name: &str, places: &[PathBuf]) -> Result<PathBuf, Stop> {
    let here = Path::new(name);
    let is_model = |folder: &Path| folder.join("model_index.json").is_file() || folder.join("transformer").is_dir();
    let is_name = !name.is_empty() && name != "." && name != "..";
    let known = places.iter().map(|place| place.join(name)).filter(|folder| is_name && folder.is_dir());
    let candidates = is_model(here).then(|| here.to_owned()).into_iter().chain(known);
    candidates.chain(here.is_dir().then(|| here.to_owned())).next().ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        Stop::NotFound(format!(
            "model `{name}` was not found in {}: give its folder with --model, or name the folder it is in with FRESCO_MODELS",
            looked.join(", ")
        ))
    })
}

/// Folders that hold models, in the order they are looked through.
fn places(asked: Option<OsString>, executable: Option<&Path>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = asked.iter().flat_map(std::env::split_paths).collect();
    places.retain(|place| !place.as_os_str().is_empty());
    places.push("models".into());
    if let Some(bin) = executable.and_then(Path::parent) {
        // A built tree has its binary some folders below the models; an installed one has a share/ beside bin/.
        places.extend(bin.ancestors().map(|folder| folder.join("models")));
        places.extend(bin.parent().map(|prefix| prefix.join("share").join("fresco").join("models")));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_goes_before_the_current_folder_and_that_before_the_binarys() {
        let found = places(Some("/a:/b".into()), Some(Path::new("/opt/bin/fresco")));
        let expected = ["/a", "/b", "models", "/opt/bin/models", "/opt/models", "/models", "/opt/share/fresco/models"];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[test]
    fn a_repository_of_a_cache_means_its_snapshot() {
        let cache = tempfile::tempdir().expect("a temporary folder can be made");
        let repository = cache.path().join("models--PixArt-alpha--PixArt-Sigma-XL-2-1024-MS");
        let [old, new] = ["0123abc", "4567def"].map(|commit| repository.join("snapshots").join(commit));
        std::fs::create_dir_all(&old).expect("a folder can be made");
        let asked = repository.to_str().expect("is text");
        assert_eq!(find(asked).ok(), Some(old));
        std::fs::create_dir_all(&new).expect("a folder can be made");
        let message = find(asked).expect_err("which one is not known").to_string();
        assert!(message.contains("2 snapshots"), "{message}");
        std::fs::create_dir_all(repository.join("refs")).expect("a folder can be made");
        std::fs::write(repository.join("refs/main"), "4567def\n").expect("can be written");
        assert_eq!(find(asked).ok(), Some(new));
    }

    #[test]
    fn a_name_is_looked_up_and_what_is_not_found_is_said_with_the_places() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::create_dir(folder.path().join("small")).expect("a folder can be made");
        let places = [PathBuf::from("/nowhere"), folder.path().to_owned()];
        assert_eq!(find_in("small", &places).ok(), Some(folder.path().join("small")));
        let message = find_in("large", &places).expect_err("there is none").to_string();
        assert!(message.starts_with("model `large` was not found in /nowhere, "), "{message}");
        assert!(find_in("", &places).is_err());
    }
}
