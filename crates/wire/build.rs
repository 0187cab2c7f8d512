//! Compiles every file in `proto` in pure Rust, so that no `protoc` is needed.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use prost::Message as _;

fn main() -> anyhow::Result<()> {
    // Not as it was when this was compiled: two checkouts may share a folder of build outputs.
    let manifest = std::env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is set by cargo")?;
    let root = Path::new(&manifest).join("../../proto");
    let mut files = Vec::new();
    for package in ["fresco/v1", "externalscaler"] {
        let folder = root.join(package);
        println!("cargo::rerun-if-changed={}", folder.display());
        for entry in folder.read_dir().with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "proto") {
                println!("cargo::rerun-if-changed={}", path.display());
                files.push(path);
            }
        }
    }
    // A folder lists its files in any order; the descriptor set must not depend on it.
    files.sort();

    let descriptors = protox::compile(&files, [&root]).context("compile the protocol")?;
    let out_dir = PathBuf::from(std::env::var("OUT_DIR").context("OUT_DIR is set by cargo")?);
    std::fs::write(out_dir.join("descriptors.bin"), descriptors.encode_to_vec()).context("write the descriptor set")?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors).context("generate code")?;
    Ok(())
}
