//! `fresco gc`: files that no record of a farm names, listed, and deleted if asked for.

use std::time::Duration;

use wire::v1;
use wire::v1::GarbageKind;

use super::with;
use crate::args::GcArgs;
use crate::exit::Outcome;
use crate::terminal;

/// `fresco gc`.
pub(crate) fn gc(args: &GcArgs) -> anyhow::Result<Outcome> {
    let older_than_ms = u64::try_from(args.older_than.as_millis()).unwrap_or(u64::MAX);
    let request = v1::CollectGarbageRequest { older_than_ms, delete: args.delete };
    let (mut n_files, mut n_bytes) = (0_u64, 0_u64);
    with(&args.farm, async |client| {
        let seen = |file: &v1::CollectGarbageResponse| {
            (n_files, n_bytes) = (n_files + 1, n_bytes + file.size_bytes);
            if args.json {
                terminal::say_json(&serde_json::json!({
                    "path": file.path,
                    "kind": name(file.kind()),
                    "size_bytes": file.size_bytes,
                    "age_s": file.age_ms / 1000,
                    "deleted": file.is_deleted,
                }))
            } else {
                let age = humantime::format_duration(Duration::from_secs(file.age_ms / 1000));
                let line = format!("{} {} {} bytes, {age} old", name(file.kind()), file.path, file.size_bytes);
                terminal::say(&terminal::printable(&line))
            }
        };
        client.collect_garbage(request, seen).await
    })?;
    let of = format!("{n_files} files of {n_bytes} bytes that no record names");
    match (n_files, args.delete) {
        (0, _) => terminal::note("every file is named by a record, or younger than that"),
        (_, true) => terminal::note(&format!("deleted {of}")),
        (_, false) => terminal::note(&format!("{of}: --delete deletes them")),
    }
    Ok(Outcome::Done)
}

fn name(kind: GarbageKind) -> &'static str {
    match kind {
        GarbageKind::Picture => "picture",
        GarbageKind::Checkpoint => "checkpoint",
        GarbageKind::Partial => "partial",
        GarbageKind::Unspecified => "unknown",
    }
}
