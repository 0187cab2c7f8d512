//! `fresco verify`: a picture rendered again from what it says about itself, and compared with it.
//!
//! The comparison is of bytes; pixels are looked at only to say how far off they are.

use std::io::{Cursor, ErrorKind};
use std::ops::ControlFlow;

use anyhow::{Context, anyhow, bail, ensure};
use safetensors::SafeTensors;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::VerifyArgs;
use crate::engine::Engine;
use crate::exit::{Outcome, Stop};
use crate::interrupt;
use crate::latents::{Latents, hex};
use crate::progress::Meter;
use crate::terminal;
use plan::ArtifactKind;
use worker::image::{self, Stored};
use worker::metadata::{Metadata, ModelId};

/// Renders the picture again and says whether its bytes are the same.
pub(crate) fn run(args: VerifyArgs) -> anyhow::Result<Outcome> {
    interrupt::listen("the picture was not compared")?;
    let shown = args.image.display().to_string();
    let bytes = std::fs::read(&args.image).map_err(|error| match error.kind() {
        ErrorKind::NotFound => Stop::NotFound(format!("picture {shown}: {error}")).into(),
        _ => anyhow!("picture {shown}: {error}"),
    })?;
    let stored = image::read(&bytes).map_err(|fault| anyhow!("picture {shown} {fault}"))?;
    let (again, metadata) = render_again(&args, &shown, &stored)?;
    let is_same = again == bytes;
    let is_old = stored.metadata.model.digests.is_none();
    if is_old {
        terminal::warning(&format!(
            "{shown}: it names its model by a hash of the weights alone, as older versions wrote it, so whether it was this \
             model shows in the pixels only"
        ));
    }
    let differences = if is_same { Differences::default() } else { compare(&stored, &metadata, &bytes, &again) };
    if args.json {
        terminal::say_json(&json!({
            "path": shown,
            "same_bytes": is_same,
            "sha256": hex(&Sha256::digest(&bytes)),
            "differences": differences.lines,
            "n_values_differ": differences.n_values,
            "largest_difference": differences.largest,
        }))?;
    } else if is_same {
        terminal::say(&format!("{}: same bytes", terminal::printable(&shown)))?;
    } else {
        terminal::say(&format!("{}: differs: {}", terminal::printable(&shown), differences.lines.join("; ")))?;
    }
    Ok(if is_same { Outcome::Done } else { Outcome::Failed })
}

/// The file that this program makes of the request in `stored`, and that file's metadata.
fn render_again(args: &VerifyArgs, shown: &str, stored: &Stored) -> anyhow::Result<(Vec<u8>, Metadata)> {
    let request = stored.metadata.request().map_err(|fault| anyhow!("picture {shown}: {fault}"))?;
    let named = &stored.metadata.model.name;
    let engine = Engine::open(args.model.as_deref().unwrap_or(named), args.base.as_deref(), &args.threads)?;
    engine.check_size(request.size)?;
    let noise = args.latents.as_deref().map(|path| Latents::read(path, engine.latent(request.size))).transpose()?;
    check_noise(&stored.metadata, noise.as_ref()).map_err(|fault| anyhow!("picture {shown}: {fault}"))?;
    let mut model = engine.load()?;
    let mut meter = Meter::start(String::new(), request.steps);
    let rendered = model.render(&request, noise.as_ref().map(|noise| &noise.tensor), &mut |progress| {
        meter.show(&progress);
        ControlFlow::Continue(())
    })?;
    drop(meter);
    let sha256 = noise.map(|noise| noise.sha256);
    let mut id = model.model_id()?;
    if stored.metadata.model.digests.is_none() {
        // What it says of its model is of another kind, and cannot be compared; its pixels can.
        id = ModelId { name: id.name, ..stored.metadata.model.clone() };
    }
    let metadata = Metadata::of(&request, image::bit_depth(stored.kind), id, sha256);
    Ok((image::encode(&rendered, stored.kind, &metadata)?, metadata))
}

/// Refuses to compare pictures of different noise.
fn check_noise(metadata: &Metadata, noise: Option<&Latents>) -> anyhow::Result<()> {
    match (&metadata.latents_sha256, noise) {
        (None, None) => Ok(()),
        (None, Some(_)) => bail!("it was rendered from its seed: leave --latents out"),
        (Some(_), None) => bail!("it was rendered from given noise: give the same file with --latents"),
        (Some(expected), Some(noise)) => {
            ensure!(
                *expected == noise.sha256,
                "it was rendered from other noise: --latents has the sha256 {}, the picture's had {expected}",
                noise.sha256
            );
            Ok(())
        }
    }
}

/// What is not the same.
#[derive(Debug, Default, PartialEq)]
struct Differences {
    lines: Vec<String>,
    n_values: usize,
    /// In levels of a PNG's bit depth, or in units of 0..1.
    largest: f64,
}

fn compare(stored: &Stored, again: &Metadata, old_bytes: &[u8], new_bytes: &[u8]) -> Differences {
    let mut differences = Differences::default();
    let mut line = |what: String| differences.lines.push(what);
    let old = &stored.metadata;
    if old.model.sha256 != again.model.sha256 {
        let both = old.model.digests.as_ref().zip(again.model.digests.as_ref());
        let what = both.and_then(|(old, new)| old.differences(new)).unwrap_or_else(|| "content".into());
        let (old, new) = (&old.model.sha256, &again.model.sha256);
        line(format!("the model's {what} differ: its sha256 was {old} and is {new} here"));
    }
    for (what, old, new) in [
        ("model's name", &old.model.name, &again.model.name),
        ("numeric class", &old.numeric_class, &again.numeric_class),
        ("version", &old.version, &again.version),
    ] {
        if old != new {
            line(format!("the {what} was {old} and is {new} here"));
        }
    }
    match (values(stored.kind, old_bytes), values(stored.kind, new_bytes)) {
        (Ok(old), Ok(new)) if old.len() == new.len() => {
            let off = old.iter().zip(&new).map(|(old, new)| (old - new).abs()).filter(|off| *off > 0.0);
            let (n_values, largest) = off.fold((0, 0.0_f64), |(n, largest), off| (n + 1, largest.max(off)));
            let n_pixels = n_pixels_off(stored.kind, &old, &new);
            if n_values == 0 {
                line("all pixels are equal".into());
            } else {
                let (of, unit) = (old.len() / 3, if stored.kind == ArtifactKind::Safetensors { "" } else { " levels" });
                line(format!("{n_pixels} of {of} pixels differ, by at most {largest}{unit}"));
            }
            (differences.n_values, differences.largest) = (n_values, largest);
        }
        (Ok(_), Ok(_)) => line("the picture has another size than its metadata say".into()),
        (Err(fault), _) | (_, Err(fault)) => line(format!("the pixels cannot be compared: {fault:#}")),
    }
    differences
}

/// The channels of a PNG's pixels lie together, those of a tensor in planes.
fn n_pixels_off(kind: ArtifactKind, old: &[f64], new: &[f64]) -> usize {
    let n_pixels = old.len() / 3;
    let is_off = |idx: usize| old[idx] != new[idx];
    let channel = |pixel: usize, channel: usize| match kind {
        ArtifactKind::Png8 | ArtifactKind::Png16 => 3 * pixel + channel,
        ArtifactKind::Safetensors => channel * n_pixels + pixel,
    };
    (0..n_pixels).filter(|&pixel| (0..3).any(|idx| is_off(channel(pixel, idx)))).count()
}

/// The picture's values, in the order of the file.
fn values(kind: ArtifactKind, bytes: &[u8]) -> anyhow::Result<Vec<f64>> {
    let (ArtifactKind::Png8 | ArtifactKind::Png16) = kind else {
        let file = SafeTensors::deserialize(bytes).context("read the file")?;
        let image = file.tensor("image").context("find the tensor `image`")?;
        let chunks = image.data().chunks_exact(4);
        return Ok(chunks.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect());
    };
    // A few bytes can claim to be a picture of any size: rows cannot be more than a thousand times packed.
    let limits = png::Limits { bytes: bytes.len().saturating_mul(2000) };
    let mut reader = png::Decoder::new_with_limits(Cursor::new(bytes), limits).read_info()?;
    let (color, depth) = (reader.info().color_type, reader.info().bit_depth);
    ensure!(color == png::ColorType::Rgb, "the picture is {color:?}, not Rgb");
    let n_bytes = reader.output_buffer_size().context("the picture is too large")?;
    ensure!(n_bytes <= bytes.len().saturating_mul(2000), "the picture claims to be larger than its file can hold");
    let mut pixels = vec![0; n_bytes];
    reader.next_frame(&mut pixels)?;
    Ok(match depth {
        png::BitDepth::Sixteen => {
            pixels.chunks_exact(2).map(|pair| f64::from(u16::from_be_bytes([pair[0], pair[1]]))).collect()
        }
        _ => pixels.into_iter().map(f64::from).collect(),
    })
}
