//! `fresco.toml`: defaults of flags, in a table named after the command.
//!
//! What a file says becomes the flag's default before the command line is parsed, so that clap's order holds:
//! flag, environment, default. The project's file goes before the user's. Leaves out what the flags mean.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

use crate::exit::{self, Stop};

const FILE_NAME: &str = "fresco.toml";

/// `command` with the defaults of the user's file, and over them those of the current folder's.
pub(crate) fn apply(command: Command) -> Result<Command, Stop> {
    paths().iter().try_fold(command, |command, path| match read(path)? {
        Some(table) => Place { path, tables: Vec::new() }.apply(command, &table),
        None => Ok(command),
    })
}

/// Settings files, the weakest first; whether they exist is another question.
pub(crate) fn paths() -> Vec<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|folder| folder.is_absolute());
    let config = folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("fresco").join(FILE_NAME)).into_iter().chain([PathBuf::from(FILE_NAME)]).collect()
}

fn read(path: &Path) -> Result<Option<Table>, Stop> {
    // Who has no right to look into the home folder, or none that is there, has no settings in it.
    if path.metadata().is_err() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).map_err(|error| Stop::Usage(format!("{}: {error}", path.display())))?;
    let table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let said = error.message().replace('\n', " ");
        let way_out = if is_large_number(&text, line) { ": put the number in quotes" } else { "" };
        Stop::Usage(format!("{}, line {line}: {said}{way_out}", path.display()))
    });
    table.map(Some)
}

/// Whether line `line` of a settings file sets a number that TOML cannot hold, and a seed can.
fn is_large_number(text: &str, line: usize) -> bool {
    let value = text.lines().nth(line - 1).and_then(|line| line.split_once('='));
    let digits = value.and_then(|(_, value)| value.split('#').next()).unwrap_or_default().trim();
    digits.parse::<u64>().is_ok_and(|number| i64::try_from(number).is_err())
}

/// Where in which file.
struct Place<'a> {
    path: &'a Path,
    tables: Vec<&'a str>,
}

impl<'a> Place<'a> {
    fn apply(&mut self, command: Command, table: &'a Table) -> Result<Command, Stop> {
        table.iter().try_fold(command, |command, (key, value)| match value {
            Value::Table(inner) => self.apply_table(command, key, inner),
            value => self.apply_value(command, key, value),
        })
    }

    fn apply_table(&mut self, command: Command, key: &'a str, table: &'a Table) -> Result<Command, Stop> {
        let Some(inner) = command.find_subcommand(key).cloned() else {
            return Err(self.fault(key, "there is no such command"));
        };
        self.tables.push(key);
        let inner = self.apply(inner, table)?;
        self.tables.pop();
        Ok(command.mut_subcommand(key, |_| inner))
    }

    fn apply_value(&self, command: Command, key: &str, value: &Value) -> Result<Command, Stop> {
        if self.tables.is_empty() {
            return Err(self.fault(key, "it stands outside a table: put it under one such as [render]"));
        }
        let Some(arg) = command.get_arguments().find(|arg| arg.get_long() == Some(key)) else {
            let help = format!("there is no such setting: `fresco {} --help` lists them", self.tables.join(" "));
            return Err(self.fault(key, &help));
        };
        let values = match value {
            Value::Array(values) if matches!(arg.get_action(), ArgAction::Append) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        if values.is_empty() {
            return Err(self.fault(key, "the list is empty: name one at least, or leave the setting out"));
        }
        let mut texts = Vec::new();
        for value in values {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Float(number) => number.to_string(),
                Value::Boolean(flag) => flag.to_string(),
                _ => return Err(self.fault(key, "text, a number, true or false is needed")),
            };
            check(arg, &text, value).map_err(|fault| self.fault(key, &fault))?;
            texts.push(text);
        }
        let id = arg.get_id().to_string();
        Ok(command.mut_arg(id, |arg| arg.default_values(texts)))
    }

    fn fault(&self, key: &str, what: &str) -> Stop {
        let key = self.tables.iter().copied().chain([key]).collect::<Vec<_>>().join(".");
        Stop::Usage(format!("{}: `{key}`: {what}", self.path.display()))
    }
}

/// Whether `arg` takes the value, which clap would ask too late to tell where it comes from.
fn check(arg: &Arg, text: &str, value: &Value) -> Result<(), String> {
    if !arg.get_action().takes_values() {
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue) && value.is_bool();
        return if is_flag { Ok(()) } else { Err("true or false is needed".into()) };
    }
    let flag = format!("--{}={text}", arg.get_long().unwrap_or_default());
    let alone = Command::new("fresco").no_binary_name(true).arg(arg.clone().required(false));
    alone.try_get_matches_from([flag]).map(drop).map_err(|error| exit::usage(&error).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let steps = Arg::new("steps").long("steps").default_value("20").value_parser(clap::value_parser!(u32));
        let force = Arg::new("force").long("force").action(ArgAction::SetTrue);
        let inner = Command::new("inspect").arg(Arg::new("base").long("base"));
        Command::new("fresco")
            .subcommand(Command::new("render").arg(steps).arg(force))
            .subcommand(Command::new("model").subcommand(inner))
    }

    fn applied(settings: &str) -> Result<Command, Stop> {
        let table: Table = settings.parse().expect("the settings are TOML");
        Place { path: Path::new(FILE_NAME), tables: Vec::new() }.apply(command(), &table)
    }

    fn check_fault(settings: &str, expected: &str) {
        assert_eq!(applied(settings).expect_err("must be refused").to_string(), expected);
    }

    #[test]
    fn a_setting_is_a_default_and_a_flag_goes_before_it() {
        let steps = |line: &[&str]| {
            let command = applied("[render]\nsteps = 12\nforce = true\n").expect("the settings are sound");
            let matches = command.try_get_matches_from(line).expect("the line is sound");
            let (_, render) = matches.subcommand().expect("a command was given");
            (render.get_one::<u32>("steps").copied(), render.get_flag("force"))
        };
        assert_eq!(steps(&["fresco", "render"]), (Some(12), true));
        assert_eq!(steps(&["fresco", "render", "--steps", "3"]), (Some(3), true));
    }

    #[test]
    fn tables_nest_as_commands_do() {
        let command = applied("[model.inspect]\nbase = \"folder\"\n").expect("the settings are sound");
        let matches = command.try_get_matches_from(["fresco", "model", "inspect"]).expect("the line is sound");
        let inspect = matches.subcommand_matches("model").and_then(|model| model.subcommand_matches("inspect"));
        assert_eq!(inspect.and_then(|inspect| inspect.get_one::<String>("base")).map(String::as_str), Some("folder"));
    }

    #[test]
    fn what_is_not_understood_is_named_with_file_and_key() {
        check_fault(
            "[render]\nstpes = 12\n",
            "fresco.toml: `render.stpes`: there is no such setting: `fresco render --help` lists them",
        );
        check_fault("[rendr]\nsteps = 12\n", "fresco.toml: `rendr`: there is no such command");
        check_fault(
            "steps = 1\n",
            "fresco.toml: `steps`: it stands outside a table: put it under one such as [render]",
        );
        check_fault(
            "[render]\nsteps = \"many\"\n",
            "fresco.toml: `render.steps`: invalid value 'many' for '--steps <steps>': invalid digit found in string",
        );
        check_fault("[render]\nsteps = [1]\n", "fresco.toml: `render.steps`: text, a number, true or false is needed");
        check_fault("[render]\nforce = 1\n", "fresco.toml: `render.force`: true or false is needed");
    }
}
