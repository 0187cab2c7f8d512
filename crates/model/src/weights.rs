//! Weights on disk: safetensors files, sharded or not, mapped and read by name.
//!
//! Values are widened to f32 when asked for so, which is exact. Pickles are recognised and never loaded.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use kernels::MappedFile;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use crate::place::Place;

pub mod random;

/// Told of each weight that was read or laid out; breaking off ends that.
pub type OnRead<'a> = dyn Fn() -> ControlFlow<()> + Sync + 'a;

/// What breaking off makes of reading.
pub(crate) fn broken_off() -> candle_core::Error {
    candle_core::Error::Msg("cancelled".into())
}

/// The weight files of one network.
pub struct Weights {
    files: Vec<WeightFile>,
    /// File of each tensor.
    index: BTreeMap<String, usize>,
    place: Place,
}

struct WeightFile {
    path: PathBuf,
    map: MappedFile,
    metadata: Metadata,
    /// Where values begin.
    start: usize,
}

/// What a tensor's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Type as stored.
    pub dtype: Dtype,
    /// Axes.
    pub shape: Vec<usize>,
}

impl Weights {
    /// Opens all weight files in `dir`, which belongs to the part `part` (for messages).
    ///
    /// # Errors
    /// Every fault found: no weights, a missing shard, a truncated or malformed file, a pickle.
    pub fn open(dir: &Path, part: &str) -> Result<Self, Vec<String>> {
        let paths = find_files(dir, part).map_err(|fault| vec![fault])?;
        let (mut files, mut faults) = (Vec::new(), Vec::new());
        for path in paths {
            match WeightFile::open(&path) {
                Ok(file) => files.push(file),
                Err(fault) => faults.push(format!("{part}/{}: {fault}", file_name(&path))),
            }
        }
        let mut index = BTreeMap::new();
        for (file_idx, file) in files.iter().enumerate() {
            for name in file.metadata.tensors().into_keys() {
                if let Some(other) = index.insert(name.clone(), file_idx) {
                    let [first, second] = [other, file_idx].map(|idx| file_name(&files[idx].path));
                    faults.push(format!("{part}: tensor `{name}` is in both {first} and {second}"));
                }
            }
        }
        if faults.is_empty() { Ok(Self { files, index, place: Place::default() }) } else { Err(faults) }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// What the header says about `name`.
    pub fn header(&self, name: &str) -> Option<Header> {
        let info = self.files[*self.index.get(name)?].metadata.info(name)?;
        Some(Header { dtype: info.dtype, shape: info.shape.clone() })
    }

    /// Paths of the files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    fn bytes(&self, name: &str) -> Option<(&[u8], Header)> {
        let file = &self.files[*self.index.get(name)?];
        let info = file.metadata.info(name)?;
        let (from, to) = info.data_offsets;
        let header = Header { dtype: info.dtype, shape: info.shape.clone() };
        Some((&file.map[file.start + from..file.start + to], header))
    }

    /// Adds all tensors to `hash`, by name: the same weights give the same hash however files hold them.
    pub(crate) fn hash(&self, hash: &mut sha2::Sha256) {
        use sha2::Digest;
        for name in self.names() {
            if let Some((bytes, header)) = self.bytes(name) {
                hash.update(format!("{name} {:?} {:?}\n", header.dtype, header.shape));
                hash.update(bytes);
            }
        }
    }

    /// Memory its tensors take where the networks compute.
    pub fn placed_bytes(&self) -> u64 {
        let values = self.files.iter().flat_map(|file| file.metadata.tensors().into_values());
        let n_values: u64 = values.map(|info| info.shape.iter().product::<usize>() as u64).sum();
        n_values * self.place.value_bytes()
    }

    /// For networks that compute on `place`.
    #[must_use]
    pub fn on(self, place: Place) -> Self {
        Self { place, ..self }
    }

    /// Where the networks compute.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Tensor `name` where the networks compute, in the type they compute in.
    ///
    /// # Errors
    /// As [`Self::f32`], or if the device's memory is short.
    pub fn placed(&self, name: &str) -> candle_core::Result<Tensor> {
        self.place.take(&self.f32(name)?)
    }

    /// Tensor `name` in f32, on the CPU.
    ///
    /// # Errors
    /// If there is no such tensor, or its type is not f32, f16 or bf16.
    pub fn f32(&self, name: &str) -> candle_core::Result<Tensor> {
        let (bytes, header) = self.bytes(name).ok_or_else(|| no_such(name))?;
        Tensor::from_vec(widen(bytes, header.dtype)?, header.shape, &Device::Cpu)
    }

    /// Tensor `name` in the type it is stored in.
    ///
    /// # Errors
    /// As [`Self::f32`].
    pub fn stored(&self, name: &str) -> candle_core::Result<Tensor> {
        let (bytes, header) = self.bytes(name).ok_or_else(|| no_such(name))?;
        let dtype = match header.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => return self.f32(name),
        };
        Tensor::from_raw_buffer(bytes, dtype, &header.shape, &Device::Cpu)
    }

    /// Names of the tensors that hold a NaN or an infinity, with the first place. `read` is told of each tensor and may
    /// break off.
    ///
    /// # Errors
    /// If a tensor's type cannot be read, or `read` breaks off.
    pub fn not_finite(&self, read: &OnRead<'_>) -> candle_core::Result<Vec<String>> {
        let names: Vec<&str> = self.names().collect();
        let look = |name| {
            let found = self.first_not_finite(name)?;
            if read().is_break() { Err(broken_off()) } else { Ok(found) }
        };
        let found: candle_core::Result<Vec<Option<String>>> = names.into_par_iter().map(look).collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// `name` with the first place that is not finite, if there is one.
    ///
    /// # Errors
    /// If the tensor's type cannot be read.
    pub fn first_not_finite(&self, name: &str) -> candle_core::Result<Option<String>> {
        let (bytes, header) = self.bytes(name).ok_or_else(|| no_such(name))?;
        let values = widen(bytes, header.dtype)?;
        let place = values.iter().position(|value| !value.is_finite());
        Ok(place.map(|place| format!("`{name}` holds {} at element {place}", values[place])))
    }
}

fn no_such(name: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("no tensor `{name}`"))
}

/// The types weights may be stored in.
pub(crate) fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Little-endian values as f32.
fn widen(bytes: &[u8], dtype: Dtype) -> candle_core::Result<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        Dtype::F32 => Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Ok(pairs().map(|bits| f16::from_bits(bits).to_f32()).collect()),
        Dtype::BF16 => Ok(pairs().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
        other => {
            Err(candle_core::Error::Msg(format!("weights of type {other:?} are not supported: use f32, f16 or bf16")))
        }
    }
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self, String> {
        let map = MappedFile::open(path).map_err(|error| error.to_string())?;
        // Checks the header, that tensors neither overlap nor leave holes, and that the file ends where they do.
        if let Err(error) = SafeTensors::deserialize(&map) {
            // Asked only now: the length that a safetensors file begins with may look like the start of a pickle.
            return Err(if is_pickle(&map) {
                "is a pickle, which is never loaded for rendering: use safetensors, or `fresco model convert` for an original checkpoint".into()
            } else {
                format!("is truncated or is no safetensors file ({error}, {} bytes): fetch it again", map.len())
            });
        }
        let (header_len, metadata) = SafeTensors::read_metadata(&map).map_err(|error| error.to_string())?;
        Ok(Self { path: path.to_owned(), start: header_len + 8, map, metadata })
    }
}

/// Zip archives and bare pickles, the two forms PyTorch writes.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || (bytes.first() == Some(&0x80) && matches!(bytes.get(1), Some(2..=5)))
}

pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The weight files of a part: the shards an index names, or the one safetensors file.
fn find_files(dir: &Path, part: &str) -> Result<Vec<PathBuf>, String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map_err(|error| format!("{}: {error}", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let whole = ["diffusion_pytorch_model.safetensors", "model.safetensors"];
    if let Some(name) = names.iter().find(|name| whole.contains(&name.as_str())) {
        return Ok(vec![dir.join(name)]);
    }
    if let Some(name) = names.iter().find(|name| name.ends_with(".safetensors.index.json")) {
        return shards(dir, name).map_err(|fault| format!("{part}/{name}: {fault}"));
    }
    let single: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    match single[..] {
        [name] => Ok(vec![dir.join(name)]),
        [] => Err(match names.iter().find(|name| is_pickle_name(name)) {
            Some(pickle) => format!(
                "{part}/{pickle} is a pickle, which is never loaded for rendering: put safetensors there, or use `fresco model convert` for an original checkpoint"
            ),
            None => format!("{part}: no .safetensors file in {}", dir.display()),
        }),
        _ => Err(format!("{part}: {} safetensors files and no index that says which belong together", single.len())),
    }
}

fn is_pickle_name(name: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt", ".pkl"].iter().any(|ending| name.ends_with(ending))
}

/// Files an index names; each once.
fn shards(dir: &Path, index: &str) -> Result<Vec<PathBuf>, String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(dir.join(index)).map_err(|error| error.to_string())?;
    let index: Index = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let names: std::collections::BTreeSet<String> = index.weight_map.into_values().collect();
    let missing: Vec<&str> = names.iter().filter(|name| !dir.join(name).is_file()).map(String::as_str).collect();
    if names.iter().any(|name| Path::new(name).components().count() != 1) {
        return Err("names a file outside its folder".into());
    }
    if !missing.is_empty() {
        return Err(format!("missing shards: {}", missing.join(", ")));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

#[cfg(test)]
mod tests;
