//! Where a model folder's parts are: in it, or in the base that has what it lacks; and what the folder is called.

use std::path::{Path, PathBuf};

use plan::request::MAX_TOKENS;
use plan::{ImageSize, ModelSpec};
use serde_json::{Map, Value};

use super::{DIT, SAMPLER, TEXT};
use crate::config::json;
use crate::listed::{cut, listed};

/// Tokens of a prompt that the models before Σ take.
const ALPHA_TOKENS: usize = 120;

/// Where parts are looked for.
pub(super) struct Places<'a> {
    pub(super) dir: &'a Path,
    pub(super) base: Option<&'a Path>,
}

impl Places<'_> {
    /// The folder of `part`: in the model folder, or in the base.
    pub(super) fn part(&self, part: &str, faults: &mut Vec<String>) -> Option<PathBuf> {
        // A transformer published by itself may lie at the top.
        let bare = part == DIT && !self.dir.join(DIT).is_dir() && self.dir.join("config.json").is_file();
        let own = if bare { self.dir.to_owned() } else { self.dir.join(part) };
        let found = [Some(own), self.base.map(|base| base.join(part))].into_iter().flatten().find(|dir| dir.is_dir());
        if found.is_none() {
            let hint = if self.base.is_none() { ": add it, or name a folder that has it with --base" } else { "" };
            faults.push(format!("{part}: there is no such folder in {}{hint}", self.dir.display()));
        }
        found
    }

    pub(super) fn config(&self, part: &str, faults: &mut Vec<String>) -> Option<Map<String, Value>> {
        let name = if part == SAMPLER { "scheduler_config.json" } else { "config.json" };
        let path = self.part(part, faults)?.join(name);
        json::read(&path).map_err(|fault| faults.push(format!("{part}/{name} {fault}"))).ok()
    }

    /// Fills what a converted transformer's config could not know from the base's.
    pub(super) fn complete(&self, values: &mut Map<String, Value>) {
        let Some(base) = self.base else { return };
        for (key, value) in json::read(&base.join(DIT).join("config.json")).unwrap_or_default() {
            // Which layers compress belongs to the weights at hand, never to the base.
            if key != "kv_compress" {
                values.entry(key).or_insert(value);
            }
        }
    }

    /// `model_index.json`, which need not be there, of the folder or else of the base.
    pub(super) fn index(&self, faults: &mut Vec<String>) -> Index {
        let dirs = [Some(self.dir), self.base].into_iter().flatten();
        let path = dirs.map(|dir| dir.join("model_index.json")).find(|path| path.exists());
        let read = path.as_deref().map_or_else(|| Ok(Map::new()), json::read);
        let values = read.map_err(|fault| faults.push(format!("model_index.json {fault}"))).unwrap_or_default();
        let index = Index { values, is_own: self.dir.join("model_index.json").exists() };
        let class = index.class();
        if !matches!(class, None | Some("PixArtSigmaPipeline" | "PixArtAlphaPipeline")) {
            let class = cut(class.unwrap_or_default());
            faults
                .push(format!("model_index.json: `_class_name` is \"{class}\", only PixArt's pipelines are supported"));
        }
        index
    }

    /// The one GGUF file of the text encoder, if there are no safetensors to go before it.
    pub(super) fn gguf(dir: &Path, faults: &mut Vec<String>) -> Option<PathBuf> {
        let files = std::fs::read_dir(dir).map_err(|error| faults.push(format!("{TEXT}: {}: {error}", dir.display())));
        let mut names: Vec<String> =
            files.ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        if names.iter().any(|name| name.ends_with(".safetensors")) {
            return None;
        }
        names.retain(|name| Path::new(name).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")));
        names.sort();
        match &names[..] {
            [] => None,
            [name] => Some(dir.join(name)),
            [name, ..] => {
                faults.push(format!("{TEXT}: {} could each be the weights: keep one", listed(&names)));
                Some(dir.join(name))
            }
        }
    }
}

/// `model_index.json`.
pub(super) struct Index {
    values: Map<String, Value>,
    /// Whether it is the folder's own and not the base's.
    is_own: bool,
}

impl Index {
    fn class(&self) -> Option<&str> {
        self.values.get("_class_name").and_then(Value::as_str)
    }

    /// Tokens of a prompt that the model's pipeline takes.
    pub(super) fn most_tokens(&self) -> usize {
        if self.class() == Some("PixArtAlphaPipeline") { ALPHA_TOKENS } else { MAX_TOKENS }
    }

    /// The size of picture the model is at its best with.
    pub(super) fn natural_size(&self, spec: &ModelSpec, faults: &mut Vec<String>) -> Option<ImageSize> {
        let Some(size) = self.values.get("_fresco_natural_size").filter(|_| self.is_own) else {
            let side_px = (spec.dit.sample_cells * spec.vae.factor()) as u32;
            let side_px = (side_px / ImageSize::MULTIPLE_PX).max(1) * ImageSize::MULTIPLE_PX;
            return ImageSize::new(side_px, side_px).ok();
        };
        let parsed = size.as_str().unwrap_or_default().parse::<ImageSize>();
        let fault = |fault| format!("model_index.json: `_fresco_natural_size` is {}: {fault}", cut(&size.to_string()));
        parsed.map_err(|error| faults.push(fault(error))).ok()
    }
}

/// What the user calls the folder `dir`: its last component as given, whatever a link leads to; of a download in
/// Hugging Face's cache (`models--OWNER--NAME/snapshots/COMMIT`) the repository's name.
pub(super) fn name(dir: &Path) -> String {
    let of_snapshot = |dir: &Path| {
        let snapshots = dir.parent()?;
        let repository = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
        let name = repository.rsplit("--").next()?;
        (snapshots.file_name()? == "snapshots" && !name.is_empty()).then(|| name.to_owned())
    };
    // A path that ends in `..` has no last component of its own.
    let absolute = std::path::absolute(dir).ok().filter(|path| path.file_name().is_some());
    let named = absolute.or_else(|| dir.canonicalize().ok()).unwrap_or_else(|| dir.to_owned());
    let last = named.file_name().unwrap_or(dir.as_os_str()).to_string_lossy();
    of_snapshot(&named).unwrap_or_else(|| last.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_called_what_its_user_calls_it() {
        for (dir, expected) in [
            ("./demo", "demo"),
            ("/models/demo/", "demo"),
            ("models/demo/.", "demo"),
            ("models--PixArt-alpha--PixArt-Sigma-XL-2-1024-MS/snapshots/0123abc", "PixArt-Sigma-XL-2-1024-MS"),
            ("/cache/models--gpt2/snapshots/0123abc/", "gpt2"),
            ("/cache/mine/snapshots/0123abc", "0123abc"),
        ] {
            assert_eq!(name(Path::new(dir)), expected, "{dir}");
        }
    }

    #[test]
    fn a_link_keeps_its_own_name() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(dir.path().join("0123abc")).expect("a folder");
        let link = dir.path().join("Sigma");
        std::os::unix::fs::symlink("0123abc", &link).expect("a link");
        assert_eq!(name(&link), "Sigma");
        assert_eq!(name(&link.join("..").join("Sigma")), "Sigma");
        let within = link.join(".").join("..");
        assert_eq!(name(&within), dir.path().file_name().expect("a name").to_string_lossy());
    }
}
