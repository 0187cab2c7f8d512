//! The commands of a farm's clients: `submit`, `wait`, `get`, `list`, `watch`, `cancel`, `retry`, `delete`,
//! `download`, `gc`, and `worker drain`.
//!
//! The longer ones have files of their own. The connection and the errors of calls are in `client/call.rs`, lines and JSON
//! of jobs in `client/show.rs`.

mod away;
mod call;
mod download;
mod gc;
mod show;
mod submit;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Duration;

use wire::v1;
use wire::v1::State;

pub(crate) use call::{Client, Watched};
pub(crate) use download::download;
pub(crate) use gc::gc;
pub(crate) use submit::submit;

use crate::args::{DeleteArgs, DrainArgs, Farm, JobArgs, ListArgs, WatchArgs};
use crate::exit::{Outcome, Stop};
use crate::{farm, interrupt, terminal};

/// Runs one call, or a few, against a farm.
fn with<T>(farm: &Farm, calls: impl AsyncFnOnce(&mut Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    interrupt::listen("what the farm has taken in goes on")?;
    farm::runtime()?.block_on(async { calls(&mut Client::connect(&farm.coordinator).await?).await })
}

/// `fresco wait`.
pub(crate) fn wait(args: &JobArgs) -> anyhow::Result<Outcome> {
    with(&args.farm, async |client| {
        let job = until_over(client, &args.job).await?;
        if args.json {
            terminal::say_json(&show::job(&job))?
        } else {
            terminal::say(&show::line(&job))?
        }
        Ok(outcome(&job))
    })
}

/// Waits until a job is over, and tells on standard error what keeps it.
async fn until_over(client: &mut Client, id: &str) -> anyhow::Result<v1::Job> {
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
    match watched.await? {
        Watched::Over(job) => Ok(*job),
        Watched::Left => Err(Stop::Unavailable(format!("the farm went away while job {id} went on")).into()),
    }
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
            (None, Watched::Left) => Err(Stop::Unavailable(format!("the farm went away: `fresco watch {id}`")).into()),
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
