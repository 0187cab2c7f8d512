//! Workers killed at random, as often as asked: equal bytes, what it cost, how soon it went on.
//!
//! `FRESCO_KILLS=60 cargo test -p cli farm::kills` kills more often than the few times of every run; `FRESCO_SEED`
//! chooses where.

use std::time::{Duration, Instant};

use super::{Farm, LEASE_MS, Process, STEPS, Watch, check_steps, epoch, is_running, metric, says, step};

const N_WORKERS: u64 = 3;
/// About as long as a step takes.
const STEP_MS: u64 = 100;

/// SplitMix64, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A worker and where it tells what it did.
struct Victim {
    process: Process,
    status: Option<String>,
}

impl Victim {
    fn start(farm: &Farm, name: &str) -> Self {
        Self { process: farm.worker_with(name, &["--status", "127.0.0.1:0"]), status: None }
    }

    /// Steps it took so far.
    fn n_steps(&mut self) -> u64 {
        let address = self.status.get_or_insert_with(|| self.process.address_of_metrics());
        metric(address, "fresco_step_duration_seconds_count") as u64
    }
}

/// From a loss to the next step behind it, and what that may take: the lease, a step, and half a second. None if no
/// step was left, or the victim had no share.
pub(super) fn gap(watch: &Watch, since: Instant) -> Option<(Duration, Duration)> {
    let events = || watch.seen.iter().zip(&watch.times);
    let (lost, _) = events().find(|(event, time)| **time >= since && says(event, "was lost"))?;
    let is_behind = |event: &&serde_json::Value| step(event) > step(lost);
    let (_, again) = events().find(|(event, time)| **time >= since && is_behind(event))?;
    let one_step = events().zip(events().skip(1)).filter_map(|((before, began), (after, ended))| {
        let is_step = epoch(before) == epoch(after) && step(before) + 1 == step(after);
        is_step.then(|| *ended - *began)
    });
    let limit = Duration::from_millis(LEASE_MS + 500) + one_step.max()?;
    Some((*again - since, limit))
}

#[test]
fn workers_killed_at_any_step_and_in_the_decode_leave_the_bytes_and_cost_one_step() {
    let (n_kills, seed) = (from_environment("FRESCO_KILLS", 6), from_environment("FRESCO_SEED", 1));
    println!("FRESCO_KILLS={n_kills} FRESCO_SEED={seed}");
    let mut random = Random(seed);
    let farm = Farm::start();
    let mut n_names = 0;
    let mut worker = || {
        n_names += 1;
        Victim::start(&farm, &format!("w{n_names}"))
    };
    let mut workers: Vec<Victim> = (0..N_WORKERS).map(|_| worker()).collect();
    let (mut n_killed, mut most_repeated, mut gaps_ms) = (0, 0, Vec::new());
    while n_killed < n_kills {
        let before: Vec<u64> = workers.iter_mut().map(Victim::n_steps).collect();
        let picture_seed = random.below(1 << 32);
        let job = farm.submit(picture_seed);
        let mut watch = farm.watch(&job);
        // Behind the last step the picture is being decoded.
        let (at, victim) = (random.below(STEPS + 1), random.below(N_WORKERS) as usize);
        // Anywhere in the step that follows.
        let into = Duration::from_millis(random.below(STEP_MS));
        if watch.until(|event| is_running(event) && step(event) >= at) && watch.read_for(into) {
            let killed = Instant::now();
            workers.remove(victim).process.kill();
            let replacement = worker();
            n_killed += 1;
            watch.rest();
            let others = before.iter().enumerate().filter(|(idx, _)| *idx != victim).map(|(_, n)| *n);
            let taken = workers.iter_mut().zip(others).map(|(worker, before)| worker.n_steps() - before);
            let n_repeated = taken.map(|n| n.saturating_sub(STEPS)).max().unwrap_or(0);
            most_repeated = most_repeated.max(n_repeated);
            workers.push(replacement);
            let when = format!("{} ms behind step {at}", into.as_millis());
            print!("kill {n_killed}: picture {picture_seed}, worker {victim}, {when}, repeated {n_repeated}");
            match gap(&watch, killed) {
                Some((gap, limit)) => {
                    println!(", {} ms to stepping again, at most {} ms", gap.as_millis(), limit.as_millis());
                    assert!(gap <= limit, "the picture stood still for longer than a lease, a step and half a second");
                    gaps_ms.push(gap.as_millis());
                }
                None => println!(", no step of its own left"),
            }
            assert!(n_repeated <= 1, "{n_repeated} steps were done twice");
        }
        check_steps(watch.rest());
        farm.check_picture(&job, picture_seed);
    }
    gaps_ms.sort_unstable();
    let (n, median, largest) = (gaps_ms.len(), gaps_ms.get(gaps_ms.len() / 2), gaps_ms.last());
    println!("{n_killed} kills, all bytes equal, at most {most_repeated} steps repeated");
    println!("{n} times stepping again after: median {median:?} ms, largest {largest:?} ms");
}
