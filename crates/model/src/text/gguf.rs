//! A text encoder's GGUF file: its header checked, its tensors found under the names of candle or of llama.cpp.
//!
//! The header is read here, and not by candle, because a damaged one must be refused in one line before any work.
//! Values are candle's to read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use kernels::MappedFile;
use sha2::{Digest, Sha256};

use crate::listed::{counted, listed};
use crate::weights::Manifest;

/// Bytes that tensors begin at multiples of, unless the header says otherwise.
const USUAL_ALIGNMENT: usize = 32;
/// Entries of the header that say nothing about tensors may be nested so deep.
const MOST_NESTED: usize = 8;

/// The tensors of one file that a text encoder uses.
pub struct Gguf {
    path: PathBuf,
    map: MappedFile,
    /// By candle's name.
    tensors: BTreeMap<String, Entry>,
    /// Names of tensors that are not used, sorted.
    unused: Vec<String>,
}

/// A tensor as the header has it.
struct Entry {
    name: String,
    type_id: u32,
    dtype: GgmlDType,
    shape: Vec<usize>,
    /// Where its bytes are in the file.
    from: usize,
    to: usize,
}

impl Gguf {
    /// Opens the file at `path` and finds the tensors of `wanted`. With none wanted, only the header is checked.
    ///
    /// # Errors
    /// Every fault, without the name of the part and file.
    pub(crate) fn open(path: &Path, wanted: &Manifest) -> Result<Self, Vec<String>> {
        let map = MappedFile::open(path).map_err(|error| vec![error.to_string()])?;
        let mut entries: BTreeMap<String, Entry> =
            read_header(&map).map_err(|fault| vec![fault])?.into_iter().map(|e| (e.name.clone(), e)).collect();
        let (mut tensors, mut missing, mut faults) = (BTreeMap::new(), Vec::new(), Vec::new());
        for (names, shape) in wanted {
            let llama = llama_name(&names[0]);
            let Some(name) = names.iter().chain(&llama).find(|name| entries.contains_key(*name)) else {
                missing.push(&names[0]);
                continue;
            };
            let Some(entry) = entries.remove(name) else { continue };
            if entry.shape != *shape {
                faults.push(format!("tensor `{name}` has shape {:?}, {shape:?} is needed", entry.shape));
            }
            tensors.insert(names[0].clone(), entry);
        }
        let unused: Vec<String> = entries.into_keys().collect();
        if !missing.is_empty() {
            let such_as = unused.first().map_or_else(String::new, |name| format!("; it has others, such as `{name}`"));
            let n_missing = counted(missing.len(), "tensor");
            faults.push(format!("{n_missing} of {} are missing ({}){such_as}", wanted.len(), listed(missing)));
        }
        if faults.is_empty() { Ok(Self { path: path.to_owned(), map, tensors, unused }) } else { Err(faults) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors that are not used.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// Types of the tensors that are used, such as `q8_0`.
    pub fn dtypes(&self) -> impl Iterator<Item = String> {
        self.tensors.values().map(|entry| format!("{:?}", entry.dtype).to_lowercase())
    }

    /// How many tensors are used.
    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Values in them.
    pub fn n_values(&self) -> u64 {
        self.tensors.values().map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }

    /// Their bytes.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.values().map(|entry| (entry.to - entry.from) as u64).sum()
    }

    /// Whether candle finds all tensors in the file as it is.
    pub(super) fn has_candle_names(&self) -> bool {
        self.tensors.iter().all(|(name, entry)| *name == entry.name)
    }

    /// The file with candle's names, and with nothing that is not used.
    pub(super) fn with_candle_names(&self) -> Vec<u8> {
        let mut header = b"GGUF".to_vec();
        header.extend(3_u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(0_u64.to_le_bytes());
        let mut offset = 0_u64;
        for (name, entry) in &self.tensors {
            header.extend((name.len() as u64).to_le_bytes());
            header.extend(name.as_bytes());
            header.extend((entry.shape.len() as u32).to_le_bytes());
            entry.shape.iter().rev().for_each(|&side| header.extend((side as u64).to_le_bytes()));
            header.extend(entry.type_id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += (entry.to - entry.from).next_multiple_of(USUAL_ALIGNMENT) as u64;
        }
        let mut file = header;
        file.reserve_exact(offset as usize + USUAL_ALIGNMENT);
        for entry in self.tensors.values() {
            file.resize(file.len().next_multiple_of(USUAL_ALIGNMENT), 0);
            file.extend(&self.map[entry.from..entry.to]);
        }
        file
    }

    /// Adds all tensors to `hash` by name, type, shape and bytes.
    pub(crate) fn hash(&self, hash: &mut Sha256) {
        for (name, entry) in &self.tensors {
            hash.update(format!("{name} {:?} {:?}\n", entry.dtype, entry.shape));
            hash.update(Sha256::digest(&self.map[entry.from..entry.to]));
        }
    }
}

/// What llama.cpp calls the tensor `name`.
fn llama_name(name: &str) -> Option<String> {
    match name {
        "shared.weight" => return Some("token_embd.weight".into()),
        "encoder.final_layer_norm.weight" => return Some("enc.output_norm.weight".into()),
        _ => {}
    }
    let (block, layer) = name.strip_prefix("encoder.block.")?.split_once(".layer.")?;
    let layer = match layer.strip_suffix(".weight")? {
        "0.layer_norm" => "attn_norm",
        "0.SelfAttention.q" => "attn_q",
        "0.SelfAttention.k" => "attn_k",
        "0.SelfAttention.v" => "attn_v",
        "0.SelfAttention.o" => "attn_o",
        "0.SelfAttention.relative_attention_bias" => "attn_rel_b",
        "1.layer_norm" => "ffn_norm",
        "1.DenseReluDense.wi_0" => "ffn_gate",
        "1.DenseReluDense.wi_1" => "ffn_up",
        "1.DenseReluDense.wo" => "ffn_down",
        _ => return None,
    };
    Some(format!("enc.blk.{block}.{layer}.weight"))
}

fn dtype_of(type_id: u32) -> Option<GgmlDType> {
    Some(match type_id {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// The tensors a file's header names.
fn read_header(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    if !bytes.starts_with(b"GGUF") {
        return Err(format!("is no GGUF file ({} bytes): fetch it again", bytes.len()));
    }
    let mut header = Header { bytes, at: 4 };
    let version = header.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("is of GGUF version {version}, 2 or 3 is needed"));
    }
    let (n_tensors, n_entries) = (header.u64()?, header.u64()?);
    let mut alignment = USUAL_ALIGNMENT;
    for _ in 0..n_entries {
        let (key, kind) = (header.text()?, header.u32()?);
        let value = header.value(kind, 0)?;
        if key == "general.alignment" {
            alignment =
                value.filter(|n| n.is_power_of_two()).ok_or("has a `general.alignment` that is no power of 2")?;
        }
    }
    let mut tensors = Vec::new();
    for _ in 0..n_tensors {
        tensors.push(header.tensor()?);
    }
    let start = header.at.checked_next_multiple_of(alignment).ok_or_else(cut_short)?;
    let mut entries = Vec::new();
    for (name, shape, type_id, offset) in tensors {
        let dtype = dtype_of(type_id).ok_or_else(|| {
            format!("tensor `{name}` is of GGML type {type_id}, which is not supported: use Q8_0 or f16")
        })?;
        let n_values = shape.iter().try_fold(1_usize, |n, side| n.checked_mul(*side)).ok_or_else(cut_short)?;
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(dtype.block_size()) {
            return Err(format!("tensor `{name}` has rows of {row} values, which {dtype:?} cannot have"));
        }
        let n_bytes = (n_values / dtype.block_size()).checked_mul(dtype.type_size()).ok_or_else(cut_short)?;
        let from = start.checked_add(offset).ok_or_else(cut_short)?;
        let to = from.checked_add(n_bytes).filter(|to| *to <= bytes.len());
        let to = to.ok_or_else(|| format!("is cut short: tensor `{name}` ends behind its end: fetch it again"))?;
        entries.push(Entry { name, type_id, dtype, shape, from, to });
    }
    Ok(entries)
}

fn cut_short() -> String {
    "is cut short or damaged in its header: fetch it again".into()
}

/// A header on its way through.
struct Header<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Header<'_> {
    fn take(&mut self, n_bytes: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(n_bytes).ok_or_else(cut_short)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(cut_short)?;
        self.at = end;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take(4)?.try_into().map(u32::from_le_bytes).map_err(|_| cut_short())
    }

    fn u64(&mut self) -> Result<usize, String> {
        let number = self.take(8)?.try_into().map(u64::from_le_bytes).map_err(|_| cut_short())?;
        usize::try_from(number).map_err(|_| cut_short())
    }

    fn text(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        Ok(String::from_utf8_lossy(self.take(len)?).trim_end_matches('\0').to_owned())
    }

    /// Passes over a value of `kind`; whole numbers are given back.
    fn value(&mut self, kind: u32, depth: usize) -> Result<Option<usize>, String> {
        let n_bytes = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 => {
                self.text()?;
                return Ok(None);
            }
            9 if depth < MOST_NESTED => {
                let (kind, len) = (self.u32()?, self.u64()?);
                // Each element takes a byte at least, so a length that is not true ends soon.
                for _ in 0..len {
                    self.value(kind, depth + 1)?;
                }
                return Ok(None);
            }
            10..=12 => 8,
            _ => return Err(cut_short()),
        };
        let is_whole = !matches!(kind, 6 | 7 | 12);
        let bytes = self.take(n_bytes)?;
        let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        Ok(usize::try_from(number).ok().filter(|_| is_whole))
    }

    /// Name, shape (slowest axis first), type and offset of a tensor.
    fn tensor(&mut self) -> Result<(String, Vec<usize>, u32, usize), String> {
        let (name, n_axes) = (self.text()?, self.u32()?);
        if n_axes > 4 {
            return Err(cut_short());
        }
        let mut shape = (0..n_axes).map(|_| self.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        Ok((name, shape, self.u32()?, self.u64()?))
    }
}

#[cfg(test)]
mod tests;
