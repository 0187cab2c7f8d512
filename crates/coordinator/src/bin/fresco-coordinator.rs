//! `fresco-coordinator`: the coordinator alone, for images that need no numeric libraries.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use coordinator::role::{self, CoordinatorArgs, log};

/// Coordinates a farm of fresco's workers: `fresco coordinator`, and nothing else of fresco.
#[derive(Debug, Parser)]
#[command(name = "fresco-coordinator", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Run the coordinator alone; workers and clients come to it
    Coordinator(CoordinatorArgs),
}

fn main() -> ExitCode {
    let command = role::without_empty_variables(Cli::command());
    let parsed = Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let Role::Coordinator(args) = parsed.role;
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: CoordinatorArgs) -> anyhow::Result<()> {
    log::start(Some(&args.log), false).map_err(anyhow::Error::msg)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(role::run(args, |line| eprintln!("{line}")))
}
