//! The command line: every flag with its variable in the environment, its default and its help.
//!
//! Leaves out checks that need more than the one value, and `fresco.toml`, which changes the defaults said here.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use coordinator::role::without_empty_variables;
use plan::{ArtifactKind, Clean};

use crate::bench::BenchArgs;

mod farm;
mod hint;
mod picture;
mod variable;

pub(crate) use farm::{
    DeleteArgs, DownloadArgs, DrainArgs, Farm, GcArgs, JobArgs, ListArgs, ServeArgs, SubmitArgs, WatchArgs, WorkerArgs,
    WorkerCommand,
};
pub(crate) use hint::hint;
pub(crate) use picture::{PictureArgs, RenderArgs, Seed};
pub(crate) use variable::Variable;

const EXAMPLES: &str = "\
Examples:
  fresco render \"snowy mountains at sunset with a ringed planet on the right\"
  fresco render \"a calm sea at dawn\" --size 256x256 --steps 12 --seed 7 --out sea.png
  fresco verify sea.png              # renders it again and compares bytes
  fresco serve --workers 2           # a farm in one process; then, elsewhere:
  fresco submit \"a deep canyon at noon\" --size 256x256 --wait
  fresco model inspect models/demo   # what a model folder holds
  fresco doctor                      # whether this machine is ready";

const SETTINGS: &str = "\
Settings are taken from flags, then from the environment (FRESCO_STEPS=12; an empty variable counts as not set), then \
from fresco.toml in the current folder, then from fresco/fresco.toml in your configuration folder. A table is named \
after its command:

  [render]
  steps = 12
  size = \"256x256\"

FRESCO_MODELS names folders in which models are looked for by name, FRESCO_LOG=debug shows what happens.
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 job failed, 5 job partly failed or not over, 6 cancelled, \
9 unavailable or timed out, 130 interrupted.";

/// Draws pictures from text with PixArt-Σ, on this machine's CPU or on a farm of workers.
#[derive(Debug, Parser)]
#[command(name = "fresco", version, before_help = EXAMPLES, after_long_help = SETTINGS)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line, with names of variables in its help and not what they hold at the moment.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command().mut_subcommands(|command| command.mut_args(|arg| arg.hide_env_values(true)));
    without_empty_variables(command)
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Draw a picture from a prompt
    Render(RenderArgs),
    /// Look into model folders, check them, convert original checkpoints
    Model(ModelCommand),
    /// Render a picture again from what it says about itself, and compare bytes
    Verify(VerifyArgs),
    /// Check whether this machine is ready to render
    Doctor(DoctorArgs),
    /// Measure parts of the work on this machine
    Bench(BenchArgs),
    /// Serve a farm from this one process: coordinator, store and workers
    Serve(ServeArgs),
    /// Run the coordinator alone; workers and clients come to it
    Coordinator(coordinator::role::CoordinatorArgs),
    /// Run a worker: it joins a coordinator and renders what it is given
    Worker(WorkerArgs),
    /// Hand a job to a farm, and print its id
    Submit(SubmitArgs),
    /// Wait until a job is over
    Wait(JobArgs),
    /// Show one job
    Get(JobArgs),
    /// Show the jobs of a farm, the newest first
    List(ListArgs),
    /// Follow a job, one line an event, until it is over
    Watch(WatchArgs),
    /// End a job
    Cancel(JobArgs),
    /// Render the failed and cancelled images of a job again
    Retry(JobArgs),
    /// Forget jobs that are over, and remove their pictures
    Delete(DeleteArgs),
    /// List the files of a farm that no record names, or delete them
    Gc(GcArgs),
    /// Fetch a job's finished pictures
    Download(DownloadArgs),
    /// Print a completion script for a shell
    #[command(before_help = "Example:\n  fresco completion bash > /etc/bash_completion.d/fresco")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// How many cores work.
#[derive(Debug, Args)]
pub(crate) struct Threads {
    /// How many cores work; the picture is the same for any number [default: all]
    #[arg(long, env = "FRESCO_THREADS", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1024), allow_negative_numbers = true)]
    pub(crate) threads: Option<u32>,
}

/// [`Clean`] by name.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CleanName {
    None,
    Basic,
}

impl From<CleanName> for Clean {
    fn from(name: CleanName) -> Self {
        match name {
            CleanName::None => Self::None,
            CleanName::Basic => Self::Basic,
        }
    }
}

/// Bits per channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BitDepth {
    #[value(name = "8")]
    Eight,
    #[value(name = "16")]
    Sixteen,
}

impl From<BitDepth> for ArtifactKind {
    fn from(bits: BitDepth) -> Self {
        match bits {
            BitDepth::Eight => Self::Png8,
            BitDepth::Sixteen => Self::Png16,
        }
    }
}

/// Flags of `model`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco model inspect models/demo
  fresco model verify PixArt-Sigma-XL-2-2K-MS --base PixArt-Sigma-XL-2-1024-MS
  fresco model convert PixArt-Sigma-XL-2-1024-MS.pth converted --base PixArt-Sigma-XL-2-1024-MS")]
pub(crate) struct ModelCommand {
    #[command(subcommand)]
    pub(crate) command: ModelSubcommand,
}

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelSubcommand {
    /// Show what a model folder holds, and which of its settings are not understood
    Inspect(FolderArgs),
    /// Check that all is there, well formed and finite; every fault is named
    Verify(VerifyModelArgs),
    /// Turn an original checkpoint into a model folder's transformer; nothing in the file is executed
    Convert(ConvertArgs),
}

/// Flags of `model verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyModelArgs {
    #[command(flatten)]
    pub(crate) folder: FolderArgs,

    /// Hash the weights must have, as `model verify` prints it
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
}

/// Which model folder.
#[derive(Debug, Args)]
pub(crate) struct FolderArgs {
    /// Model folder, or the name of one
    #[arg(value_name = "DIR|NAME")]
    pub(crate) dir: String,

    /// Model folder that gives the parts DIR lacks
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `model convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Original checkpoint
    #[arg(value_name = "IN.pth")]
    pub(crate) checkpoint: PathBuf,

    /// Folder to write: OUT_DIR/transformer/ gets the weights and their config
    #[arg(value_name = "OUT_DIR")]
    pub(crate) out_dir: PathBuf,

    /// Model folder whose transformer/config.json fills what the checkpoint does not tell
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// Attention heads [default: from --base, or heads of the usual width 72]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) heads: Option<u32>,

    /// Latent side the position code is based on [default: from --base or the checkpoint]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=4096))]
    pub(crate) sample_size: Option<u32>,

    /// Divisor of the position coordinates [default: from --base or the checkpoint]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) interpolation_scale: Option<f64>,

    /// Replace a transformer that exists
    #[arg(long)]
    pub(crate) force: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err("a number above 0 is needed".into()) }
}

/// Flags of `verify`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco verify sea.png
  fresco verify horse.png --model /models/PixArt-Sigma-XL-2-1024-MS")]
pub(crate) struct VerifyArgs {
    /// Picture that fresco rendered, .png or .safetensors
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,

    /// Model folder, or the name of one [default: the name in the picture]
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) model: Option<String>,

    /// Model folder that gives the parts --model lacks
    #[arg(long, value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// The initial noise, if the picture was rendered with --latents
    #[arg(long, value_name = "FILE")]
    pub(crate) latents: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) threads: Threads,

    /// Print one JSON object
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// Flags of `doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Model to look for
    #[arg(long, env = "FRESCO_MODEL", value_name = "DIR|NAME", default_value = "demo")]
    pub(crate) model: String,

    /// Model folder that gives the parts --model lacks
    #[arg(long, env = "FRESCO_BASE", value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// Print one JSON object
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }
}
