//! `fresco bench step`: a picture's steps and its decode on random weights, stage by stage.
//!
//! Leaves out what is measured and how.

use clap::Args;
use plan::{Footprint, ImageSize, ModelSpec, Share, TextSpec, VaeSpec};

use super::{OnArgs, decoder, mib, on_threads, roofline};
use crate::device;
use crate::exit::Stop;
use crate::measure::scale::decode;
use crate::measure::step::{self, Stage, Stages, Work};
use crate::terminal;

/// Flags of `bench step`; the defaults are PixArt-Σ XL/2 and SDXL's decoder.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco bench step --size 4096x4096 --kv-ratio 2 --steps 20 --decode --device cuda:0
  fresco bench step --size 256x256 --blocks 2")]
pub(crate) struct StepArgs {
    /// Width and height of the picture in pixels
    #[arg(long, value_name = "WxH", default_value = "512x512")]
    pub(crate) size: ImageSize,

    /// Steps, of both branches each; the first is not in the median
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) steps: u32,

    /// Compression of keys and values on each side in the second half of the blocks; 1 is none
    #[arg(long, value_name = "R", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) kv_ratio: u32,

    /// Transformer blocks
    #[arg(long, value_name = "N", default_value = "28", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) blocks: u32,

    /// Attention heads, 72 channels wide each
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) heads: u32,

    /// Decode the picture, too
    #[arg(long)]
    pub(crate) decode: bool,

    /// Channels of each level of the decoder, finest first
    #[arg(long, value_name = "N,N,N,N", default_value = "128,256,512,512", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) widths: Vec<u32>,

    #[command(flatten)]
    pub(crate) on: OnArgs,
}

/// Draws one picture and prints what each stage took.
pub(super) fn run(args: &StepArgs) -> anyhow::Result<()> {
    let dit = step::transformer(args.blocks as usize, args.heads as usize, args.kv_ratio as usize);
    let vae: Option<VaeSpec> = args.decode.then(|| decoder(&args.widths)).transpose()?;
    let what = format!(
        "step of {} blocks of {} channels at {}, R = {}, both branches",
        args.blocks,
        dit.width(),
        args.size,
        args.kv_ratio
    );
    let work = Work { size: args.size, steps: args.steps as usize, dit, vae };
    let (kept, ratio) = (args.size.latent(8).tokens().compressed(args.kv_ratio as usize), args.kv_ratio);
    if kept.rows == 0 || kept.cols == 0 {
        return Err(Stop::Usage(format!("{} is too small for R = {ratio}: no keys would be left", args.size)).into());
    }
    let place = device::place(args.on.device)?;
    let (stages, limits) = on_threads(&args.on, || {
        let stages = step::measure(&place, &work)?;
        Ok((stages, roofline(&place, &args.on)?))
    })?;
    let Stages { captions, steps, decode } = &stages;
    let counted = counted(&work, place.value_bytes());
    if args.on.json {
        let stage = |stage: &Stage, counted_bytes: u128| {
            serde_json::json!({
                "seconds": stage.seconds, "median_seconds": stage.median(), "peak_bytes": stage.peak_bytes,
                "counted_bytes": counted_bytes as u64,
                "gflops": (stage.flop > 0.0).then(|| stage.flop / stage.median() / 1e9),
            })
        };
        return terminal::say_json(&serde_json::json!({
            "what": what, "threads": args.on.threads, "captions": stage(captions, counted.captions_bytes),
            "steps": stage(steps, counted.dit_bytes),
            "decode": decode.as_ref().map(|decode| stage(decode, counted.vae_bytes)), "numeric_class": place.numeric_class(),
        }));
    }
    let n = steps.seconds.len();
    terminal::say(&format!("captions: {:.4} s", captions.seconds.iter().sum::<f64>()))?;
    terminal::say(&format!(
        "{}, median of {} behind the first ({:.4} s)",
        told(&what, steps, counted.dit_bytes),
        n - 1,
        steps.seconds[0]
    ))?;
    if let Some(limits) = &limits {
        terminal::say(&limits.share(steps.flop, steps.median()))?;
    }
    if let Some(decode) = decode {
        terminal::say(&told(&format!("decode of {}", args.size), decode, counted.vae_bytes))?;
        if let Some(limits) = &limits {
            terminal::say(&limits.share(decode.flop, decode.median()))?;
        }
    }
    let all = [Some(captions), Some(steps), decode.as_ref()].into_iter().flatten();
    let seconds: f64 = all.flat_map(|stage| &stage.seconds).sum();
    terminal::say(&format!("all of it, {n} steps: {seconds:.2} s"))
}

/// What is counted before such a picture is begun, on one rank.
fn counted(work: &Work, value_bytes: u64) -> Footprint {
    let vae = work.vae.clone().unwrap_or_else(decode::vae);
    let spec = ModelSpec { dit: work.dit.clone(), ..xl_with(vae) };
    Footprint::of(&spec, work.size, Share::whole(&spec, work.size), value_bytes)
}

/// PixArt-Σ XL/2 and T5-XXL with a decoder.
pub(super) fn xl_with(vae: VaeSpec) -> ModelSpec {
    let text = TextSpec { width: 4096, depth: 24, vocabulary: 32_128 };
    ModelSpec { dit: step::transformer(28, 16, 1), vae, text }
}

fn told(what: &str, stage: &Stage, counted_bytes: u128) -> String {
    let seconds = stage.median();
    let most = stage.peak_bytes.map(|bytes| {
        let counted = mib(u64::try_from(counted_bytes).unwrap_or(u64::MAX));
        format!(", at most {} MiB beside the weights where {counted} are counted", mib(bytes))
    });
    format!("{what}: {seconds:.4} s, {:.0} GFLOP/s{}", stage.flop / seconds / 1e9, most.unwrap_or_default())
}
