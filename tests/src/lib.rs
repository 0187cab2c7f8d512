//! What the whole-system tests share: where the project lies, and which files are its sources.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{fs, io};

/// The folder of the workspace's manifest: the one these tests were built in, or `FRESCO_REPO` where they were carried to
/// another machine.
pub fn repo_root() -> PathBuf {
    std::env::var_os("FRESCO_REPO")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")), PathBuf::from)
}

/// Every Rust file of the project with its path from the root, in order. Build outputs, hidden folders and data are
/// left out.
///
/// # Errors
/// If a folder or a file cannot be read.
pub fn rust_files() -> io::Result<Vec<(PathBuf, String)>> {
    let root = repo_root();
    let mut paths = Vec::new();
    for folder in ["crates", "kernels", "tests", "benches"] {
        collect(&root.join(folder), &mut paths)?;
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        Ok((path.strip_prefix(&root).map(Path::to_path_buf).unwrap_or(path), text))
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let is_source =
            !matches!(name.to_str(), Some("target" | "goldens")) && !name.as_encoded_bytes().starts_with(b".");
        if entry.file_type()?.is_dir() {
            if is_source {
                collect(&path, paths)?;
            }
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}
