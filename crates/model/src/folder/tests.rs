//! Tensors checked against what configs call for.

use candle_core::{DType, Device, Tensor};

use super::*;

#[test]
fn a_tensor_of_whole_numbers_is_named_before_any_work() {
    let dir = tempfile::tempdir().expect("the system has room for a folder");
    let tensor = Tensor::zeros((2, 3), DType::I64, &Device::Cpu).expect("a tensor");
    let tensors = std::collections::HashMap::from([("a", tensor)]);
    candle_core::safetensors::save(&tensors, dir.path().join("model.safetensors")).expect("can be written");
    let wanted = vec![(vec!["a".into()], vec![2, 3])];
    let weights = Weights::open_for(dir.path(), VAE, &wanted).expect("it is a safetensors file");
    let mut faults = Vec::new();
    check::check(VAE, &weights, &wanted, &mut faults);
    assert_eq!(faults, ["vae: tensor `a` is of type I64: f32, f16 or bf16 is needed"]);
}
