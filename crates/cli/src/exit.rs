//! How commands end: exit codes, and errors as lines on standard error.
//!
//! Leaves out what a command says when it ends well.

use std::process::ExitCode;

use clap::error::ErrorKind;
use model::RenderError;

use crate::args::Variable;
use crate::terminal;

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All is well.
    Done,
    /// What was to be found out is not well, and standard output has said so.
    Failed,
    /// All images of a job failed.
    JobFailed,
    /// Some images of a job failed.
    JobPartlyFailed,
    /// A job was cancelled.
    JobCancelled,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Failed => Self::from(FAILED),
            Outcome::JobFailed => Self::from(JOB_FAILED),
            Outcome::JobPartlyFailed => Self::from(JOB_PARTLY_FAILED),
            Outcome::JobCancelled => Self::from(JOB_CANCELLED),
        }
    }
}

/// Why a command ended early, where the exit code says more than "failed".
#[derive(Debug, thiserror::Error)]
pub(crate) enum Stop {
    /// The command line, the environment or a settings file asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// Something named by the user is not there.
    #[error("{0}")]
    NotFound(String),
    /// A farm cannot be reached, or did not answer in time.
    #[error("{0}")]
    Unavailable(String),
    /// Whatever read standard output has closed it; it knows, so nothing is said.
    #[error("standard output was closed")]
    ReaderGone,
    /// Help in place of a missing command, as it is to be printed.
    #[error("{0}")]
    Help(String),
}

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOT_FOUND: u8 = 3;
const JOB_FAILED: u8 = 4;
const JOB_PARTLY_FAILED: u8 = 5;
const JOB_CANCELLED: u8 = 6;
const UNAVAILABLE: u8 = 9;
/// By a signal, whichever it was.
pub(crate) const INTERRUPTED: u8 = 130;

/// Prints `error`, one line for each fault, and gives its exit code. `variables` of the environment gave values.
pub(crate) fn report(error: &anyhow::Error, variables: &[Variable]) -> ExitCode {
    match error.downcast_ref() {
        Some(Stop::ReaderGone) => {}
        Some(Stop::Help(help)) => terminal::note(help),
        // An error may hold several faults, one a line: each line must make sense to who filters for `error:`.
        _ => format!("{error:#}").lines().for_each(|line| {
            let meant: Vec<&str> = variables.iter().filter(|one| one.is_meant(line)).map(Variable::name).collect();
            if meant.is_empty() {
                terminal::error(line);
            } else {
                terminal::error(&format!("{line} (set by {})", meant.join(", ")));
            }
        }),
    }
    ExitCode::from(code_of(error))
}

fn code_of(error: &anyhow::Error) -> u8 {
    let code = |cause: &(dyn std::error::Error + 'static)| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(Stop::Usage(_) | Stop::Help(_)), _) => Some(USAGE),
        (Some(Stop::NotFound(_)), _) => Some(NOT_FOUND),
        (Some(Stop::Unavailable(_)), _) => Some(UNAVAILABLE),
        (_, Some(RenderError::Request(_) | RenderError::Latents(_))) => Some(USAGE),
        _ => cause.is::<plan::RequestError>().then_some(USAGE),
    };
    error.chain().find_map(code).unwrap_or(FAILED)
}

/// What is wrong with a command line, in one line where clap takes several.
pub(crate) fn usage(error: &clap::Error) -> Stop {
    let text = error.render().to_string();
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Stop::Help(text.trim_end().to_owned());
    }
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let mut line = String::new();
    for part in said.filter(|part| !part.is_empty() && !part.starts_with("For more information")) {
        let part = part.strip_prefix("error: ").unwrap_or(part);
        if !line.is_empty() {
            line.push_str(if line.ends_with(':') { " " } else { "; " });
        }
        line.push_str(part);
    }
    Stop::Usage(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(error: anyhow::Error, expected: u8) {
        assert_eq!(code_of(&error), expected, "{error:#}");
    }

    #[test]
    fn the_code_says_what_kind_of_end_it_was() {
        check(anyhow::anyhow!("disk full"), FAILED);
        check(Stop::NotFound("no such model".into()).into(), NOT_FOUND);
        check(anyhow::Error::from(Stop::Usage("odd".into())).context("read fresco.toml"), USAGE);
        check(plan::RequestError::Steps { steps: 0 }.into(), USAGE);
        check(RenderError::Request(plan::RequestError::Steps { steps: 0 }).into(), USAGE);
    }

    #[test]
    fn a_message_of_several_lines_becomes_one() {
        let command = clap::Command::new("fresco").arg(clap::Arg::new("PROMPT").required(true));
        let error = command.try_get_matches_from(["fresco"]).expect_err("the prompt is missing");
        let line = usage(&error).to_string();
        assert_eq!(line, "the following required arguments were not provided: <PROMPT>");
    }
}
