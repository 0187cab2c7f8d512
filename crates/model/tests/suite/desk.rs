//! Copies of a reference model to be changed, and what is made of them.

use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, safetensors};
use model::{ModelFolder, Rendered, Renderer};
use plan::{Clean, ImageSize, RenderRequest};
use serde_json::{Map, Value};
use tempfile::TempDir;

pub(crate) const DIT: &str = "transformer/diffusion_pytorch_model.safetensors";
pub(crate) const TEXT: &str = "text_encoder/model.safetensors";

pub(crate) fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens")
}

/// A copy of the reference model `name`.
pub(crate) fn copy_of(name: &str) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).expect("a folder can be made");
        for entry in fs::read_dir(from).expect("the folder is there") {
            let entry = entry.expect("an entry");
            let to = to.join(entry.file_name());
            if entry.path().is_dir() { copy(&entry.path(), &to) } else { drop(fs::copy(entry.path(), to)) }
        }
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    copy(&goldens().join(name), dir.path());
    dir
}

pub(crate) type Tensors = HashMap<String, Tensor>;

pub(crate) fn tensors(path: &Path) -> Tensors {
    safetensors::load(path, &Device::Cpu).expect("weights are read")
}

/// Changes the tensors of the weight file `file`.
pub(crate) fn change_tensors(dir: &Path, file: &str, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join(file);
    let mut all = tensors(&path);
    change(&mut all);
    safetensors::save(&all, &path).expect("weights are written");
}

/// Sets keys of the JSON file `file`; null takes a key away.
pub(crate) fn set(dir: &Path, file: &str, changes: &Value) {
    let path = dir.join(file);
    let text = fs::read_to_string(&path).expect("the config is there");
    let mut values = model::config::json::parse(&text).expect("is JSON");
    for (key, value) in changes.as_object().expect("an object") {
        match value {
            Value::Null => drop(values.remove(key)),
            value => drop(values.insert(key.clone(), value.clone())),
        }
    }
    write_json(&path, &values);
}

pub(crate) fn write_json(path: &Path, values: &Map<String, Value>) {
    fs::write(path, serde_json::to_vec(values).expect("is JSON")).expect("can be written");
}

pub(crate) fn zeros(shape: &[usize], dtype: DType) -> Tensor {
    Tensor::zeros(shape, dtype, &Device::Cpu).expect("a tensor")
}

pub(crate) fn open(dir: &Path) -> ModelFolder {
    ModelFolder::open(dir, None).unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
}

/// The faults of the folder; none if it opens.
pub(crate) fn faults(dir: &Path) -> Vec<String> {
    ModelFolder::open(dir, None).err().map(|error| error.faults).unwrap_or_default()
}

/// Passes if the folder is refused in one line that holds `parts`.
pub(crate) fn refused(dir: &Path, parts: &[&str]) {
    let faults = faults(dir);
    assert_eq!(faults.len(), 1, "{faults:?}");
    for part in parts {
        assert!(faults[0].contains(part), "no {part:?} in {faults:?}");
    }
    assert!(faults[0].len() < 400, "{faults:?}");
}

pub(crate) fn request() -> RenderRequest {
    RenderRequest {
        prompt: "a snowy mountain at dusk".into(),
        negative: "fog".into(),
        size: ImageSize { width_px: 64, height_px: 48 },
        steps: 3,
        guidance: 4.5,
        seed: 5,
        clean: Clean::None,
    }
}

pub(crate) fn render(dir: &Path) -> Rendered {
    let renderer = Renderer::load(Arc::new(open(dir))).expect("the weights load");
    renderer.render(&request(), None, &mut |_| ControlFlow::Continue(())).expect("it renders")
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|all| all.to_vec1()).expect("f32")
}
