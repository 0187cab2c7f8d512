//! Flags of the roles of a farm and of its clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand};

use coordinator::role::{Adopt, LISTEN, Lease, Log, StatusPort, address, url};
use worker::hang::HangAt;

use super::{PictureArgs, Threads};
use crate::device::DeviceName;

/// Where a coordinator is unless it is told otherwise.
const COORDINATOR: &str = "http://127.0.0.1:7400";

/// Which farm.
#[derive(Debug, Clone, Args)]
pub(crate) struct Farm {
    /// The farm's coordinator
    #[arg(long, env = "FRESCO_COORDINATOR", value_name = "URL", default_value = COORDINATOR)]
    #[arg(value_parser = url)]
    pub(crate) coordinator: String,
}

/// Flags of `serve`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco serve
  fresco serve --workers 4 --threads 2 --data /srv/fresco --listen 0.0.0.0:7400")]
pub(crate) struct ServeArgs {
    /// Where clients and further workers reach it
    #[arg(long, env = "FRESCO_LISTEN", value_name = "ADDRESS", default_value = LISTEN, value_parser = address)]
    pub(crate) listen: SocketAddr,

    /// Folder of the store, checkpoints and finished pictures
    #[arg(long, env = "FRESCO_DATA", value_name = "DIR", default_value = "fresco-data")]
    pub(crate) data: PathBuf,

    /// Model the workers offer, a folder or a name; can be given several times
    #[arg(
        long = "model",
        env = "FRESCO_MODEL",
        value_name = "DIR|NAME",
        default_value = "demo",
        value_delimiter = ','
    )]
    pub(crate) models: Vec<String>,

    /// Workers in this process
    #[arg(long, env = "FRESCO_WORKERS", value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=64))]
    pub(crate) workers: u16,

    #[command(flatten)]
    pub(crate) threads: Threads,

    #[command(flatten)]
    pub(crate) adopt: Adopt,

    #[command(flatten)]
    pub(crate) lease: Lease,

    #[command(flatten)]
    pub(crate) status: StatusPort,

    #[command(flatten)]
    pub(crate) log: Log,
}

/// Flags of `worker`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco worker --coordinator http://10.0.0.1:7400 --listen 10.0.0.2:7401
  fresco worker --threads 8 --model /models/PixArt-Sigma-XL-2-1024-MS --name render-07
  fresco worker --device cuda:0 --model /models/PixArt-Sigma-XL-2-1024-MS
  fresco worker drain render-07 --wait         # from anywhere: hands its work over and leaves

SIGTERM, SIGHUP or Ctrl-C hands its work over at the next step boundary and ends it; a second one ends it at once.")]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct WorkerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<WorkerCommand>,

    #[command(flatten)]
    pub(crate) farm: Farm,

    /// Model it offers, a folder or a name; can be given several times
    #[arg(
        long = "model",
        env = "FRESCO_MODEL",
        value_name = "DIR|NAME",
        default_value = "demo",
        value_delimiter = ','
    )]
    pub(crate) models: Vec<String>,

    /// Name, unique in the farm [default: host name and process number]
    #[arg(long, env = "FRESCO_WORKER_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,

    /// Where other workers reach it; port 0 takes a free one
    #[arg(long, env = "FRESCO_WORKER_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    #[arg(value_parser = address)]
    pub(crate) listen: SocketAddr,

    /// What it computes on: cpu, or cuda:N for the Nth NVIDIA GPU
    ///
    /// For a GPU the program `fresco-cuda` takes over, which needs the driver, libcublas.so.13 and libcurand.so.10.
    #[arg(long, env = "FRESCO_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,

    /// Address it gives to other workers [default: where it listens]
    #[arg(long, env = "FRESCO_ADVERTISE", value_name = "URL", value_parser = url)]
    pub(crate) advertise: Option<String>,

    #[command(flatten)]
    pub(crate) threads: Threads,

    #[command(flatten)]
    pub(crate) status: StatusPort,

    #[command(flatten)]
    pub(crate) log: Log,

    /// For tests: ranks hang there for ever
    #[arg(long, hide = true, value_name = "PLACE")]
    pub(crate) hang_at: Option<HangAt>,
}

/// What can be done to a worker from outside.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkerCommand {
    /// Have a worker hand its work over at the next step boundary and leave
    Drain(DrainArgs),
}

/// Flags of `worker drain`.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    /// The worker's name
    #[arg(env = "FRESCO_WORKER_NAME", value_name = "NAME")]
    pub(crate) name: String,

    #[command(flatten)]
    pub(crate) farm: Farm,

    /// Wait until it has left
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Flags of `submit`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco submit \"desert dunes at night\" --size 256x256 --steps 12
  job=$(fresco submit \"a calm sea at dawn\" --wait) && fresco download \"$job\"
  fresco submit - --request-id shot-042 --json < prompt.txt   # again: the same job")]
pub(crate) struct SubmitArgs {
    #[command(flatten)]
    pub(crate) picture: PictureArgs,

    #[command(flatten)]
    pub(crate) farm: Farm,

    /// A name of your choice: the same name and flags give the same job, however often it is submitted
    #[arg(long, env = "FRESCO_REQUEST_ID", value_name = "ID", default_value = "", hide_default_value = true)]
    pub(crate) request_id: String,

    /// Wait until the job is over; standard output gets its id alone, or with --json the job as it ended
    #[arg(long)]
    pub(crate) wait: bool,

    /// Print one JSON object per job
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// One job of a farm.
#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The job's id
    #[arg(value_name = "JOB")]
    pub(crate) job: String,

    #[command(flatten)]
    pub(crate) farm: Farm,

    /// Print one JSON object
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// Flags of `delete`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco delete 0199…                        # the job and its pictures; those of other jobs stay
  fresco list --json | jq -r 'select(.state == \"DONE\") | .job' | xargs fresco delete")]
pub(crate) struct DeleteArgs {
    /// The jobs' ids
    #[arg(value_name = "JOB", required = true)]
    pub(crate) jobs: Vec<String>,

    #[command(flatten)]
    pub(crate) farm: Farm,
}

/// Flags of `gc`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco gc --older-than 7d                  # what no record names
  fresco gc --older-than 7d --delete

Crashes, and stores that were lost or restored from a backup, leave pictures and checkpoints that no job of the farm
has. Nothing else deletes them.")]
pub(crate) struct GcArgs {
    /// Leave out files that changed within this time, such as 12h or 7d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Duration,

    /// Delete the files; without this they are only listed
    #[arg(long)]
    pub(crate) delete: bool,

    #[command(flatten)]
    pub(crate) farm: Farm,

    /// Print one JSON object a line
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// Flags of `list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) farm: Farm,

    /// Most jobs to show
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) limit: u32,

    /// Print one JSON object a line
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// Flags of `watch`.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,

    /// Show what came after this revision, as an earlier `watch` printed it
    #[arg(long, value_name = "N", default_value = "0")]
    pub(crate) after_revision: u64,
}

/// Flags of `download`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco download 0199… --out sea.png    # several pictures get their seeds: sea-7.png …
  fresco download 0199… --out pictures   # into a folder that exists

Pictures that are there already, byte for byte, are not fetched again.")]
pub(crate) struct DownloadArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,

    /// Where the picture goes: a name with its ending, .png or .safetensors, or a folder that exists [default: a
    /// name made of the job's id]
    #[arg(long, env = "FRESCO_OUT", value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long, env = "FRESCO_FORCE", value_parser = BoolishValueParser::new())]
    pub(crate) force: bool,
}
