//! `render --workers N`: the same pictures through a farm of this process's own.

use std::ops::ControlFlow;
use std::time::Instant;

use plan::RenderRequest;
use serde_json::json;
use wire::convert;
use worker::Noise;

use crate::args::RenderArgs;
use crate::client::{Client, Watched};
use crate::engine::n_threads;
use crate::exit::{Outcome, Stop};
use crate::farm::PrivateFarm;
use crate::latents::Latents;
use crate::output::Target;
use crate::progress::StepBar;
use crate::{models, terminal};

/// Renders each request into its target, from `noise` if it is given; `warnings` have been said.
pub(super) fn run(
    args: &RenderArgs,
    requests: &[RenderRequest],
    targets: &[Target],
    noise: Option<Latents>,
    warnings: &[String],
) -> anyhow::Result<Outcome> {
    let dir = models::find(&args.picture.model)?;
    let base = args.base.as_deref().map(models::find).transpose()?;
    let noise = noise.map(|Latents { tensor, sha256 }| Noise { tensor, sha256 });
    let farm = PrivateFarm::start(&dir, base.as_deref(), (args.workers, n_threads(&args.threads)), noise)?;
    farm.runtime().block_on(async {
        let mut client = Client::connect(&farm.url()).await?;
        let name = model::ModelFolder::open(&dir, base.as_deref()).map(|folder| folder.name().to_owned());
        let name = name.map_err(|error| anyhow::anyhow!("{error}"))?;
        for (request, target) in requests.iter().zip(targets) {
            let began = Instant::now();
            let spec = convert::spec_of(request, &name, 1, target.kind);
            let job = client.submit(spec, String::new()).await?;
            let mut bar = StepBar::start(request.steps);
            let mut epochs = std::collections::BTreeSet::new();
            let watched = client
                .watch(&job.id, 0, |event| {
                    if let Some(image) = &event.image {
                        bar.show(image.step);
                        epochs.extend((image.epoch > 0).then_some(image.epoch));
                    }
                    ControlFlow::Continue(())
                })
                .await?;
            drop(bar);
            match watched {
                Watched::Left => return Err(Stop::Unavailable("the coordinator went away".into()).into()),
                Watched::Over(job) => {
                    let image = job.images.first().cloned().unwrap_or_default();
                    if image.artifact.is_none() {
                        anyhow::bail!("{}", image.message);
                    }
                    let (artifact, bytes) = client.artifact(&job.id, 0).await?;
                    let path = target.write(&bytes)?.display().to_string();
                    let seconds = began.elapsed().as_secs_f64();
                    if args.json {
                        terminal::say_json(&json!({
                            "path": path,
                            "sha256": artifact.sha256,
                            "seed": request.seed,
                            "size": request.size.to_string(),
                            "steps": request.steps,
                            "guidance": request.guidance,
                            "seconds": seconds,
                            "workers": args.workers,
                            "attempts": epochs.len(),
                            "warnings": warnings,
                        }))?;
                    } else {
                        let (size, steps, seed) = (request.size, request.steps, request.seed);
                        let workers = args.workers;
                        let path = terminal::printable(&path);
                        terminal::say(&format!(
                            "{path}: {size}, {steps} steps, seed {seed}, {workers} workers, in {seconds:.2} s"
                        ))?;
                    }
                }
            }
        }
        Ok(Outcome::Done)
    })
}
