//! `fresco submit`: flags become jobs, one a prompt.

use std::path::Path;

use plan::ImageSize;
use wire::convert;
use wire::v1::{Job, State};

use super::{Client, outcome, show, until_over, with};
use crate::args::{Seed, SubmitArgs};
use crate::exit::{Outcome, Stop};
use crate::render::{Prompts, far_from_natural};
use crate::{engine, interrupt, terminal};

/// Hands the jobs to the farm, and waits for them if it is told to.
pub(crate) fn submit(args: &SubmitArgs) -> anyhow::Result<Outcome> {
    let prompts = Prompts::read(&args.picture)?;
    if !args.request_id.is_empty() {
        check_repeatable(args, &prompts)?;
    }
    let (model, size) = model_and_size(&args.picture.model, args.picture.size)?;
    let requests = prompts.requests(&args.picture, size)?;
    prompts.warnings(&args.picture.negative).iter().for_each(|warning| terminal::warning(warning));
    let kind = args.picture.bit_depth.into();
    with(&args.farm, async |client| {
        let mut ids = Vec::new();
        for request in &requests {
            let spec = convert::spec_of(request, &model, args.picture.count, kind);
            let job = if args.wait {
                let given = Some(&args.request_id).filter(|id| !id.is_empty());
                client.submit_patiently(spec, given.cloned().unwrap_or_else(fresh_id)).await?
            } else {
                client.submit(spec, args.request_id.clone()).await?
            };
            tell(args, &job)?;
            ids.push(job.id);
        }
        if args.picture.seed == Seed::Random
            && let Some(request) = requests.first()
        {
            terminal::note(&format!("seed {}", request.seed));
        }
        if args.wait { wait_for(client, &ids, args.json).await } else { Ok(Outcome::Done) }
    })
}

/// A request id nobody else uses, so that a job may be asked for twice and is made once.
fn fresh_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Refuses what is not the same job when it is submitted again.
fn check_repeatable(args: &SubmitArgs, prompts: &Prompts) -> Result<(), Stop> {
    if args.picture.seed == Seed::Random {
        return Err(Stop::Usage("--request-id stands for one request: give a --seed that is not random".into()));
    }
    if prompts.texts.len() > 1 {
        return Err(Stop::Usage("--request-id stands for one job, and each prompt is one: leave it out".into()));
    }
    Ok(())
}

/// Tells a job's id, and what it waits for if nobody can begin it.
fn tell(args: &SubmitArgs, job: &Job) -> anyhow::Result<()> {
    match (args.json, args.wait) {
        (false, _) => terminal::say(&job.id)?,
        (true, false) => terminal::say_json(&show::job(job))?,
        (true, true) => {}
    }
    if !args.wait
        && let Some(first) = job.images.first().filter(|image| image.state() == State::Queued)
        && !first.message.is_empty()
    {
        terminal::hint(&format!("job {} {}", job.id, first.message));
    }
    Ok(())
}

async fn wait_for(client: &mut Client, ids: &[String], json: bool) -> anyhow::Result<Outcome> {
    let mut ended = Outcome::Done;
    for id in ids {
        interrupt::listen(format!("job {id} goes on: `fresco wait {id}`"))?;
        let job = until_over(client, id).await?;
        // Standard output has the ids alone, for scripts.
        if json {
            terminal::say_json(&show::job(&job))?
        } else {
            terminal::note(&show::line(&job))
        }
        if ended == Outcome::Done {
            ended = outcome(&job);
        }
    }
    Ok(ended)
}

/// What the farm calls the model, and the size to render: the asked one, or the one the folder here names.
fn model_and_size(model: &str, asked: Option<ImageSize>) -> anyhow::Result<(String, ImageSize)> {
    match (engine::open_folder(model, None), asked) {
        (Ok((_, folder)), asked) => {
            let size = asked.unwrap_or_else(|| folder.natural_size());
            if let Some(hint) = far_from_natural(size, folder.natural_size()) {
                terminal::hint(&hint);
            }
            Ok((folder.name().to_owned(), size))
        }
        (Err(_), Some(size)) => Ok((name_of(model)?, size)),
        (Err(_), None) => {
            let fault = format!("model `{model}` is not on this machine, which could tell its size: give --size");
            Err(Stop::Usage(fault).into())
        }
    }
}

/// The name of a model that is not here: workers call it after its folder.
fn name_of(model: &str) -> Result<String, Stop> {
    let name = Path::new(model).file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| Stop::Usage(format!("--model `{model}` names no model: give its name")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_elsewhere_is_called_after_its_folder() {
        let name = |model| name_of(model).ok();
        for model in ["demo", "./demo", "demo/", "/models/demo/", "../demo/."] {
            assert_eq!(name(model).as_deref(), Some("demo"), "{model}");
        }
        for model in ["", ".", "..", "/"] {
            assert_eq!(name(model), None, "{model}");
        }
    }
}
