//! Whole farms in virtual time, drawn from a seed: members that follow the protocol, messages that come late, twice
//! or not at all, processes that die, a coordinator that forgets all but what it wrote down.
//!
//! `cargo test -p control --test sim` runs 10,000 seeds; `FRESCO_SIM_SEEDS=100000` runs more, and
//! `FRESCO_SIM_SEED=17` runs one and prints what happens.

mod oracle;
mod outside;
mod ranks;
mod rng;
mod scene;
mod shell;
mod worker;
mod world;

use rng::Rng;
use scene::Scene;
use world::World;

const SEEDS: u64 = 10_000;

fn run(seed: u64, traces: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let scene = Scene::of(seed, &mut rng);
    if traces {
        eprintln!("{scene:#?}");
    }
    World::new(scene, rng, traces).run().map_err(|fault| format!("seed {seed}: {fault}"))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_job_comes_to_its_end_whatever_happens_on_the_way() {
    if let Some(seed) = number("FRESCO_SIM_SEED") {
        return run(seed, true).expect("this seed was asked for");
    }
    let seeds = 0..number("FRESCO_SIM_SEEDS").unwrap_or(SEEDS);
    let mut faults = Vec::new();
    for seed in seeds {
        faults.extend(run(seed, false).err());
        if faults.len() >= 10 {
            break;
        }
    }
    assert!(faults.is_empty(), "run one with FRESCO_SIM_SEED=N to see it happen:\n{}", faults.join("\n"));
}
