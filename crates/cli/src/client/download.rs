//! `fresco download`: finished pictures of a job become files, by the rules of `render`.
//!
//! Leaves out names and writes; those are `output`'s.

use serde_json::json;
use wire::convert;
use wire::v1::{Artifact, Image, Job, State};

use super::with;
use crate::args::{DownloadArgs, JobArgs};
use crate::exit::{Outcome, Stop};
use crate::output::{self, Out, Target};
use crate::{interrupt, terminal};

/// A finished picture and where it goes.
struct Picture {
    index: u32,
    artifact: Artifact,
    target: Target,
    is_there: bool,
}

/// Fetches all pictures that are finished.
pub(crate) fn download(args: &DownloadArgs) -> anyhow::Result<Outcome> {
    let JobArgs { job: id, farm, json } = &args.job;
    let out = Out::read(args.out.as_deref())?;
    with(farm, async |client| {
        interrupt::listen("the picture on its way was not written")?;
        let job = client.job_patiently(id).await?;
        let pictures = pictures(&job, id, out, args.force)?;
        if pictures.is_empty() {
            let fault = format!("job {id} has no finished picture yet: `fresco wait {id}`");
            return Err(Stop::NotFound(fault).into());
        }
        output::check(pictures.iter().filter(|picture| !picture.is_there).map(|picture| &picture.target))?;
        for Picture { index, artifact, target, is_there } in &pictures {
            let (mut path, mut sha256) = (target.path().to_owned(), artifact.sha256.clone());
            if !is_there {
                let (fetched, bytes) = client.artifact(id, *index).await?;
                (path, sha256) = (target.write(&bytes)?, fetched.sha256);
            }
            let path = path.display().to_string();
            if *json {
                terminal::say_json(&json!({"path": path, "image": index, "sha256": sha256}))?;
            } else {
                terminal::say(&terminal::printable(&path))?;
            }
        }
        let is_open = |image: &&Image| matches!(image.state(), State::Queued | State::Running);
        let n_open = job.images.iter().filter(is_open).count();
        if n_open > 0 {
            let n_images = job.images.len();
            terminal::note(&format!("{n_open} of {n_images} pictures are still to come: `fresco wait {id}`"));
        }
        Ok(if pictures.len() == job.images.len() { Outcome::Done } else { Outcome::JobPartlyFailed })
    })
}

/// The finished pictures of `job`, which the user calls `id`. If it has several, each has its seed in its name.
fn pictures(job: &Job, id: &str, out: Out<'_>, force: bool) -> anyhow::Result<Vec<Picture>> {
    let first_seed = job.spec.as_ref().map_or(0, |spec| spec.seed);
    let mut pictures = Vec::new();
    for image in &job.images {
        let Some(artifact) = image.artifact.clone() else { continue };
        let seed = (job.images.len() > 1).then_some(first_seed.wrapping_add(image.index.into()));
        let target = Target::of_artifact(id, seed, convert::artifact_kind(artifact.kind)?, out, force)?;
        let is_there = target.holds(artifact.size_bytes, &artifact.sha256);
        pictures.push(Picture { index: image.index, artifact, target, is_there });
    }
    Ok(pictures)
}
