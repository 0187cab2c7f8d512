//! The binary `fresco`: reads the command line, runs one command, and turns its end into an exit code.
//!
//! Leaves out what the commands do: each has a file of its own, named after it.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod client;
mod device;
mod doctor;
mod engine;
mod exit;
mod farm;
mod interrupt;
mod latents;
mod measure;
mod memory;
mod model_command;
mod models;
mod output;
mod preview;
mod progress;
mod render;
mod scratch;
mod settings;
mod terminal;
mod verify;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::FromArgMatches;
use coordinator::role::log;

use args::{Cli, Command, Variable};
use exit::{Outcome, Stop};

fn main() -> ExitCode {
    kernels::return_large_blocks();
    let mut variables = Vec::new();
    let ended = match command_line(&mut variables) {
        Ok(Some(cli)) => start_log(&cli.command).and_then(|()| run(cli.command)),
        Ok(None) => Ok(Outcome::Done),
        Err(error) => Err(error),
    };
    match ended {
        Ok(outcome) => outcome.into(),
        Err(error) => exit::report(&error, &variables),
    }
}

/// The command line, completed by the environment and the settings files; nothing if it asks for help, which
/// has been printed. `variables` gets those of the environment that gave values.
fn command_line(variables: &mut Vec<Variable>) -> anyhow::Result<Option<Cli>> {
    let line: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let mut command = settings::apply(args::command())?;
    let parsed = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        *variables = Variable::used(&command, &matches);
        Cli::from_arg_matches(&matches)
    });
    match parsed {
        Ok(cli) => Ok(Some(cli)),
        Err(error) if error.use_stderr() => {
            if let Some(hint) = args::hint(&error, &line) {
                return Err(Stop::Usage(hint).into());
            }
            Err(match (exit::usage(&error), Variable::at_fault(&command, &error, &line)) {
                (Stop::Usage(said), Some((variable, given))) => Stop::Usage(variable.blame(&said, &given)),
                (stop, _) => stop,
            }
            .into())
        }
        Err(error) => {
            let help = error.render();
            let help = if is_colored(&std::io::stdout()) { help.ansi().to_string() } else { help.to_string() };
            terminal::say(help.trim_end())?;
            Ok(None)
        }
    }
}

/// Sends events to standard error, as `FRESCO_LOG` says.
fn start_log(command: &Command) -> anyhow::Result<()> {
    let role = match command {
        Command::Serve(args) => Some(&args.log),
        Command::Coordinator(args) => Some(&args.log),
        Command::Worker(args) if args.command.is_none() => Some(&args.log),
        _ => None,
    };
    // A reader of standard error that goes away is no reason to end.
    log::start(role, is_colored(&std::io::stderr())).map_err(|fault| Stop::Usage(fault).into())
}

fn is_colored(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn run(command: Command) -> anyhow::Result<Outcome> {
    if cfg!(feature = "cuda") && !matches!(command, Command::Worker(_) | Command::Bench(_)) {
        return Err(Stop::Usage("this program has `worker` and `bench` alone: use `fresco` for all else".into()).into());
    }
    match command {
        Command::Render(args) => render::run(args),
        Command::Model(args) => model_command::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(args).map(|()| Outcome::Done),
        Command::Serve(args) => farm::serve(args),
        Command::Coordinator(args) => farm::coordinator(args),
        Command::Worker(args) => farm::worker(args),
        Command::Submit(args) => client::submit(&args),
        Command::Wait(args) => client::wait(&args),
        Command::Get(args) => client::get(&args),
        Command::List(args) => client::list(&args),
        Command::Watch(args) => client::watch(&args),
        Command::Cancel(args) => client::cancel(&args),
        Command::Retry(args) => client::retry(&args),
        Command::Delete(args) => client::delete(&args),
        Command::Gc(args) => client::gc(&args),
        Command::Download(args) => client::download(&args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "fresco", &mut script);
            terminal::say_bytes(&script)?;
            Ok(Outcome::Done)
        }
    }
}
