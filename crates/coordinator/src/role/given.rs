//! What the environment and the command line give, read as people mean it.
//!
//! Leaves out flags and their defaults.

use std::net::SocketAddr;

use clap::builder::Resettable;
use clap::{Arg, Command};

/// `command`, for which an empty variable of the environment is one that is not set: compose files and charts pass
/// every variable on, empty or not.
#[must_use]
pub fn without_empty_variables(command: Command) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let command = command.mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg });
    command.mut_subcommands(without_empty_variables)
}

/// An address to listen at: `IP:PORT`, or `localhost:PORT`.
///
/// # Errors
/// If it is neither; the message has examples.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map_err(|_| {
        let port = text.trim_start_matches(':').parse::<u16>().unwrap_or(7400);
        format!("IP:PORT is needed: 127.0.0.1:{port} for this machine alone, 0.0.0.0:{port} for every network it is in")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_or_refused_with_examples() {
        assert_eq!(address("127.0.0.1:7400"), Ok(([127, 0, 0, 1], 7400).into()));
        assert_eq!(address("localhost:7401"), Ok(([127, 0, 0, 1], 7401).into()));
        assert_eq!(address("[::1]:0").map(|address| address.is_ipv6()), Ok(true));
        for (text, example) in [
            ("7401", "0.0.0.0:7401"),
            (":7401", "127.0.0.1:7401"),
            ("render-01:7400", "127.0.0.1:7400"),
            ("localhost", "127.0.0.1:7400"),
            ("127.0.0.1", "127.0.0.1:7400"),
            ("127.0.0.1:70000", "127.0.0.1:7400"),
            ("", "127.0.0.1:7400"),
        ] {
            let said = address(text).expect_err(text);
            assert!(said.contains(example), "{text}: {said}");
        }
    }
}
