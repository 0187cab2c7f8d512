//! The log of a process: which events, in which form, to standard error.

use std::io;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What a role tells unless `FRESCO_LOG` says otherwise: one line for each thing that happens to a farm.
const OF_A_ROLE: &str = "warn,coordinator=info,worker::session=info,worker::parts=info";
/// What a command tells.
const OF_A_COMMAND: &str = "warn";

/// How a role's log is written.
#[derive(Debug, Args)]
pub struct Log {
    /// Form of the log on standard error
    #[arg(long, env = "FRESCO_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts the log of this process: that of a role, or of a command, which has none of the flags.
///
/// # Errors
/// If `FRESCO_LOG` is not understood.
pub fn start(role: Option<&Log>, is_colored: bool) -> Result<(), String> {
    let asked = std::env::var("FRESCO_LOG").ok().filter(|asked| !asked.is_empty());
    let directives = asked.as_deref().unwrap_or(if role.is_some() { OF_A_ROLE } else { OF_A_COMMAND });
    let filter = EnvFilter::try_new(directives)
        .map_err(|error| format!("FRESCO_LOG `{directives}` is not understood ({error}): use a level such as debug"))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    match role.map(|log| log.log_format) {
        Some(LogFormat::Json) => log.json().flatten_event(true).init(),
        _ => log.with_ansi(is_colored).init(),
    }
    Ok(())
}
