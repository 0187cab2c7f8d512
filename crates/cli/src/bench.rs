//! `fresco bench`: measures parts of the work on this machine.
//!
//! Leaves out comparisons with other programs, which live in `benches/compare`.

mod link;
mod scale;
mod step;

use anyhow::Context;
use clap::{Args, Subcommand};
use model::Place;
use plan::{ImageSize, VaeSpec};

use crate::device::{self, DeviceName};
use crate::exit::Stop;
use crate::measure::roofline::Roofline;
use crate::measure::{self, Measurement};
use crate::terminal;

/// Flags of `bench`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco bench device
  fresco bench block --tokens 4096 --threads 2
  fresco bench vae --size 1024x1024 --json
  fresco bench step --size 256x256 --blocks 4 --decode
  fresco bench scale --runs 9
  fresco bench link --bytes 1048576,67108864
  fresco bench attention --queries 4096 --keys 1024
  fresco bench block --tokens 65536 --kv-ratio 2 --device cuda:0")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// This machine: instruction set, arithmetic and memory speed
    Device(RunArgs),
    /// One transformer block
    Block(BlockArgs),
    /// The picture decoder
    Vae(VaeArgs),
    /// Attention alone
    Attention(AttentionArgs),
    /// All of a picture but its text, on random weights
    Step(step::StepArgs),
    /// Two workers of one thread against one, over loopback gRPC: blocks, then the decode
    Scale(scale::ScaleArgs),
    /// Two ranks in two processes: tensors one way and both ways, empty exchanges
    Link(link::LinkArgs),
}

/// How often and on what.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How many runs; the median is reported
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,

    #[command(flatten)]
    pub(crate) on: OnArgs,
}

/// On what, and how it is told.
#[derive(Debug, Args)]
pub(crate) struct OnArgs {
    /// How many cores work
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: u32,

    /// What computes: cpu, or cuda:N for the Nth NVIDIA GPU, in bf16
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: DeviceName,

    /// Measure also what the device does at most, and print the share of it
    #[arg(long, conflicts_with = "json")]
    pub(crate) roofline: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `bench block`; the defaults are those of PixArt-Σ XL/2.
#[derive(Debug, Args)]
pub(crate) struct BlockArgs {
    /// Tokens of the picture, a square number
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) tokens: u32,

    /// Channels of a token
    #[arg(long, value_name = "N", default_value = "1152", value_parser = clap::value_parser!(u32).range(4..=1 << 16))]
    pub(crate) width: u32,

    /// Attention heads
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) heads: u32,

    /// Compression of keys and values on each side; 1 is none
    #[arg(long, value_name = "R", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(crate) kv_ratio: u32,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Flags of `bench vae`; the default widths are those of SDXL's decoder.
#[derive(Debug, Args)]
pub(crate) struct VaeArgs {
    /// Width and height of the picture in pixels
    #[arg(long, value_name = "WxH", default_value = "512x512")]
    pub(crate) size: ImageSize,

    /// Channels of each level, finest first
    #[arg(long, value_name = "N,N,N,N", default_value = "128,256,512,512", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub(crate) widths: Vec<u32>,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Flags of `bench attention`.
#[derive(Debug, Args)]
pub(crate) struct AttentionArgs {
    /// Queries
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) queries: u32,

    /// Keys
    #[arg(long, value_name = "N", default_value = "4096", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) keys: u32,

    /// Attention heads
    #[arg(long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) heads: u32,

    /// Channels of one head
    #[arg(long, value_name = "N", default_value = "72", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) head_width: u32,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Runs one measurement and prints it.
pub(crate) fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Device(args) => machine(&args),
        BenchCommand::Block(args) => {
            if !args.width.is_multiple_of(args.heads) || !args.width.is_multiple_of(4) {
                let (width, heads) = (args.width, args.heads);
                return Err(Stop::Usage(format!("width {width} is not a multiple of 4 and of {heads} heads")).into());
            }
            let head_width = (args.width / args.heads) as usize;
            let what = format!("block of {} channels, {} tokens, R = {}", args.width, args.tokens, args.kv_ratio);
            measure_and_show(&args.run, &what, |place, runs| {
                measure::block(
                    place,
                    args.tokens as usize,
                    args.heads as usize,
                    head_width,
                    args.kv_ratio as usize,
                    runs,
                )
            })
        }
        BenchCommand::Vae(args) => {
            let spec = decoder(&args.widths)?;
            let what = format!("decode of {} with widths {:?}", args.size, spec.widths);
            measure_and_show(&args.run, &what, |place, runs| measure::decode(place, args.size, &spec, runs))
        }
        BenchCommand::Scale(args) => scale::run(&args),
        BenchCommand::Link(args) => link::run(&args),
        BenchCommand::Step(args) => step::run(&args),
        BenchCommand::Attention(args) => {
            let [queries, keys, heads, width] =
                [args.queries, args.keys, args.heads, args.head_width].map(|value| value as usize);
            let what = format!("attention of {queries} queries over {keys} keys, {heads} heads of {width}");
            measure_and_show(&args.run, &what, |place, runs| {
                measure::attention(place, queries, keys, heads, width, runs)
            })
        }
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// SDXL's decoder with these widths; narrower ones have as many groups as their narrowest level allows.
fn decoder(widths: &[u32]) -> anyhow::Result<VaeSpec> {
    if widths.len() != 4 {
        return Err(Stop::Usage(format!("widths: {} are given, four levels are needed", widths.len())).into());
    }
    let widths: Vec<usize> = widths.iter().map(|&width| width as usize).collect();
    let groups = widths.iter().fold(32, |groups, &width| gcd(groups, width));
    Ok(VaeSpec::sdxl_family(&widths, 2, groups))
}

/// Runs `f` with the asked number of threads. For a GPU that is all there are: they make random values and nothing else.
fn on_threads<R: Send>(on: &OnArgs, f: impl FnOnce() -> anyhow::Result<R> + Send) -> anyhow::Result<R> {
    let threads = if on.device == DeviceName::Cpu { on.threads as usize } else { 0 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().context("start threads")?;
    pool.install(f)
}

/// The device's limits, if they are asked for.
fn roofline(place: &Place, on: &OnArgs) -> anyhow::Result<Option<Roofline>> {
    on.roofline.then(|| Roofline::of(place)).transpose()
}

impl Roofline {
    /// What share of them `flop` operations in `seconds` reach.
    fn share(&self, flop: f64, seconds: f64) -> String {
        let (tera, most) = (flop / seconds / 1e12, self.flop_per_s / 1e12);
        format!(
            "roofline: {tera:.2} of {most:.2} TFLOP/s, {:.0} %; copies at {:.0} GB/s",
            100.0 * tera / most,
            self.bytes_per_s / 1e9
        )
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn measure_and_show(
    run: &RunArgs,
    what: &str,
    measure: impl FnOnce(&Place, usize) -> anyhow::Result<Measurement> + Send,
) -> anyhow::Result<()> {
    let (runs, threads) = (run.runs, run.on.threads);
    let place = device::place(run.on.device)?;
    let (measured, limits) = on_threads(&run.on, || {
        let measured = measure(&place, runs as usize)?;
        Ok((measured, roofline(&place, &run.on)?))
    })?;
    let (seconds, gflops) = (measured.median(), measured.flop / measured.median() / 1e9);
    if run.on.json {
        return terminal::say_json(&serde_json::json!({
            "what": what, "threads": threads, "seconds": seconds, "runs": measured.seconds,
            "gflops": (measured.flop > 0.0).then_some(gflops), "peak_bytes": measured.peak_bytes,
            "numeric_class": place.numeric_class(),
        }));
    }
    let on = if place.device().is_cpu() { format!("{threads} threads") } else { "the GPU".into() };
    let mut line = format!("{what}: {seconds:.4} s on {on}, median of {runs}");
    if measured.flop > 0.0 {
        line += &format!(", {gflops:.0} GFLOP/s");
    }
    if let Some(bytes) = measured.peak_bytes {
        line += &format!(", at most {} MiB beside what it is given", mib(bytes));
    }
    terminal::say(&line)?;
    limits.map_or(Ok(()), |limits| terminal::say(&limits.share(measured.flop, seconds)))
}

/// What the planner needs to know of this machine.
fn machine(run: &RunArgs) -> anyhow::Result<()> {
    let runs = run.runs as usize;
    let place = device::place(run.on.device)?;
    // Enough to fill what computes.
    let (rows, copy_bytes) = if place.device().is_cpu() { (1024, 256 << 20) } else { (1 << 16, 1 << 30) };
    let (linear, attention, copy, limits) = on_threads(&run.on, || {
        let linear = measure::linear(&place, rows, 1152, 1152, runs)?;
        let attention = measure::attention(&place, rows, 4096, 16, 72, runs)?;
        Ok((linear, attention, measure::copy(&place, copy_bytes, runs)?, roofline(&place, &run.on)?))
    })?;
    let gflops = |measured: &Measurement| measured.flop / measured.median() / 1e9;
    // Every byte is read once and written once.
    let bandwidth = 2.0 * copy_bytes as f64 / copy.median() / 1e9;
    if run.on.json {
        return terminal::say_json(&serde_json::json!({
            "isa": kernels::isa().to_string(), "numeric_class": place.numeric_class(), "threads": run.on.threads,
            "linear_gflops": gflops(&linear), "attention_gflops": gflops(&attention), "memory_gb_per_s": bandwidth,
        }));
    }
    terminal::say(&format!("instruction set: {}, numeric class {}", kernels::isa(), place.numeric_class()))?;
    terminal::say(&format!("linear layers:   {:.0} GFLOP/s on {} threads", gflops(&linear), run.on.threads))?;
    terminal::say(&format!("attention:       {:.0} GFLOP/s", gflops(&attention)))?;
    terminal::say(&format!("memory:          {bandwidth:.1} GB/s"))?;
    limits.map_or(Ok(()), |limits| terminal::say(&limits.share(linear.flop, linear.median())))
}
