//! `fresco doctor`: whether this machine is ready to render, one line for each thing it takes.
//!
//! Looks and changes nothing. Leaves out speed; that is `bench`'s.

use std::path::Path;

use machine::{Memory, readable};
use serde::Serialize;
use serde_json::json;
use sysinfo::{Disks, System};

use crate::args::{DoctorArgs, Threads};
use crate::engine::{n_threads, open_folder};
use crate::exit::Outcome;
use crate::settings;
use crate::terminal;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    status: Status,
    detail: String,
}

/// Looks at everything and prints it; fails if something cannot work.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<Outcome> {
    let findings = [
        finding("version", Status::Ok, env!("CARGO_PKG_VERSION").to_owned()),
        finding("numeric class", Status::Ok, model::numeric_class().to_string()),
        instruction_set(),
        cores(),
        memory(),
        settings_files(),
        demo_model(args),
        current_folder(),
        disk(),
    ];
    let is_failed = findings.iter().any(|finding| finding.status == Status::Fail);
    if args.json {
        terminal::say_json(&json!({"ok": !is_failed, "findings": findings}))?;
    } else {
        for Finding { name, status, detail } in &findings {
            let status = match status {
                Status::Ok => "ok",
                Status::Warn => "warn",
                Status::Fail => "fail",
            };
            terminal::say(&format!("{status:4}  {name:15}  {}", terminal::printable(detail)))?;
        }
    }
    Ok(if is_failed { Outcome::Failed } else { Outcome::Done })
}

fn finding(name: &'static str, status: Status, detail: String) -> Finding {
    Finding { name, status, detail }
}

fn instruction_set() -> Finding {
    let isa = kernels::isa();
    let (status, more) = match isa {
        kernels::Isa::Portable => {
            (Status::Warn, ": renders will be many times slower than on a machine with AVX2 or NEON")
        }
        _ => (Status::Ok, ""),
    };
    finding("instruction set", status, format!("{isa}{more}"))
}

fn cores() -> Finding {
    let physical =
        System::physical_core_count().map_or_else(String::new, |cores| format!(" of {cores} physical cores"));
    finding("threads", Status::Ok, format!("{}{physical}", n_threads(&Threads { threads: None })))
}

fn memory() -> Finding {
    /// The demo model at its default size needs about this much.
    const LITTLE_BYTES: u64 = 512 << 20;
    let Memory { total_bytes, available_bytes, limit } = Memory::measure();
    let (total, available) = (readable(total_bytes.into()), readable(available_bytes.into()));
    let status = if available_bytes < LITTLE_BYTES { Status::Warn } else { Status::Ok };
    let why = limit.map(|limit| format!(", limited by {}", limit.by)).unwrap_or_default();
    finding("memory", status, format!("{available} of {total} available{why}"))
}

fn settings_files() -> Finding {
    let read: Vec<String> =
        settings::paths().iter().filter(|path| path.is_file()).map(|path| path.display().to_string()).collect();
    let detail = if read.is_empty() { "no fresco.toml, defaults hold".into() } else { read.join(", then ") };
    finding("settings", Status::Ok, detail)
}

fn demo_model(args: &DoctorArgs) -> Finding {
    match open_folder(&args.model, args.base.as_deref()) {
        Ok((dir, folder)) => {
            let parts: Vec<String> = folder.parts().into_iter().map(|part| part.name).collect();
            finding("model", Status::Ok, format!("{} has {}", dir.display(), parts.join(", ")))
        }
        Err(error) => finding("model", Status::Fail, format!("{error:#}").replace('\n', "; ")),
    }
}

fn current_folder() -> Finding {
    let shown = std::env::current_dir().map_or_else(|_| "the current folder".into(), |dir| dir.display().to_string());
    match tempfile::tempfile_in(".") {
        Ok(_) => finding("current folder", Status::Ok, format!("{shown} can be written to")),
        Err(error) => finding("current folder", Status::Fail, format!("{shown}: {error}")),
    }
}

/// Free space where pictures go by default.
fn disk() -> Finding {
    /// Room for some large pictures.
    const LITTLE_BYTES: u64 = 100 << 20;
    let here = Path::new(".").canonicalize().unwrap_or_default();
    let disks = Disks::new_with_refreshed_list();
    let holding = disks.iter().filter(|disk| here.starts_with(disk.mount_point()));
    match holding.max_by_key(|disk| disk.mount_point().components().count()) {
        Some(disk) => {
            let free_bytes = disk.available_space();
            let status = if free_bytes < LITTLE_BYTES { Status::Warn } else { Status::Ok };
            finding("disk", status, format!("{} free on {}", readable(free_bytes.into()), disk.mount_point().display()))
        }
        None => finding("disk", Status::Ok, "free space is not known for this file system".into()),
    }
}
