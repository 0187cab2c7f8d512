//! A part of a model folder, as commands show it.

use std::path::{Path, PathBuf};

use crate::listed::{counted, listed};
use crate::text::TextWeights;
use crate::text::gguf::Gguf;
use crate::weights::Weights;

/// One part of the folder.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Part {
    /// Name of its folder.
    pub name: String,
    /// Weight files, or the tokenizer's.
    pub files: Vec<PathBuf>,
    /// Tensors that are used.
    pub n_tensors: usize,
    /// Values in them.
    pub n_parameters: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Types of the tensors that are used.
    pub dtypes: Vec<String>,
    /// Keys of the config that mean nothing to us.
    pub unknown_config_keys: Vec<String>,
    /// Tensors nothing here uses, but for those that every published file has.
    pub unknown_tensors: Vec<String>,
    /// Weight files that are not read.
    pub unused_files: Vec<String>,
}

impl Part {
    pub(super) fn of_files(name: &str, files: Vec<PathBuf>) -> Self {
        let bytes = files.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
        Self {
            name: name.into(),
            files,
            n_tensors: 0,
            n_parameters: 0,
            bytes,
            dtypes: Vec::new(),
            unknown_config_keys: Vec::new(),
            unknown_tensors: Vec::new(),
            unused_files: Vec::new(),
        }
    }

    pub(super) fn of_weights(name: &str, weights: &Weights) -> Self {
        let headers = weights.names().filter_map(|name| weights.header(name));
        let dtypes = headers.map(|header| format!("{:?}", header.dtype).to_lowercase()).collect();
        Self {
            n_tensors: weights.names().count(),
            n_parameters: weights.n_values(),
            dtypes: distinct(dtypes),
            unused_files: weights.unused().files.clone(),
            ..Self::of_files(name, weights.paths())
        }
    }

    pub(super) fn of_gguf(name: &str, gguf: &Gguf) -> Self {
        Self {
            n_tensors: gguf.n_tensors(),
            n_parameters: gguf.n_values(),
            dtypes: distinct(gguf.dtypes().collect()),
            ..Self::of_files(name, vec![gguf.path().to_owned()])
        }
    }

    /// What it holds and nobody reads, in one line.
    pub fn note(&self) -> Option<String> {
        let mut notes = Vec::new();
        let mut note = |what: &str, n: usize, names: String| {
            if n > 0 {
                notes.push(format!(
                    "{} that {} not used: {names}",
                    counted(n, what),
                    if n == 1 { "is" } else { "are" }
                ));
            }
        };
        note("tensor", self.unknown_tensors.len(), listed(&self.unknown_tensors));
        note("setting", self.unknown_config_keys.len(), listed(&self.unknown_config_keys));
        note("weight file", self.unused_files.len(), listed(&self.unused_files));
        (!notes.is_empty()).then(|| format!("{}: {}", self.name, notes.join("; ")))
    }
}

fn distinct(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}

/// Bytes of the text encoder's tensors, as they are stored.
pub(super) fn text_bytes(weights: &TextWeights) -> u64 {
    match weights {
        TextWeights::Safetensors(weights) => weights.stored_bytes(),
        TextWeights::Gguf(gguf) => gguf.stored_bytes(),
    }
}

/// The tokenizer's file that is read.
pub(super) fn tokenizer_file(dir: &Path) -> PathBuf {
    let json = dir.join("tokenizer.json");
    if json.is_file() { json } else { dir.join("spiece.model") }
}
