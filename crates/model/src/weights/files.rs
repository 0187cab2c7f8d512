//! Which files of a folder hold a network's weights: one, or the shards an index names.
//!
//! Where a folder holds several sets, the one without a variant's name (`fp16`) is read, as the reference does when it
//! is not asked for another.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::config::json;
use crate::listed::listed;

const ENDING: &str = ".safetensors";
/// Names of weights that are no variant, in one file; with an ending, that of their index.
const PLAIN: [&str; 2] = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
const INDEX_ENDING: &str = ".index.json";

/// The files of one set.
pub(super) struct Files {
    /// Names of the files, sorted.
    pub(super) names: Vec<String>,
    /// The file of each tensor, where an index tells.
    pub(super) homes: BTreeMap<String, String>,
    /// Other weight files in the folder.
    pub(super) unused: Vec<String>,
}

/// Finds the weights of `part` in `dir`.
///
/// # Errors
/// If there are none or it is not clear which are meant, as one line.
pub(super) fn find(dir: &Path, part: &str) -> Result<Files, String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(|error| format!("{part}: {}: {error}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let chosen = choose(&names, part, dir)?;
    let (used, homes) = if chosen.ends_with(ENDING) {
        (vec![chosen], BTreeMap::new())
    } else {
        read_index(&dir.join(&chosen)).map_err(|fault| format!("{part}/{chosen} {fault}"))?
    };
    let unused = names.into_iter().filter(|name| is_weights(name) && !used.contains(name)).collect();
    Ok(Files { names: used, homes, unused })
}

/// Whether a file by this name could hold weights.
fn is_weights(name: &str) -> bool {
    name.ends_with(ENDING) || name.ends_with(".gguf")
}

/// The file of weights, or the index, to read.
fn choose(names: &[String], part: &str, dir: &Path) -> Result<String, String> {
    let has = |wanted: &String| names.contains(wanted);
    let plain = PLAIN.iter().flat_map(|plain| {
        let (whole, index) = ((*plain).to_owned(), format!("{plain}{INDEX_ENDING}"));
        // With both there, the library of each network reads another one first.
        if *plain == PLAIN[0] { [index, whole] } else { [whole, index] }
    });
    if let Some(name) = plain.into_iter().find(has) {
        return Ok(name);
    }
    let mut indexed = BTreeSet::new();
    for index in names.iter().filter(|name| is_index(name)) {
        let (files, _) = read_index(&dir.join(index)).map_err(|fault| format!("{part}/{index} {fault}"))?;
        indexed.extend(files);
    }
    let whole = |name: &str| name.ends_with(ENDING) && !is_shard(name) && !indexed.contains(name);
    let sets: Vec<&String> = names.iter().filter(|name| is_index(name) || whole(name)).collect();
    let shards: Vec<&String> = names.iter().filter(|name| name.ends_with(ENDING) && is_shard(name)).collect();
    let first = |test: &dyn Fn(&str) -> bool| names.iter().find(|name| test(name));
    match sets[..] {
        [name] => Ok(name.clone()),
        [_, ..] => Err(format!(
            "{part}: {} could each be the weights: keep one, or name it {}",
            listed(sets),
            if part == "text_encoder" { PLAIN[1] } else { PLAIN[0] }
        )),
        [] if !shards.is_empty() => Err(format!(
            "{part}: {} and no index ({ENDING}{INDEX_ENDING}) that says which tensor is where: add it",
            listed(shards)
        )),
        [] => Err(match (first(&is_pickle_name), first(&|name| name.ends_with(".gguf"))) {
            (Some(pickle), _) => format!(
                "{part}/{pickle} is a pickle, which is never loaded for rendering: put safetensors there, or use `fresco model convert` for an original checkpoint"
            ),
            (None, Some(gguf)) => format!("{part}/{gguf}: GGUF is read for the text encoder only: use safetensors"),
            (None, None) => format!("{part}: no .safetensors file in {}", dir.display()),
        }),
    }
}

/// `X.safetensors.index.json`, or with a variant's name, which has stood before `safetensors`, before `index` and
/// before `json`.
fn is_index(name: &str) -> bool {
    name.strip_suffix(".json").is_some_and(|stem| stem.contains(ENDING) && stem.contains(".index"))
}

/// `X-00001-of-00002.safetensors`, with a variant's name before or after the numbers.
fn is_shard(name: &str) -> bool {
    name.split_once("-of-").is_some_and(|(before, after)| {
        before.ends_with(|c: char| c.is_ascii_digit()) && after.starts_with(|c: char| c.is_ascii_digit())
    })
}

fn is_pickle_name(name: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt", ".pkl"].iter().any(|ending| name.ends_with(ending))
}

/// Names of the files an index names, and the file of each tensor.
fn read_index(index: &Path) -> Result<(Vec<String>, BTreeMap<String, String>), String> {
    let values = json::read(index)?;
    let Some(Value::Object(map)) = values.get("weight_map") else { return Err("has no `weight_map`".into()) };
    let mut homes = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| format!("names no file for `{tensor}`"))?;
        let inside = Path::new(file).file_name().is_some_and(|name| name == file);
        if !inside {
            return Err(format!("names a file outside its folder for `{tensor}`"));
        }
        homes.insert(tensor.clone(), file.to_owned());
    }
    let names: BTreeSet<String> = homes.values().cloned().collect();
    if names.is_empty() {
        return Err("names no tensors".into());
    }
    Ok((names.into_iter().collect(), homes))
}
