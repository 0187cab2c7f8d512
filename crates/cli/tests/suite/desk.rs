//! A temporary folder to run fresco in, and what a run has said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// Flags of a picture that takes a few hundredths of a second.
pub(crate) const SMALL: [&str; 6] = ["render", "a calm sea at dawn", "--size", "64x64", "--steps", "2"];

/// A folder with nothing in it.
pub(crate) struct Desk {
    dir: TempDir,
    home: TempDir,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let folder = || tempfile::tempdir().expect("a temporary folder can be made");
        Self { dir: folder(), home: folder() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The home folder, where the user's settings are.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).expect("a file can be written");
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Names of all that lies in the folder, hidden files too.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("the folder can be read");
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("is an entry").file_name();
        let mut names: Vec<String> = entries.map(name).map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The program with `args`, in this folder, with nothing of the tester's own settings.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FRESCO_")) {
            command.env_remove(name);
        }
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.env("HOME", self.home()).env_remove("XDG_CONFIG_HOME").env("FRESCO_MODELS", models());
        command
    }

    pub(crate) fn fresco(&self, args: &[&str]) -> Run {
        Run::of(&mut self.command(FRESCO, args))
    }

    /// A small picture, with more flags; the last of two equal flags is not allowed.
    pub(crate) fn render(&self, more: &[&str]) -> Run {
        self.fresco(&[&SMALL, more].concat())
    }

    /// A copy of the demo model, to be spoilt.
    pub(crate) fn demo_copy(&self) -> PathBuf {
        let copy = self.home.path().join("copy");
        copy_folder(&models().join("demo"), &copy);
        copy
    }
}

pub(crate) const FRESCO: &str = env!("CARGO_BIN_EXE_fresco");

/// The folder the demo model is in.
pub(crate) fn models() -> PathBuf {
    repo().join("models")
}

pub(crate) fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the repository is there")
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("the folder can be read") {
        let entry = entry.expect("is an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(from, to).expect("a file can be copied");
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        command.output().expect("the program can be started").into()
    }

    /// What it said on standard error, hints and the log of what goes well left out.
    pub(crate) fn said(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| !line.starts_with("hint: ") && !line.contains(" INFO ")).collect()
    }

    /// Passes if all went well and nothing was said but results and hints.
    pub(crate) fn quiet(self) -> Self {
        assert!(self.code == Some(0) && self.said().is_empty(), "{self:?}");
        self
    }

    /// Passes if the run was refused in one line that holds `parts`.
    pub(crate) fn refused(self, code: i32, parts: &[&str]) {
        self.refused_in_lines(code, 1, parts);
    }

    /// Passes if the run was refused in `n_lines` lines, one a fault.
    pub(crate) fn refused_in_lines(self, code: i32, n_lines: usize, parts: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{self:?}");
        assert_eq!(self.said().len(), n_lines, "{self:?}");
        assert!(self.said().iter().all(|line| line.starts_with("error: ")), "{self:?}");
        for part in parts.iter().chain(&["error: "]) {
            assert!(self.stderr.contains(part), "no `{part}` in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }

    /// The one JSON value on standard output.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("what it says is UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A tensor of a safetensors file, to be changed.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// All tensors of a safetensors file.
pub(crate) fn tensors(bytes: &[u8]) -> Vec<Entry> {
    let file = SafeTensors::deserialize(bytes).expect("is a safetensors file");
    let entry = |(name, view): (String, TensorView<'_>)| Entry {
        name,
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    file.tensors().into_iter().map(entry).collect()
}

/// The values of an f32 tensor.
pub(crate) fn values(bytes: &[u8], name: &str) -> Vec<f32> {
    let entry = tensors(bytes).into_iter().find(|entry| entry.name == name).expect("the tensor is there");
    entry.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// A safetensors file of `entries`.
pub(crate) fn safetensors_file(entries: &[Entry]) -> Vec<u8> {
    let views = entries.iter().map(|entry| {
        let view = TensorView::new(entry.dtype, entry.shape.clone(), &entry.bytes).expect("the sizes agree");
        (entry.name.as_str(), view)
    });
    safetensors::serialize(views, None).expect("a file can be made")
}
