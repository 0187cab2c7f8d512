//! `fresco render`: flags become requests, requests become files.
//!
//! Everything a user can get wrong is checked before the weights are read. Leaves out the mathematics
//! (`model`), names and writes (`output`), and bytes of files (`worker::image`).

use std::io::Read;
use std::time::Instant;

use anyhow::Context;
use model::{Progress, Rendered};
use plan::request::MAX_PROMPT_BYTES;
use plan::{ImageSize, RenderRequest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::args::{PictureArgs, RenderArgs};
use crate::engine::{Engine, Loaded};
use crate::exit::{Outcome, Stop};
use crate::interrupt;
use crate::latents::{Latents, hex};
use crate::output::Target;
use crate::preview::Preview;
use crate::progress::{Meter, cut_prompt};
use crate::terminal;
use worker::image;
use worker::metadata::Metadata;

mod split;

/// Renders all pictures the flags ask for.
pub(crate) fn run(args: RenderArgs) -> anyhow::Result<Outcome> {
    let mut began = Instant::now();
    check(&args)?;
    let engine = Engine::open(&args.picture.model, args.base.as_deref(), &args.threads)?;
    let size = args.picture.size.unwrap_or_else(|| engine.natural_size());
    let requests = requests(&args, size)?;
    let target =
        |request| Target::of(request, args.picture.count, args.out.as_deref(), args.force, args.picture.bit_depth);
    let targets = requests.iter().map(target).collect::<Result<Vec<_>, _>>()?;
    for target in &targets {
        target.check()?;
        Preview::new(args.preview_every, target)?;
    }
    if args.workers == 1 {
        engine.check_size(size)?;
    }
    let noise = args.latents.as_deref().map(|path| Latents::read(path, engine.latent(size))).transpose()?;
    if args.workers > 1 {
        return split::run(&args, &requests, &targets, noise);
    }
    interrupt::listen()?;

    let mut job = Job { args: &args, model: engine.load()?, noise, warnings: Vec::new() };
    for (idx, (request, target)) in requests.iter().zip(&targets).enumerate() {
        let label = if args.picture.count > 1 {
            format!("picture {} of {}, ", idx + 1, args.picture.count)
        } else {
            String::new()
        };
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
fn check(args: &RenderArgs) -> Result<(), Stop> {
    if args.workers > 1 && args.preview_every > 0 {
        let fault = format!("--preview-every is for one worker: leave it or --workers {} out", args.workers);
        return Err(Stop::Usage(fault));
    }
    if args.latents.is_some() && args.picture.count > 1 {
        let fault = "--latents gives the noise of one picture: leave --count out";
        return Err(Stop::Usage(fault.into()));
    }
    if args.picture.seed.checked_add(u64::from(args.picture.count - 1)).is_none() {
        let fault = format!(
            "--seed {} leaves no room for --count {}: take a smaller seed",
            args.picture.seed, args.picture.count
        );
        return Err(Stop::Usage(fault));
    }
    Ok(())
}

/// One request for each picture, of `size`.
fn requests(args: &RenderArgs, size: ImageSize) -> anyhow::Result<Vec<RenderRequest>> {
    let last = args.picture.seed + u64::from(args.picture.count - 1);
    let first = request(&args.picture, size)?;
    Ok((args.picture.seed..=last).map(|seed| RenderRequest { seed, ..first.clone() }).collect())
}

/// The request of the first picture, of `size`.
pub(crate) fn request(args: &PictureArgs, size: ImageSize) -> anyhow::Result<RenderRequest> {
    let prompt = if args.prompt == "-" { standard_input()? } else { args.prompt.clone() };
    let request = RenderRequest {
        prompt,
        negative: args.negative.clone(),
        size,
        steps: args.steps,
        guidance: args.guidance,
        seed: args.seed,
        clean: args.clean.into(),
    };
    request.check()?;
    Ok(request)
}

fn standard_input() -> anyhow::Result<String> {
    let mut prompt = String::new();
    let most = MAX_PROMPT_BYTES as u64 + 1;
    std::io::stdin().take(most).read_to_string(&mut prompt).context("read the prompt from standard input")?;
    if prompt.len() as u64 == most {
        let fault = format!("the prompt on standard input is longer than {MAX_PROMPT_BYTES} bytes: shorten it");
        return Err(Stop::Usage(fault).into());
    }
    // The line's end belongs to the line, not to the prompt.
    let line = prompt.strip_suffix('\n').unwrap_or(&prompt);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// The pictures of one command.
struct Job<'a> {
    args: &'a RenderArgs,
    model: Loaded,
    noise: Option<Latents>,
    /// Said so far: all pictures have the same prompt, which is cut once.
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
        interrupt::check()?;
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
                Progress::Encoded | Progress::Decode { .. } => {}
            }
            if let Some(fault) = preview.as_mut().and_then(|preview| preview.show(&progress, model)) {
                if interrupt::flow().is_continue() {
                    warn(meter, fault);
                }
                preview = None;
            }
            meter.skip();
            interrupt::flow()
        };
        let noise = noise.as_ref().map(|noise| &noise.tensor);
        match model.render(request, noise, &mut watch) {
            // Whatever went wrong meanwhile, the user asked for the end.
            Err(_) if interrupt::flow().is_break() => Err(Stop::Interrupted.into()),
            rendered => rendered,
        }
    }
}
