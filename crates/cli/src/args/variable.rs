//! Variables of the environment that gave values: errors name them, because nobody wrote their flags.

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

/// A variable that stands in for a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    flag: String,
    name: String,
    value: String,
}

impl Variable {
    fn of(arg: &Arg) -> Option<Self> {
        let name = arg.get_env()?;
        let value = std::env::var_os(name).filter(|value| !value.is_empty())?;
        let flag = format!("--{}", arg.get_long()?);
        Some(Self { flag, name: name.to_string_lossy().into_owned(), value: value.to_string_lossy().into_owned() })
    }

    /// The variables that gave `matches` values.
    pub(crate) fn used(command: &Command, matches: &ArgMatches) -> Vec<Self> {
        let is_used = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::EnvVariable);
        let mut used: Vec<Self> = command.get_arguments().filter(is_used).filter_map(Self::of).collect();
        if let Some((name, inner)) = matches.subcommand()
            && let Some(command) = command.find_subcommand(name)
        {
            used.extend(Self::used(command, inner));
        }
        used
    }

    /// The variable whose value `error` is about, where the flag is not on the command line `line`. With it, how the error
    /// calls the flag.
    pub(crate) fn at_fault(command: &Command, error: &clap::Error, line: &[String]) -> Option<(Self, String)> {
        let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg) else { return None };
        let inner = line.iter().try_fold(command, |command, word| match command.find_subcommand(word) {
            Some(inner) => Ok(inner),
            None => Err(command),
        });
        let (Ok(inner) | Err(inner)) = inner;
        let arg = inner.get_arguments().find(|arg| arg.to_string() == *given)?;
        let variable = Self::of(arg)?;
        let is_flag = |word: &String| word.split('=').next() == Some(&variable.flag);
        (!line.iter().any(is_flag)).then_some((variable, given.clone()))
    }

    /// `message` about a value, `given` being what clap calls the flag, said of the variable.
    pub(crate) fn blame(&self, message: &str, given: &str) -> String {
        message.replace(&format!("for '{given}'"), &format!("of {}", self.name))
    }

    /// Whether `message` is about this variable's flag or value, though it does not say so.
    pub(crate) fn is_meant(&self, message: &str) -> bool {
        /// Shorter ones turn up anywhere.
        const SHORTEST_VALUE: usize = 4;
        let is_part = |c: char| c.is_alphanumeric() || c == '-';
        let has_flag =
            message.match_indices(&self.flag).any(|(at, flag)| !message[at + flag.len()..].starts_with(is_part));
        let has_value = self.value.len() >= SHORTEST_VALUE && message.contains(&self.value);
        (has_flag || has_value) && !message.contains(&self.name)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_about_a_variable_if_it_names_its_flag_or_value() {
        let out = Variable { flag: "--out".into(), name: "FRESCO_OUT".into(), value: "x.gif".into() };
        assert!(out.is_meant("--out x.gif: the name must end in .png"));
        assert!(out.is_meant("choose another name with --out"));
        assert!(out.is_meant("x.gif cannot be written"));
        assert!(!out.is_meant("--output is not known"));
        assert!(!out.is_meant("FRESCO_OUT: --out is wrong"));
        assert_eq!(
            out.blame("invalid value 'x' for '--out <PATH>': no", "--out <PATH>"),
            "invalid value 'x' of FRESCO_OUT: no"
        );
    }
}
