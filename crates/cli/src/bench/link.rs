//! `fresco bench link`: two ranks in two processes, of this machine or of two.
//!
//! Leaves out what is measured and how.

use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use clap::Args;

use crate::exit::Stop;
use crate::measure::link::control::Control;
use crate::measure::link::{self, Measured, VALUE_BYTES};
use crate::terminal;

/// Flags of `bench link`.
#[derive(Debug, Args)]
#[command(before_help = "\
Examples:
  fresco bench link
  fresco bench link --bytes 1048576 --runs 9 --json
  fresco bench link --serve 0.0.0.0:7000          # on one machine,
  fresco bench link --to 192.168.1.20:7000        # and on another")]
pub(crate) struct LinkArgs {
    /// Bytes of a tensor, several separated by commas
    #[arg(long, value_name = "N,N", default_value = "1048576,4194304,16777216,67108864", value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(4..=1 << 30))]
    pub(crate) bytes: Vec<u32>,

    /// Empty exchanges of a run
    #[arg(long, value_name = "N", default_value = "5000", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) trips: u32,

    /// How many runs; medians are reported
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) runs: u32,

    /// Measure the link to another process, started with --serve
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) to: Option<String>,

    /// Be the other end for whoever comes, until stopped
    #[arg(long, value_name = "ADDRESS", conflicts_with = "to")]
    pub(crate) serve: Option<SocketAddr>,

    /// Be the other end for the process that started this one
    #[arg(long, hide = true, conflicts_with_all = ["to", "serve"])]
    pub(crate) peer: bool,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Measures a link, or is the other end of one.
pub(crate) fn run(args: &LinkArgs) -> anyhow::Result<()> {
    if args.peer {
        return link::follow(&mut Control::of_stdio());
    }
    if let Some(address) = args.serve {
        return serve(address);
    }
    if let Some(bytes) = args.bytes.iter().find(|bytes| !bytes.is_multiple_of(VALUE_BYTES as u32)) {
        return Err(Stop::Usage(format!("bytes: {bytes} are no whole numbers of {VALUE_BYTES} bytes")).into());
    }
    let (mut control, _peer) = match &args.to {
        Some(host) => (connect(host)?, None),
        None => {
            let (control, peer) = Control::spawn(&["bench", "link", "--peer"])?;
            (control, Some(peer))
        }
    };
    let sizes: Vec<usize> = args.bytes.iter().map(|&bytes| bytes as usize).collect();
    let measured = link::lead(&mut control, &sizes, args.runs as usize, args.trips as usize)?;
    if args.json { terminal::say_json(&measured) } else { show(&measured) }
}

fn serve(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let bound = listener.local_addr().context("find out where this listens")?;
    terminal::note(&format!("at {bound}: `fresco bench link --to HOST:{}` measures the link to here", bound.port()));
    loop {
        let (connection, who) = listener.accept().context("take a connection")?;
        let followed = Control::of_connection(connection).and_then(|mut control| link::follow(&mut control));
        match followed {
            Ok(()) => terminal::note(&format!("measured the link to {who}")),
            Err(error) => terminal::error(&format!("the link to {who}: {error:#}")),
        }
    }
}

fn connect(host: &str) -> anyhow::Result<Control> {
    let connection = TcpStream::connect(host).map_err(|error| {
        Stop::Unavailable(format!("{host}: {error}; is `fresco bench link --serve` running there?"))
    })?;
    Control::of_connection(connection)
}

fn show(measured: &Measured) -> anyhow::Result<()> {
    for size in &measured.sizes {
        let mib = size.bytes as f64 / f64::from(1 << 20);
        let (stream, cpu, gather) = (size.stream_gb_per_s, size.stream_cpu_s_per_gb, size.all_gather_gb_per_s);
        terminal::say(&format!(
            "{mib} MiB: one way {stream:.2} GB/s, {cpu:.3} s of both processors a GB; all_gather {gather:.2} GB/s"
        ))?;
    }
    let trip = &measured.round_trip;
    terminal::say(&format!("empty exchange, there and back: p50 {:.0} µs, p99 {:.0} µs", trip.p50_us, trip.p99_us))
}
