//! The command line: every flag with its variable in the environment, its default and its help.
//!
//! Leaves out checks that need more than the one value, and `fresco.toml`, which changes the defaults said here.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use plan::request::MAX_STEPS;
use plan::{ArtifactKind, Clean, ImageSize};

use crate::bench::BenchArgs;

mod farm;

pub(crate) use farm::{
    DeleteArgs, DownloadArgs, DrainArgs, Farm, JobArgs, ListArgs, ServeArgs, SubmitArgs, WatchArgs, WorkerArgs,
    WorkerCommand,
};

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
Settings: a flag goes before the environment (FRESCO_STEPS=12), that before fresco.toml in the current folder, \
that before fresco/fresco.toml in your configuration folder. A table is named after its command:

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
    Cli::command().mut_subcommands(|command| command.mut_args(|arg| arg.hide_env_values(true)))
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
    /// Fetch a job's finished pictures
    Download(DownloadArgs),
    /// Print a completion script for a shell
    #[command(before_help = "Example:\n  fresco completion bash > /etc/bash_completion.d/fresco")]
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

const RENDER_EXAMPLES: &str = "\
Examples:
  fresco render \"desert dunes at night\" --size 256x256 --steps 12
  fresco render \"a calm sea at dawn\" --count 4 --out sea.png   # sea-0.png … sea-3.png
  echo \"a pine forest in thick fog\" | fresco render - --json
  fresco render \"an astronaut riding a horse\" --model ./PixArt-Sigma --size 1024x576";

/// What to draw: flags that `render` and `submit` share.
#[derive(Debug, Args)]
pub(crate) struct PictureArgs {
    /// What to draw; `-` reads it from standard input
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: String,

    /// Model: a folder in the diffusers layout, or the name of one in $FRESCO_MODELS or models/
    #[arg(long, env = "FRESCO_MODEL", value_name = "DIR|NAME", default_value = "demo")]
    pub(crate) model: String,

    /// Width and height in pixels, multiples of 16 up to 8192; memory and time grow with their product [default: the size the
    /// model is at its best with]
    #[arg(long, env = "FRESCO_SIZE", value_name = "WxH")]
    pub(crate) size: Option<ImageSize>,

    /// Denoising steps; time grows with them, beyond 20 little changes
    #[arg(long, env = "FRESCO_STEPS", value_name = "N", default_value = "20", allow_negative_numbers = true)]
    #[arg(value_parser = steps)]
    pub(crate) steps: u32,

    /// How closely the prompt is followed; 1 turns guidance off and halves the time
    #[arg(long, env = "FRESCO_GUIDANCE", value_name = "G", default_value = "4.5", allow_negative_numbers = true)]
    pub(crate) guidance: f64,

    /// Seed of the initial noise; equal seeds and settings give equal bytes
    #[arg(long, env = "FRESCO_SEED", value_name = "S", default_value = "0", allow_negative_numbers = true)]
    #[arg(value_parser = seed)]
    pub(crate) seed: u64,

    /// What to steer away from
    #[arg(long, env = "FRESCO_NEGATIVE", value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) negative: String,

    /// How many pictures, with the seeds S, S+1, …; each file's name gets its seed
    #[arg(long, env = "FRESCO_COUNT", value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,

    /// How prompts are prepared: `basic` lower-cases and strips them, as the reference does
    #[arg(long, env = "FRESCO_CLEAN", value_name = "HOW", default_value = "basic")]
    pub(crate) clean: CleanName,

    /// Bits per channel of a .png
    #[arg(long, env = "FRESCO_BIT_DEPTH", value_name = "BITS", default_value = "8")]
    pub(crate) bit_depth: BitDepth,
}

/// Flags of `render`.
#[derive(Debug, Args)]
#[command(before_help = RENDER_EXAMPLES)]
pub(crate) struct RenderArgs {
    #[command(flatten)]
    pub(crate) picture: PictureArgs,

    /// Model folder that gives the parts --model lacks, for folders with a transformer alone
    #[arg(long, env = "FRESCO_BASE", value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// Where the picture goes, .png or .safetensors (latents, image, embeds) [default: from the prompt and seed]
    #[arg(long, env = "FRESCO_OUT", value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long, env = "FRESCO_FORCE", value_parser = BoolishValueParser::new())]
    pub(crate) force: bool,

    /// Initial noise from a safetensors file, tensor `latents` [1, 4, H/8, W/8] in f32, in place of the seed's
    #[arg(long, env = "FRESCO_LATENTS", value_name = "FILE")]
    pub(crate) latents: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) threads: Threads,

    /// Split each picture over so many workers of this process; the bytes are the same for any number
    #[arg(long, env = "FRESCO_WORKERS", value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,

    /// Write NAME.preview.png every N steps while the picture is at work; 0 is never
    #[arg(long, env = "FRESCO_PREVIEW_EVERY", value_name = "N", default_value = "0")]
    pub(crate) preview_every: u32,

    /// Print one JSON object per picture, and nothing else, on standard output
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

fn steps(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("a whole number from 1 to {MAX_STEPS} is needed, 12 to 20 is usual"))
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("a whole number from 0 to {} is needed", u64::MAX))
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
