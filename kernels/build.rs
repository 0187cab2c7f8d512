//! With the feature `cuda`: the GPU's kernels compiled to PTX, which a driver makes into machine code for the GPU it finds.
//! Without it there is nothing to build.

use std::path::Path;
use std::process::Command;

/// The least architecture with matrix products of bf16.
const ARCHITECTURE: &str = "compute_80";

fn main() {
    println!("cargo::rerun-if-changed=cuda");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let nvcc = std::env::var_os("CUDA_HOME").map_or("nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    for name in ["attention", "group_norm", "product", "rows"] {
        let status = Command::new(&nvcc)
            .args(["--ptx", "-std=c++17", "-arch", ARCHITECTURE])
            .arg(format!("cuda/{name}.cu"))
            .arg("-o")
            .arg(format!("{out}/{name}.ptx"))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => fail(&format!("{} ended with {status} on cuda/{name}.cu", nvcc.display())),
            Err(error) => fail(&format!("{}: {error}: run deploy/cuda/build.sh, which fetches it", nvcc.display())),
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1)
}
