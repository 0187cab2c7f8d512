//! `fresco model`: what a folder holds, whether it is sound, and original checkpoints made into one.
//!
//! Leaves out how folders are read and converted; that is the crate `model`'s.

use std::ops::ControlFlow;
use std::path::Path;

use machine::readable;
use model::convert::{ConvertOptions, convert};
use model::folder::Part;
use model::{FolderError, Identity, ModelFolder};
use plan::{LayerIdx, ModelSpec};
use serde_json::{Value, json};

use crate::args::{ConvertArgs, FolderArgs, ModelCommand, ModelSubcommand, VerifyModelArgs};
use crate::engine::{self, open_folder};
use crate::exit::{Outcome, Stop};
use crate::models;
use crate::terminal;

/// Runs one of the subcommands.
pub(crate) fn run(args: ModelCommand) -> anyhow::Result<Outcome> {
    match args.command {
        ModelSubcommand::Inspect(args) => inspect(&args),
        ModelSubcommand::Verify(args) => verify(&args),
        ModelSubcommand::Convert(args) => convert_checkpoint(&args),
    }
}

fn inspect(args: &FolderArgs) -> anyhow::Result<Outcome> {
    let (dir, folder) = open_folder(&args.dir, args.base.as_deref())?;
    if args.json {
        let (path, parts) = (dir.display().to_string(), folder.parts());
        let spec = spec_json(folder.spec());
        terminal::say_json(&json!({"name": folder.name(), "path": path, "spec": spec, "parts": parts}))?;
        return Ok(Outcome::Done);
    }
    terminal::say(&format!("{} ({})", folder.name(), dir.display()))?;
    for line in facts(folder.spec()) {
        terminal::say(&format!("  {line}"))?;
    }
    for part in folder.parts() {
        for line in describe(&part) {
            terminal::say(&line)?;
        }
    }
    Ok(Outcome::Done)
}

/// The networks in a few lines.
fn facts(spec: &ModelSpec) -> Vec<String> {
    let dit = &spec.dit;
    let mut line = format!("transformer: {} blocks, {} heads of width {}", dit.depth, dit.heads, dit.head_width);
    if let Some(kv) = &dit.kv_compress {
        let layers: Vec<String> = kv.layers.iter().map(LayerIdx::to_string).collect();
        line += &format!(", keys and values shrunk by {} in blocks {}", kv.ratio, layers.join(", "));
    }
    let natural_px = dit.sample_cells * spec.vae.factor();
    let widths: Vec<String> = spec.vae.widths.iter().map(usize::to_string).collect();
    vec![
        line,
        format!("position code: made for {natural_px}x{natural_px} pixels"),
        format!("vae: widths {}, scaling {}", widths.join(", "), spec.vae.scaling_factor),
        format!("text encoder: {} layers of width {}", spec.text.depth, spec.text.width),
    ]
}

fn describe(part: &Part) -> Vec<String> {
    let files: Vec<String> = part.files.iter().map(|file| file.display().to_string()).collect();
    let mut lines = vec![format!("{}: {}", part.name, readable(part.bytes.into()))];
    if part.n_tensors > 0 {
        lines[0] +=
            &format!(", {} tensors, {} values, {}", part.n_tensors, part.n_parameters, part.dtypes.join(" and "));
    }
    lines.extend(files.iter().map(|file| format!("  {file}")));
    for (what, names) in [
        ("settings that are not understood", &part.unknown_config_keys),
        ("tensors that are not used", &part.unknown_tensors),
        ("weight files that are not used", &part.unused_files),
    ] {
        if !names.is_empty() {
            lines.push(format!("  {what}: {}", names.join(", ")));
        }
    }
    lines
}

fn spec_json(spec: &ModelSpec) -> Value {
    let kv_compress = spec.dit.kv_compress.as_ref().map(|kv| {
        let layers: Vec<usize> = kv.layers.iter().map(|layer| layer.0).collect();
        json!({"scale_factor": kv.ratio, "layers": layers})
    });
    json!({
        "transformer": {
            "depth": spec.dit.depth,
            "heads": spec.dit.heads,
            "head_width": spec.dit.head_width,
            "caption_width": spec.dit.caption_width,
            "sample_size": spec.dit.sample_cells,
            "interpolation_scale": spec.dit.interpolation,
            "kv_compress": kv_compress,
        },
        "vae": {
            "widths": spec.vae.widths,
            "layers_per_block": spec.vae.layers_per_block,
            "groups": spec.vae.groups,
            "scaling_factor": spec.vae.scaling_factor,
            "shift_factor": spec.vae.shift_factor,
        },
        "text_encoder": {
            "width": spec.text.width,
            "depth": spec.text.depth,
            "vocabulary": spec.text.vocabulary,
        },
    })
}

fn verify(VerifyModelArgs { folder: args, sha256: expected }: &VerifyModelArgs) -> anyhow::Result<Outcome> {
    let dir = models::find(&args.dir)?;
    let base = args.base.as_deref().map(models::find).transpose()?;
    let checked = ModelFolder::open(&dir, base.as_deref()).and_then(|folder| {
        folder.check_finite(&|| ControlFlow::Continue(()))?;
        let fault = |fault| FolderError { faults: vec![fault] };
        let identity = folder.identity().map_err(|error| fault(error.to_string()))?;
        match expected {
            Some(expected) if !expected.eq_ignore_ascii_case(&identity.sha256) => {
                let found = &identity.sha256;
                Err(fault(format!("it has the sha256 {found}, {expected} was expected: fetch it again")))
            }
            _ => Ok((folder, identity)),
        }
    });
    let path = dir.display().to_string();
    match checked {
        Ok((folder, Identity { sha256, digests })) => {
            engine::tell(&dir, &folder);
            if args.json {
                let (notes, name) = (folder.notes(), folder.name());
                terminal::say_json(&json!({
                    "ok": true, "path": path, "name": name, "sha256": sha256, "digests": digests, "notes": notes, "faults": [],
                }))?;
            } else {
                let (n_tensors, n_values) = totals(&folder);
                terminal::say(&format!("{path}: sound, {n_tensors} tensors, {n_values} values, all finite"))?;
                for (part, digest) in digests.parts() {
                    terminal::say(&format!("  {part} {digest}"))?;
                }
                // The last line: others read it.
                terminal::say(&format!("sha256 {sha256}"))?;
            }
            Ok(Outcome::Done)
        }
        Err(error) => {
            if args.json {
                terminal::say_json(&json!({"ok": false, "path": path, "sha256": null, "faults": error.faults}))?;
            }
            for fault in &error.faults {
                terminal::error(&format!("model {path}: {fault}"));
            }
            Ok(Outcome::Failed)
        }
    }
}

fn totals(folder: &ModelFolder) -> (usize, u64) {
    let parts = folder.parts();
    (parts.iter().map(|part| part.n_tensors).sum(), parts.iter().map(|part| part.n_parameters).sum())
}

fn convert_checkpoint(args: &ConvertArgs) -> anyhow::Result<Outcome> {
    let shown = args.checkpoint.display();
    if let Err(error) = args.checkpoint.metadata() {
        return Err(Stop::NotFound(format!("checkpoint {shown}: {error}")).into());
    }
    if !args.force {
        refuse_existing(&args.out_dir)?;
    }
    let base = args.base.as_deref().map(models::find).transpose()?;
    let options = ConvertOptions {
        heads: args.heads.map(|heads| heads as usize),
        sample_size: args.sample_size.map(|side| side as usize),
        interpolation: args.interpolation_scale,
        base: base.as_deref(),
    };
    let converted = convert(&args.checkpoint, &args.out_dir, &options)?;
    for note in &converted.notes {
        terminal::warning(note);
    }
    if args.json {
        terminal::say_json(&converted)?;
        return Ok(Outcome::Done);
    }
    if !converted.dropped.is_empty() {
        terminal::say(&format!("left out, since rendering does not use them: {}", converted.dropped.join(", ")))?;
    }
    let compressed = converted.kv_compress.as_ref().map_or_else(String::new, |(ratio, layers)| {
        format!(", keys and values shrunk by {ratio} in blocks {layers:?}")
    });
    let folder = args.out_dir.join("transformer");
    terminal::say(&format!(
        "{}: {} tensors, {} blocks of width {}{compressed}",
        folder.display(),
        converted.n_tensors,
        converted.depth,
        converted.width
    ))?;
    Ok(Outcome::Done)
}

fn refuse_existing(out_dir: &Path) -> Result<(), Stop> {
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        let path = out_dir.join("transformer").join(name);
        if path.symlink_metadata().is_ok() {
            let fault = format!("{} exists: choose another folder, or replace it with --force", path.display());
            return Err(Stop::Usage(fault));
        }
    }
    Ok(())
}
