//! `fresco bench scale`: two workers of one thread against one, over loopback gRPC, and the memory of a decode.
//!
//! Leaves out what is measured and how.

use clap::Args;
use plan::{Footprint, ImageSize, Share};

use crate::measure::scale::memory::{self, Part, Peaks};
use crate::measure::scale::{Scale, blocks, decode};
use crate::terminal;

/// Flags of `bench scale`; the defaults are XL/2's width and SDXL's decoder.
#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Transformer blocks
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) blocks: u32,

    /// Tokens of the picture, a square number
    #[arg(long, value_name = "N", default_value = "1024", value_parser = clap::value_parser!(u32).range(4..=1 << 20))]
    pub(crate) tokens: u32,

    /// Picture to decode
    #[arg(long, value_name = "WxH", default_value = "512x512")]
    pub(crate) size: ImageSize,

    /// How many runs of each, in turn; medians are reported
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,

    /// Be a worker whose memory is measured
    #[arg(long, hide = true)]
    pub(crate) decode_part: Option<Part>,

    /// Print one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measures strong scaling, or is one of the workers that are measured.
pub(crate) fn run(args: &ScaleArgs) -> anyhow::Result<()> {
    if let Some(part) = args.decode_part {
        return memory::run(args.size, part);
    }
    let runs = args.runs as usize;
    for scale in blocks::measure(args.blocks as usize, args.tokens as usize, runs)? {
        show(&scale, args.json)?;
    }
    for scale in decode::measure(args.size, runs)? {
        show(&scale, args.json)?;
    }
    show_memory(&memory::measure(args.size)?, args)
}

fn show(scale: &Scale, as_json: bool) -> anyhow::Result<()> {
    let (what, one, two) = (&scale.what, median(&scale.one), median(&scale.two));
    let gain = one / two * scale.n_copies as f64;
    if as_json {
        return terminal::say_json(&serde_json::json!({
            "what": what, "one_worker_seconds": scale.one, "two_workers_seconds": scale.two,
            "speedup": gain, "wait_share": scale.wait_share, "numeric_class": model::numeric_class(),
        }));
    }
    let waiting = scale.wait_share.map(|share| format!(", {:.1} % of it waiting", 100.0 * share));
    let waiting = waiting.unwrap_or_default();
    terminal::say(&format!("{what}: one worker {one:.3} s, two {two:.3} s, {gain:.2}x{waiting}; equal bytes"))
}

fn show_memory(peaks: &Peaks, args: &ScaleArgs) -> anyhow::Result<()> {
    let what = format!("peak memory of a decode of {}", args.size);
    let [counted_one, counted_two] = counted(args.size);
    let (beside, all) = (peaks.share(memory::Peak::beside_weights), peaks.share(|peak| peak.peak_bytes));
    if args.json {
        return terminal::say_json(&serde_json::json!({
            "what": what, "one_worker": peaks.one, "two_workers": peaks.two,
            "share_beside_weights": beside, "share_with_weights": all,
            "counted_of_one_bytes": counted_one as u64, "counted_of_each_of_two_bytes": counted_two as u64,
        }));
    }
    let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
    let most = |bytes: fn(&memory::Peak) -> u64| mib(peaks.two.iter().map(bytes).max().unwrap_or(0));
    terminal::say(&format!(
        "{what}, beside the weights: one worker {:.0} MiB, each of two at most {:.0} MiB, {beside:.2} of it, \
         where {:.0} and {:.0} MiB are counted; with the weights {:.0} and {:.0} MiB, {all:.2} of it",
        mib(peaks.one.beside_weights()),
        most(memory::Peak::beside_weights),
        mib(counted_one as u64),
        mib(counted_two as u64),
        mib(peaks.one.peak_bytes),
        most(|peak| peak.peak_bytes),
    ))
}

/// What is counted for a decode on a worker alone, and on the one of two that has more rows.
fn counted(size: ImageSize) -> [u128; 2] {
    let spec = super::step::xl_with(decode::vae());
    let whole = Share::whole(&spec, size);
    let half = Share { decode_rows: whole.decode_rows.div_ceil(2), ..whole };
    [whole, half].map(|share| Footprint::of(&spec, size, share, size_of::<f32>() as u64).vae_bytes)
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
