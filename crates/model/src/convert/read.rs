//! Checkpoints in the forms people have: pickles of PyTorch, and safetensors with the original names.

use std::collections::HashMap;
use std::path::Path;

use candle_core::pickle::PthTensors;
use candle_core::{DType, Device, Tensor};

use super::ConvertError;

/// Where checkpoints of training keep the weights, in the order they are asked for; else at the top.
const KEYS: [&str; 2] = ["state_dict", "state_dict_ema"];
/// A tensor that every checkpoint has, whatever is put before its names.
const LANDMARK: &str = "x_embedder.proj.weight";

/// All tensors of a checkpoint under the original names, in types that can be rendered from; and what to tell of it.
pub(super) fn read(path: &Path, notes: &mut Vec<String>) -> Result<HashMap<String, Tensor>, ConvertError> {
    let fail = |what: String| ConvertError(format!("{}: {what}", path.display()));
    if !path.is_file() {
        return Err(fail("no such file".into()));
    }
    let head = head(path).map_err(|error| fail(error.to_string()))?;
    let tensors = if is_safetensors(&head) {
        let one_line = |error: &candle_core::Error| fail(crate::finite::first_line(error));
        candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| one_line(&error))?
    } else {
        read_pickle(path, &head, notes)?
    };
    without_prefix(tensors).into_iter().map(|(name, tensor)| Ok((name.clone(), narrowed(&name, tensor)?))).collect()
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(path)?.take(16).read_to_end(&mut head)?;
    Ok(head)
}

/// A length, then the header's first brace.
fn is_safetensors(head: &[u8]) -> bool {
    head.get(8) == Some(&b'{') && !head.starts_with(b"PK")
}

fn read_pickle(path: &Path, head: &[u8], notes: &mut Vec<String>) -> Result<HashMap<String, Tensor>, ConvertError> {
    let fail = |what: String| ConvertError(format!("{}: {what}", path.display()));
    if head.first() == Some(&0x80) {
        return Err(fail(
            "was written by torch.save of before 2020, which is not read: load it and save it again with a newer PyTorch"
                .into(),
        ));
    }
    let open = |key| PthTensors::new(path, key).ok().filter(|file| !file.tensor_infos().is_empty());
    let keyed = KEYS.into_iter().find_map(|key| Some((Some(key), open(Some(key))?)));
    let (key, file) = keyed.or_else(|| Some((None, open(None)?))).ok_or_else(|| {
        let places = KEYS.map(|key| format!("`{key}`")).join(" or ");
        fail(format!("not a PyTorch checkpoint with tensors at its top or under {places}, nor a safetensors file"))
    })?;
    if key == Some(KEYS[1]) {
        notes.push(format!("there is no `{}`: the averaged weights of `{}` were taken", KEYS[0], KEYS[1]));
    }
    let mut tensors = HashMap::new();
    for name in file.tensor_infos().keys() {
        let tensor = file.get(name).map_err(|error| fail(format!("tensor `{name}`: {error}")))?;
        tensors.extend(tensor.map(|tensor| (name.clone(), tensor)));
    }
    Ok(tensors)
}

/// Training on several GPUs, and other programs, put a word such as `module.` before every name.
fn without_prefix(tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let prefixes: Vec<String> =
        tensors.keys().filter_map(|name| name.strip_suffix(LANDMARK)).map(str::to_owned).collect();
    match &prefixes[..] {
        [prefix] if !prefix.is_empty() && tensors.keys().all(|name| name.starts_with(prefix.as_str())) => {
            tensors.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_owned(), tensor)).collect()
        }
        _ => tensors,
    }
}

/// Rendering reads f32, f16 and bf16.
fn narrowed(name: &str, tensor: Tensor) -> Result<Tensor, ConvertError> {
    match tensor.dtype() {
        DType::F64 => {
            let fail = |error| ConvertError(format!("tensor `{name}`: {}", crate::finite::first_line(&error)));
            tensor.to_dtype(DType::F32).map_err(fail)
        }
        _ => Ok(tensor),
    }
}
