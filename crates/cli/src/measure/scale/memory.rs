//! How much memory a worker needs at most for a decode, alone and as one of two: each in a process of its own, since
//! only a process has a peak.
//!
//! The process that measures starts this program again for each worker, passes the workers' addresses to both, and
//! compares what they made.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use fabric::Fabric;
use model::Place;
use plan::{Epoch, ImageSize, Rank};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode::Decode;
use super::{bind, one_thread};
use crate::measure::memory;

/// Which rows of the picture a process decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// All of them, alone.
    Whole,
    /// Those of the first rank of two.
    Upper,
    /// Those of the second.
    Lower,
}

/// What one process needed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Peak {
    /// In use once the weights were loaded.
    pub(crate) resting_bytes: u64,
    /// Most in use during the decode, weights included.
    pub(crate) peak_bytes: u64,
    /// Hashes of the upper and the lower half of the picture, as far as they were made.
    halves: Vec<String>,
}

/// A worker alone, then the two that share its rows.
pub(crate) struct Peaks {
    /// Alone.
    pub(crate) one: Peak,
    /// Each of two.
    pub(crate) two: [Peak; 2],
}

impl Peak {
    /// Most in use beside what was there before the decode.
    pub(crate) fn beside_weights(&self) -> u64 {
        self.peak_bytes.saturating_sub(self.resting_bytes)
    }
}

impl Peaks {
    /// Bytes of the worse of two over bytes of one.
    pub(crate) fn share(&self, bytes: impl Fn(&Peak) -> u64) -> f64 {
        self.two.iter().map(&bytes).max().unwrap_or(0) as f64 / bytes(&self.one) as f64
    }
}

/// Measures all three.
pub(crate) fn measure(size: ImageSize) -> Result<Peaks> {
    let mut alone = Worker::start(size, Part::Whole)?;
    let one = alone.peak()?;
    alone.end()?;
    let mut workers = [Worker::start(size, Part::Upper)?, Worker::start(size, Part::Lower)?];
    let addresses = [workers[0].line()?, workers[1].line()?].join(" ");
    for worker in &mut workers {
        writeln!(worker.stdin, "{addresses}")?;
    }
    let two = [workers[0].peak()?, workers[1].peak()?];
    workers.into_iter().try_for_each(Worker::end)?;
    let made: Vec<&String> = two.iter().flat_map(|peak| &peak.halves).collect();
    ensure!(one.halves.iter().eq(made), "two processes decoded other bytes than one");
    Ok(Peaks { one, two })
}

/// Another process of this program.
struct Worker {
    process: Child,
    stdin: ChildStdin,
    lines: BufReader<ChildStdout>,
}

impl Worker {
    fn start(size: ImageSize, part: Part) -> Result<Self> {
        let part = clap::ValueEnum::to_possible_value(&part).context("a part has a name")?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(["bench", "scale", "--size", &size.to_string(), "--decode-part", part.get_name()]);
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a worker")?;
        let (stdin, stdout) = process.stdin.take().zip(process.stdout.take()).context("a worker has pipes")?;
        Ok(Self { process, stdin, lines: BufReader::new(stdout) })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "a worker ended before it said anything");
        Ok(line.trim().to_owned())
    }

    fn peak(&mut self) -> Result<Peak> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("a worker said `{line}`"))
    }

    /// It may go now that nobody needs anything of it.
    fn end(self) -> Result<()> {
        let Self { mut process, stdin, .. } = self;
        drop(stdin);
        let ended = process.wait()?;
        ensure!(ended.success(), "a worker ended with {ended}");
        Ok(())
    }
}

/// What such a process does: loads, says its address if it has a peer, decodes, says what it needed.
pub(crate) fn run(size: ImageSize, part: Part) -> Result<()> {
    let (decode, pool) = (Decode::new(size)?, one_thread()?);
    let mut stdout = std::io::stdout();
    let (fabric, _port) = match part {
        Part::Whole => (None, None),
        Part::Upper | Part::Lower => {
            let port = bind()?;
            writeln!(stdout, "{}", port.address())?;
            let mut addresses = String::new();
            ensure!(std::io::stdin().read_line(&mut addresses)? > 0, "nobody says where the other worker is");
            let peers = addresses.split_whitespace().map(str::to_owned).collect();
            let fabric: Arc<dyn Fabric> = port.open(Epoch(1), 1, Rank(u16::from(part == Part::Lower)), peers);
            (Some(fabric), Some(port))
        }
    };
    let resting_bytes =
        memory::restart_peak(&Place::default()).context("this system does not tell a process's peak memory")?;
    let pixels = match &fabric {
        None => decode.whole(&pool)?,
        Some(fabric) => decode.share(usize::from(part == Part::Lower), &pool, &**fabric)?.0,
    };
    let peak_bytes = memory::peak(&Place::default()).context("this system does not tell a process's peak memory")?;
    let halves = match part {
        Part::Whole => {
            let (rows, middle) = (pixels.dim(0)?, decode.first_pixel_row_of_lower());
            vec![hash(&pixels.narrow(0, 0, middle)?)?, hash(&pixels.narrow(0, middle, rows - middle)?)?]
        }
        Part::Upper | Part::Lower => vec![hash(&pixels)?],
    };
    writeln!(stdout, "{}", serde_json::to_string(&Peak { resting_bytes, peak_bytes, halves })?)?;
    if fabric.is_some() {
        // A rank that left now could take along what it has sent.
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok(())
}

fn hash(x: &Tensor) -> Result<String> {
    let mut digest = Sha256::new();
    for value in x.flatten_all()?.to_vec1::<f32>()? {
        digest.update(value.to_le_bytes());
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
