//! The commands of a farm's clients: `submit`, `wait`, `get`, `list`, `watch`, `cancel`, `retry`, `delete`,
//! `download`, and `worker drain`.
//!
//! The connection and the errors of calls are in `client/call.rs`, lines and JSON of jobs in `client/show.rs`.

mod call;
mod show;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wire::v1::State;
use wire::{convert, v1};

pub(crate) use call::{Client, Watched};

use crate::args::{DeleteArgs, DownloadArgs, DrainArgs, Farm, JobArgs, ListArgs, PictureArgs, SubmitArgs, WatchArgs};
use crate::exit::{Outcome, Stop};
use crate::output::Target;
use crate::{engine, farm, render, terminal};

/// Runs one call, or a few, against a farm.
fn with<T>(farm: &Farm, calls: impl AsyncFnOnce(&mut Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    farm::runtime()?.block_on(async { calls(&mut Client::connect(&farm.coordinator).await?).await })
}

/// `fresco submit`.
pub(crate) fn submit(args: &SubmitArgs) -> anyhow::Result<Outcome> {
    let (model, size) = model_and_size(&args.picture)?;
    let request = render::request(&args.picture, size)?;
    let spec = convert::spec_of(&request, &model, args.picture.count, args.picture.bit_depth.into());
    with(&args.farm, async |client| {
        let job = client.submit(spec, args.request_id.clone()).await?;
        if args.wait {
            if !args.json {
                terminal::say(&job.id)?;
            }
            return wait_for(client, &job.id, args.json).await;
        }
        if args.json {
            terminal::say_json(&show::job(&job))?
        } else {
            terminal::say(&job.id)?
        }
        Ok(Outcome::Done)
    })
}

/// What the farm calls the model, and the size to render: the asked one, or the one the folder here names.
fn model_and_size(args: &PictureArgs) -> anyhow::Result<(String, plan::ImageSize)> {
    match (engine::open_folder(&args.model, None), args.size) {
        (Ok((_, folder)), size) => Ok((folder.name().to_owned(), size.unwrap_or_else(|| folder.natural_size()))),
        (Err(_), Some(size)) => Ok((args.model.clone(), size)),
        (Err(_), None) => {
            let fault =
                format!("model `{}` is not on this machine, which could tell its size: give --size", args.model);
            Err(Stop::Usage(fault).into())
        }
    }
}

/// `fresco wait`.
pub(crate) fn wait(args: &JobArgs) -> anyhow::Result<Outcome> {
    with(&args.farm, async |client| wait_for(client, &args.job, args.json).await)
}

async fn wait_for(client: &mut Client, id: &str, json: bool) -> anyhow::Result<Outcome> {
    let mut said = BTreeMap::new();
    let watched = client.watch(id, 0, |event| {
        // What an image waits for, or why it is tried again.
        if let Some(image) = &event.image
            && said.insert(image.index, image.message.clone()).unwrap_or_default() != image.message
            && !image.message.is_empty()
        {
            terminal::note(&show::image_note(image));
        }
        ControlFlow::Continue(())
    });
    let job = match watched.await? {
        Watched::Over(job) => job,
        Watched::Left(_) => return Err(Stop::Unavailable(format!("the farm went away while job {id} went on")).into()),
    };
    if json {
        terminal::say_json(&show::job(&job))?
    } else {
        terminal::say(&show::line(&job))?
    }
    Ok(outcome(&job))
}

/// How a job's end is told by the exit code.
fn outcome(job: &v1::Job) -> Outcome {
    let n_done = job.images.iter().filter(|image| image.state() == State::Done).count();
    match job.state() {
        State::Failed if n_done > 0 => Outcome::JobPartlyFailed,
        State::Failed => Outcome::JobFailed,
        State::Cancelled => Outcome::JobCancelled,
        _ => Outcome::Done,
    }
}

/// `fresco worker drain`.
pub(crate) fn drain(args: &DrainArgs) -> anyhow::Result<Outcome> {
    const LOOK_AGAIN: Duration = Duration::from_millis(250);
    with(&args.farm, async |client| {
        if !client.drain(&args.name).await? {
            // Whoever asks again, as a container's hook may, asks for what has come true.
            terminal::note(&format!("worker `{}` is not in this farm", args.name));
            return Ok(Outcome::Done);
        }
        while args.wait && client.drain(&args.name).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let state = if args.wait { "has handed over and left" } else { "hands over at the next step boundary" };
        terminal::note(&format!("worker `{}` {state}", args.name));
        Ok(Outcome::Done)
    })
}

/// `fresco get`.
pub(crate) fn get(args: &JobArgs) -> anyhow::Result<Outcome> {
    let job = with(&args.farm, async |client| client.job(&args.job).await)?;
    show_one(&job, args.json)
}

fn show_one(job: &v1::Job, json: bool) -> anyhow::Result<Outcome> {
    if json {
        terminal::say_json(&show::job(job))?;
    } else {
        terminal::say(&show::line(job))?;
        job.images.iter().try_for_each(|image| terminal::say(&show::image_line(job, image)))?;
    }
    Ok(Outcome::Done)
}

/// `fresco list`.
pub(crate) fn list(args: &ListArgs) -> anyhow::Result<Outcome> {
    let jobs = with(&args.farm, async |client| client.list(args.limit as usize).await)?;
    for job in &jobs {
        if args.json { terminal::say_json(&show::job_of_many(job))? } else { terminal::say(&show::line(job))? }
    }
    if jobs.is_empty() && !args.json {
        terminal::note("no jobs: `fresco submit \"PROMPT\"` makes one");
    }
    Ok(Outcome::Done)
}

/// `fresco watch`: goes on through restarts of the coordinator.
pub(crate) fn watch(args: &WatchArgs) -> anyhow::Result<Outcome> {
    let JobArgs { job: id, farm, json } = &args.job;
    with(farm, async |client| {
        let mut failed = None;
        let watched = client
            .watch(id, args.after_revision, |event| {
                let said = if *json {
                    terminal::say_json(&show::event(event))
                } else {
                    terminal::say(&show::event_line(event))
                };
                match said {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })
            .await?;
        match (failed, watched) {
            (Some(error), _) => Err(error),
            (None, Watched::Over(job)) => Ok(outcome(&job)),
            (None, Watched::Left(_)) => {
                Err(Stop::Unavailable(format!("the farm went away: `fresco watch {id}`")).into())
            }
        }
    })
}

/// `fresco cancel`.
pub(crate) fn cancel(args: &JobArgs) -> anyhow::Result<Outcome> {
    let job = with(&args.farm, async |client| client.cancel(&args.job).await)?;
    show_one(&job, args.json)
}

/// `fresco retry`.
pub(crate) fn retry(args: &JobArgs) -> anyhow::Result<Outcome> {
    let job = with(&args.farm, async |client| client.retry(&args.job).await)?;
    show_one(&job, args.json)
}

/// `fresco delete`.
pub(crate) fn delete(args: &DeleteArgs) -> anyhow::Result<Outcome> {
    with(&args.farm, async |client| {
        for job in &args.jobs {
            client.delete(job).await?;
            terminal::say(job)?;
        }
        Ok(Outcome::Done)
    })
}

/// `fresco download`.
pub(crate) fn download(args: &DownloadArgs) -> anyhow::Result<Outcome> {
    let JobArgs { job: id, farm, json } = &args.job;
    with(farm, async |client| {
        let job = client.job(id).await?;
        let done: Vec<u32> =
            job.images.iter().filter(|image| image.artifact.is_some()).map(|image| image.index).collect();
        if done.is_empty() {
            let fault = format!("job {id} has no finished picture yet: `fresco wait {id}`");
            return Err(Stop::NotFound(fault).into());
        }
        for index in &done {
            let (artifact, bytes) = client.artifact(id, *index).await?;
            let name = name_of(args.out.as_deref(), id, &artifact, (job.images.len() > 1).then_some(*index));
            let target = Target::named(name, convert::artifact_kind(artifact.kind)?, args.force);
            let path = target.write(&bytes)?.display().to_string();
            if *json {
                let sha256 = &artifact.sha256;
                terminal::say_json(&serde_json::json!({"path": path, "image": index, "sha256": sha256}))?;
            } else {
                terminal::say(&terminal::printable(&path))?;
            }
        }
        let is_open = |image: &v1::Image| matches!(image.state(), State::Queued | State::Running);
        let n_open = job.images.iter().filter(|image| is_open(image)).count();
        if n_open > 0 {
            let n_images = job.images.len();
            terminal::note(&format!("{n_open} of {n_images} pictures are still to come: `fresco wait {id}`"));
        }
        Ok(if done.len() == job.images.len() { Outcome::Done } else { Outcome::JobPartlyFailed })
    })
}

fn name_of(out: Option<&Path>, id: &str, artifact: &v1::Artifact, index: Option<u32>) -> PathBuf {
    let is_tensors = artifact.kind() == v1::ArtifactKind::Safetensors;
    let default = format!("{id}.{}", if is_tensors { "safetensors" } else { "png" });
    let path = out.map_or_else(|| PathBuf::from(default), Path::to_owned);
    match index {
        Some(index) => crate::output::with_stem_end(&path, &format!("-{index}")),
        None => path,
    }
}
