//! `fresco render`: flags become requests, requests become files.
//!
//! Everything a user can get wrong is checked before the weights are read. Leaves out the mathematics
//! (`model`), prompts (`render/prompt.rs`), names and writes (`output`), and bytes of files (`worker::image`).

use std::ops::ControlFlow;
use std::time::Instant;

use model::{Progress, Rendered};
use plan::{ImageSize, RenderRequest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::args::{PictureArgs, RenderArgs};
use crate::engine::{Engine, Loaded};
use crate::exit::{Outcome, Stop};
use crate::interrupt;
use crate::latents::{Latents, hex};
use crate::output::{self, Out, Target};
use crate::preview::Preview;
use crate::progress::{Meter, cut_prompt};
use crate::terminal;
use worker::image;
use worker::metadata::Metadata;

mod prompt;
mod split;

pub(crate) use prompt::Prompts;

/// Renders all pictures the flags ask for.
pub(crate) fn run(args: RenderArgs) -> anyhow::Result<Outcome> {
    let mut began = Instant::now();
    interrupt::listen("the picture at work was not written")?;
    let prompts = Prompts::read(&args.picture)?;
    let out = Out::read(args.out.as_deref())?;
    check(&args, out, prompts.texts.len())?;
    let engine = Engine::open(&args.picture.model, args.base.as_deref(), &args.threads)?;
    let size = args.picture.size.unwrap_or_else(|| engine.natural_size());
    let requests = requests(&args.picture, &prompts, size)?;
    let is_numbered = args.picture.count > 1;
    let target = |request| Target::of_request(request, out, is_numbered, args.picture.bit_depth, args.force);
    let mut targets: Vec<Target> = requests.iter().map(target).collect();
    output::keep_apart(&mut targets);
    output::check(&targets)?;
    for target in &targets {
        Preview::new(args.preview_every, target)?;
    }
    if args.workers == 1 {
        engine.check_size(size)?;
    }
    let noise = args.latents.as_deref().map(|path| Latents::read(path, engine.latent(size))).transpose()?;
    let warnings = prompts.warnings(&args.picture.negative);
    warnings.iter().for_each(|warning| terminal::warning(warning));
    if let Some(hint) = far_from_natural(size, engine.natural_size()) {
        terminal::hint(&hint);
    }
    if args.workers > 1 {
        return split::run(&args, &requests, &targets, noise, &warnings);
    }

    let mut job = Job { args: &args, model: engine.load()?, noise, warnings };
    for (idx, (request, target)) in requests.iter().zip(&targets).enumerate() {
        let label =
            if requests.len() > 1 { format!("picture {} of {}, ", idx + 1, requests.len()) } else { String::new() };
        let report = job.picture(request, target, label, began)?;
        if args.json {
            terminal::say_json(&report.json)?;
        } else {
            terminal::say(&report.line)?;
        }
        began = Instant::now();
    }
    Ok(Outcome::Done)
}

/// Refuses flags that cannot go together.
fn check(args: &RenderArgs, out: Out<'_>, n_prompts: usize) -> Result<(), Stop> {
    if let (Out::File { path, .. }, 2..) = (out, n_prompts) {
        let fault = format!("--out {}: several prompts need a folder, which must exist", path.display());
        return Err(Stop::Usage(fault));
    }
    if args.workers > 1 && args.preview_every > 0 {
        let fault = format!("--preview-every is for one worker: leave it or --workers {} out", args.workers);
        return Err(Stop::Usage(fault));
    }
    if args.latents.is_some() && (args.picture.count > 1 || n_prompts > 1) {
        let fault = "--latents gives the noise of one picture: leave --count and --prompts out";
        return Err(Stop::Usage(fault.into()));
    }
    Ok(())
}

/// One request for each picture, of `size`: all seeds of the first prompt, then those of the next.
fn requests(args: &PictureArgs, prompts: &Prompts, size: ImageSize) -> anyhow::Result<Vec<RenderRequest>> {
    let mut requests = Vec::new();
    for first in prompts.requests(args, size)? {
        let last = first.seed + u64::from(args.count - 1);
        requests.extend((first.seed..=last).map(|seed| RenderRequest { seed, ..first.clone() }));
    }
    Ok(requests)
}

/// What to know about a size with more than four times the pixels of the model's own, or less than a quarter.
pub(crate) fn far_from_natural(size: ImageSize, natural: ImageSize) -> Option<String> {
    let n_pixels = |size: ImageSize| u64::from(size.width_px) * u64::from(size.height_px);
    let (asked, own) = (n_pixels(size), n_pixels(natural));
    let is_far = asked > 4 * own || own > 4 * asked;
    is_far
        .then(|| format!("{size} is far from {natural}, which this model draws best: shapes may be repeated or ragged"))
}

/// The pictures of one command.
struct Job<'a> {
    args: &'a RenderArgs,
    model: Loaded,
    noise: Option<Latents>,
    /// Said so far, each once.
    warnings: Vec<String>,
}

/// What is said about a finished picture.
struct Report {
    line: String,
    json: Value,
}

impl Job<'_> {
    /// Renders one picture and writes it. `began`: when the work on it did.
    fn picture(
        &mut self,
        request: &RenderRequest,
        target: &Target,
        label: String,
        began: Instant,
    ) -> anyhow::Result<Report> {
        let mut meter = Meter::start(label, request.steps);
        let rendered = self.render(request, target, &mut meter)?;
        let model = self.model.model_id()?;
        let latents = self.noise.as_ref().map(|noise| noise.sha256.clone());
        let metadata = Metadata::of(request, image::bit_depth(target.kind), model, latents);
        let bytes = image::encode(&rendered, target.kind, &metadata)?;
        let path = target.write(&bytes)?;

        let (seconds, path) = (began.elapsed().as_secs_f64(), path.display().to_string());
        let line = format!(
            "{}: {}, {} steps, seed {}, in {seconds:.2} s ({:.3} s per step)",
            terminal::printable(&path),
            request.size,
            request.steps,
            request.seed,
            meter.seconds_per_step()
        );
        let json = json!({
            "path": path,
            "sha256": hex(&Sha256::digest(&bytes)),
            "seed": request.seed,
            "size": request.size.to_string(),
            "steps": request.steps,
            "guidance": request.guidance,
            "seconds": seconds,
            "first_step_seconds": meter.first_step_seconds(began),
            "seconds_per_step": meter.seconds_per_step(),
            "decode_seconds": meter.decode_seconds(),
            "model": metadata.model,
            "numeric_class": metadata.numeric_class,
            "warnings": self.warnings,
        });
        Ok(Report { line, json })
    }

    fn render(&mut self, request: &RenderRequest, target: &Target, meter: &mut Meter) -> anyhow::Result<Rendered> {
        let mut preview = Preview::new(self.args.preview_every, target)?;
        let Self { model, warnings, noise, .. } = self;
        let mut warn = |meter: &Meter, line: String| {
            if !warnings.contains(&line) {
                meter.aside(|| terminal::warning(&line));
                warnings.push(line);
            }
        };
        let mut watch = |progress: Progress<'_>| {
            meter.show(&progress);
            match &progress {
                Progress::PromptCut { which, n_tokens, cut_text } => {
                    warn(meter, cut_prompt(which, *n_tokens, cut_text));
                }
                Progress::Step { step, steps, .. } => tracing::debug!(step = step + 1, steps, "step done"),
                Progress::Encoding | Progress::Encoded | Progress::Decode { .. } => {}
            }
            if let Some(fault) = preview.as_mut().and_then(|preview| preview.show(&progress, model)) {
                warn(meter, fault);
                preview = None;
            }
            meter.skip();
            ControlFlow::Continue(())
        };
        let noise = noise.as_ref().map(|noise| &noise.tensor);
        model.render(request, noise, &mut watch)
    }
}
