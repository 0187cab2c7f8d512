//! The same bits from every instruction set with fused multiply-add, and nearly the same from portable code.
//!
//! The set is chosen once a process, so this test runs itself again under each set the machine has.

use std::process::Command;

use candle_core::{Result, Tensor};
use kernels::{
    Compress, Conv3x3, Epilogue, Halo, Isa, Linear, UpConv, affine_of, attention, layer_norm_modulate, moments,
};

use crate::random::{Random, bits};

const NAME: &str = "isa::instruction_sets_agree";
const CHILD: &str = "FRESCO_ISA_TEST_CHILD";

/// Something of everything.
fn results() -> Result<Vec<f32>> {
    let random = &mut Random(11);
    let mut all = Vec::new();
    let mut keep = |tensor: &Tensor| all.extend(bits(tensor).into_iter().map(f32::from_bits));
    let x = random.tensor(&[70, 300]);
    let layer = Linear::new(&random.tensor(&[90, 300]), Some(&random.tensor(&[90])))?;
    keep(&layer.forward(&x, Epilogue::Gelu)?);
    keep(&layer.forward(&x, Epilogue::Silu)?);
    keep(&layer_norm_modulate(&x, &random.vector(300), &random.vector(300), 1e-6)?);
    keep(&attention(&x, &random.tensor(&[400, 300]), &random.tensor(&[400, 300]), 3)?);
    let vector = |random: &mut Random| random.tensor(&[300]);
    let taps = random.tensor(&[300, 1, 2, 2]);
    let compress = Compress::new(&taps, &vector(random), &vector(random), &vector(random))?;
    keep(&compress.forward(&x, 10)?);
    let picture = random.tensor(&[10, 70, 40]);
    let norm =
        affine_of(&moments(std::slice::from_ref(&picture), 8, 1)?, 8, &random.vector(40), &random.vector(40), 1e-6);
    let conv = Conv3x3::new(&random.tensor(&[50, 40, 3, 3]), &random.tensor(&[50]))?;
    keep(&conv.forward(&picture, &Halo::default(), Some(&norm))?);
    keep(&UpConv::new(&random.tensor(&[50, 40, 3, 3]), &random.tensor(&[50]))?.forward(&picture, &Halo::default())?);
    Ok(all)
}

#[test]
fn instruction_sets_agree() {
    if let Ok(path) = std::env::var(CHILD) {
        let bytes: Vec<u8> = results().expect("kernels run").into_iter().flat_map(f32::to_le_bytes).collect();
        std::fs::write(path, bytes).expect("the parent's folder is there");
        return;
    }
    let of_set = |isa: Isa| -> Vec<f32> {
        let path = std::env::temp_dir().join(format!("fresco-isa-test-{}-{isa}", std::process::id()));
        let test = std::env::current_exe().expect("this test's path");
        let child = Command::new(test)
            .args([NAME, "--exact"])
            .env("FRESCO_ISA", isa.to_string())
            .env(CHILD, &path)
            .stdout(std::process::Stdio::null())
            .status();
        assert!(child.expect("the test runs again").success(), "kernels fail under {isa}");
        let bytes = std::fs::read(&path).expect("the child wrote its results");
        std::fs::remove_file(&path).expect("its file is ours");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let sets = Isa::available();
    println!("sets on this machine: {sets:?}");
    let best = of_set(*sets.last().expect("portable code runs anywhere"));
    for isa in sets {
        let results = of_set(isa);
        if isa == Isa::Portable {
            let error = results.iter().zip(&best).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-3, "portable code is off by {error}");
        } else {
            let same = results.iter().zip(&best).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && results.len() == best.len(), "{isa} gives other bits");
        }
    }
}
