//! `--device`: what is computed on, and the way from this program to the one that has CUDA in it.
//!
//! A program linked with CUDA does not start on a machine without its libraries, so it is one of its own, `fresco-cuda`,
//! and this one looks for the GPU first and says what is wrong.

use std::str::FromStr;

use model::Place;

use crate::exit::Stop;

/// What is computed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = text.strip_prefix("cuda:").map(str::parse);
        match (text, ordinal) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(ordinal))) => Ok(Self::Cuda(ordinal)),
            _ => Err("give cpu, or cuda:N for the Nth NVIDIA GPU, counted from 0".into()),
        }
    }
}

/// The place that `device` is. For a GPU this program ends and `fresco-cuda` goes on in its place, with the same arguments.
///
/// # Errors
/// If there is no such GPU, or no `fresco-cuda` to compute on it.
pub(crate) fn place(device: DeviceName) -> anyhow::Result<Place> {
    match device {
        DeviceName::Cpu => Ok(Place::default()),
        DeviceName::Cuda(ordinal) => {
            let gpu = kernels::find_gpu(ordinal).map_err(|error| Stop::Unavailable(format!("device: {error}")))?;
            tracing::debug!(%gpu, "computing on a GPU");
            on_gpu(ordinal)
        }
    }
}

#[cfg(feature = "cuda")]
fn on_gpu(ordinal: usize) -> anyhow::Result<Place> {
    Ok(Place::new(kernels::gpu(ordinal)?))
}

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: usize) -> anyhow::Result<Place> {
    use std::os::unix::process::CommandExt;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    let beside = || std::env::current_exe().ok()?.parent().map(|folder| folder.join("fresco-cuda"));
    let program = std::env::var_os("FRESCO_CUDA").filter(|named| !named.is_empty()).map(PathBuf::from);
    let program = program.or_else(beside);
    let program = program.as_deref().unwrap_or(Path::new("fresco-cuda"));
    // Comes back only if it could not begin.
    let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
    Err(Stop::NotFound(format!(
        "{}: {error}: a GPU needs this program, which deploy/cuda/build.sh builds; FRESCO_CUDA names another place",
        program.display()
    ))
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_go_by_cpu_and_cuda_n() {
        assert_eq!("cpu".parse(), Ok(DeviceName::Cpu));
        assert_eq!("cuda:3".parse(), Ok(DeviceName::Cuda(3)));
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", ""] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }
}
