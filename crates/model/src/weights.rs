//! Weights on disk: safetensors files, sharded or not, mapped and read by name.
//!
//! Values are widened to f32 when asked for so, which is exact. Pickles are recognised and never loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use kernels::MappedFile;
use rayon::prelude::*;
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::listed::listed;
use crate::place::Place;

mod files;
pub mod random;

/// Bytes that are widened at a time.
const PART_BYTES: usize = 1 << 18;

/// Told of each weight that was read or laid out; breaking off ends that.
pub type OnRead<'a> = dyn Fn() -> ControlFlow<()> + Sync + 'a;

/// What breaking off makes of reading.
pub(crate) fn broken_off() -> candle_core::Error {
    candle_core::Error::Msg("cancelled".into())
}

/// Tensors of a network: the names each may have, the one in use first, and its shape.
pub type Manifest = Vec<(Vec<String>, Vec<usize>)>;

/// The tensors a network uses, in the files that hold them.
pub struct Weights {
    files: Vec<WeightFile>,
    /// Where each tensor is, by the first of its names.
    index: BTreeMap<String, Source>,
    unused: Unused,
    place: Place,
}

/// Where a tensor is.
struct Source {
    file_idx: usize,
    /// Its name in that file.
    name: String,
}

/// What lies beside the tensors that are used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unused {
    /// Tensors, sorted.
    pub tensors: Vec<String>,
    /// Weight files.
    pub files: Vec<String>,
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
    /// Opens the weight files in `dir`, which belongs to the part `part` (for messages), with all that they hold.
    ///
    /// # Errors
    /// Every fault found: no weights, a missing shard, a truncated or malformed file, a pickle.
    pub fn open(dir: &Path, part: &str) -> Result<Self, Vec<String>> {
        let mut opened = Opened::open(dir, part, &|_| true)?;
        let mut faults = Vec::new();
        let names: Vec<String> = opened.names().into_iter().collect();
        let sources = names.into_iter().filter_map(|name| Some((name.clone(), opened.find(&name, &mut faults)?)));
        let index = sources.collect();
        let files = std::mem::take(&mut opened.files);
        if faults.is_empty() {
            Ok(Self { files, index, unused: Unused::default(), place: Place::default() })
        } else {
            Err(faults)
        }
    }

    /// Opens the files in `dir` that hold tensors of `wanted`; others are not looked into. What the tensors are is not
    /// checked: those that are missing are simply not there.
    ///
    /// # Errors
    /// As [`Self::open`], for the files that are needed.
    pub fn open_for(dir: &Path, part: &str, wanted: &Manifest) -> Result<Self, Vec<String>> {
        let all: BTreeSet<&String> = wanted.iter().flat_map(|(names, _)| names).collect();
        let opened = Opened::open(dir, part, &|name| all.is_empty() || all.contains(&name.to_owned()))?;
        let (mut index, mut faults) = (BTreeMap::new(), Vec::new());
        for (names, _) in wanted {
            if let Some(source) = names.iter().find_map(|name| opened.find(name, &mut faults)) {
                index.insert(names[0].clone(), source);
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let tensors = opened.names().into_iter().filter(|name| !all.contains(name)).collect();
        let unused = Unused { tensors, files: opened.other_files };
        Ok(Self { files: opened.files, index, unused, place: Place::default() })
    }

    /// Names of the tensors that are used, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// What lies beside them.
    pub fn unused(&self) -> &Unused {
        &self.unused
    }

    /// What the header says about `name`.
    pub fn header(&self, name: &str) -> Option<Header> {
        Some(self.bytes(name)?.1)
    }

    /// Paths of the files.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    fn bytes(&self, name: &str) -> Option<(&[u8], Header)> {
        let source = self.index.get(name)?;
        let file = &self.files[source.file_idx];
        let info = file.metadata.info(&source.name)?;
        let (from, to) = info.data_offsets;
        let header = Header { dtype: info.dtype, shape: info.shape.clone() };
        Some((&file.map[file.start + from..file.start + to], header))
    }

    /// Adds all tensors to `hash` by name, shape and value: the same weights give the same hash however files hold them,
    /// and in whatever type that holds their values.
    ///
    /// # Errors
    /// If a tensor's type cannot be read.
    pub(crate) fn hash(&self, hash: &mut Sha256) -> candle_core::Result<()> {
        let names: Vec<&str> = self.names().collect();
        let one = |name: &&str| {
            let (bytes, header) = self.bytes(name).ok_or_else(|| no_such(name))?;
            let mut values = Sha256::new();
            for part in bytes.chunks(PART_BYTES) {
                let widened = widen(part, header.dtype)?;
                widened.iter().for_each(|value| values.update(value.to_le_bytes()));
            }
            Ok((header.shape, values.finalize()))
        };
        let hashed: Vec<_> = names.par_iter().map(one).collect::<candle_core::Result<_>>()?;
        for (name, (shape, values)) in names.iter().zip(hashed) {
            hash.update(format!("{name} {:?}\n", squeezed(&shape)));
            hash.update(values);
        }
        Ok(())
    }

    /// Bytes of the tensors, as they are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.names().filter_map(|name| self.bytes(name)).map(|(bytes, _)| bytes.len() as u64).sum()
    }

    /// Values in the tensors.
    pub fn n_values(&self) -> u64 {
        let headers = self.names().filter_map(|name| self.header(name));
        headers.map(|header| header.shape.iter().product::<usize>() as u64).sum()
    }

    /// Memory its tensors take where the networks compute.
    pub fn placed_bytes(&self) -> u64 {
        self.n_values() * self.place.value_bytes()
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

/// 1×1 convolutions and linear layers are the same weights under two shapes: `shape` without the ones at its end.
pub(crate) fn squeezed(shape: &[usize]) -> &[usize] {
    let end = shape.iter().rposition(|&side| side != 1).map_or(1, |last| last.max(1) + 1);
    &shape[..end.min(shape.len())]
}

/// Files, and where an index says that tensors are.
struct Opened<'a> {
    part: &'a str,
    files: Vec<WeightFile>,
    homes: BTreeMap<String, String>,
    other_files: Vec<String>,
}

impl<'a> Opened<'a> {
    /// Opens the files that hold tensors for which `is_wanted`, as far as an index tells.
    fn open(dir: &Path, part: &'a str, is_wanted: &dyn Fn(&str) -> bool) -> Result<Self, Vec<String>> {
        let found = files::find(dir, part).map_err(|fault| vec![fault])?;
        let mut needed: BTreeSet<&String> =
            found.homes.iter().filter(|(tensor, _)| is_wanted(tensor)).map(|(_, file)| file).collect();
        if needed.is_empty() {
            needed = found.names.iter().collect();
        }
        let missing: Vec<&&String> = needed.iter().filter(|name| !dir.join(name).is_file()).collect();
        if !missing.is_empty() && !found.homes.is_empty() {
            return Err(vec![format!("{part}: missing shards: {}", listed(missing))]);
        }
        let (mut files, mut faults) = (Vec::new(), Vec::new());
        for name in needed {
            match WeightFile::open(&dir.join(name)) {
                Ok(file) => files.push(file),
                Err(fault) => faults.push(format!("{part}/{name}: {fault}")),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        Ok(Self { part, files, homes: found.homes, other_files: found.unused })
    }

    /// All tensors that are known of.
    fn names(&self) -> BTreeSet<String> {
        let held = self.files.iter().flat_map(|file| file.metadata.tensors().into_keys());
        held.chain(self.homes.keys().cloned()).collect()
    }

    /// Where `name` is: where the index says, or in the one file that has it.
    fn find(&self, name: &str, faults: &mut Vec<String>) -> Option<Source> {
        let holders: Vec<usize> =
            (0..self.files.len()).filter(|&file_idx| self.files[file_idx].metadata.info(name).is_some()).collect();
        let home = self.homes.get(name);
        let at_home = |file_idx: &&usize| Some(&file_name(&self.files[**file_idx].path)) == home;
        let file_idx = match holders[..] {
            [] => return None,
            [file_idx] => file_idx,
            [first, second, ..] => match holders.iter().find(at_home) {
                Some(file_idx) => *file_idx,
                None => {
                    let [one, other] = [first, second].map(|idx| file_name(&self.files[idx].path));
                    let part = self.part;
                    faults.push(format!(
                        "{part}: tensor `{name}` is in both {one} and {other}, and the index names neither"
                    ));
                    first
                }
            },
        };
        Some(Source { file_idx, name: name.to_owned() })
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

#[cfg(test)]
mod tests;
