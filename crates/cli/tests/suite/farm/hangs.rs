//! Ranks that stop moving while their worker keeps its lease.

use super::{Farm, Process, check_steps};

/// Short, so that a test need not wait for a minute.
const STALL_MS: &str = "2000";

/// Draws a picture of which the worker `sick` hangs at `place`, alone or with another one from the first step on.
fn check(place: &str, is_alone: bool, seed: u64) -> Process {
    let farm = Farm::start_with(&["--stall-ms", STALL_MS]);
    let well = (!is_alone).then(|| farm.worker("well"));
    well.iter().for_each(|well| drop(well.until_it_says("joined")));
    let sick = farm.worker_with("sick", &["--hang-at", place]);
    sick.until_it_says("joined");
    let job = farm.submit(seed);
    let mut watch = farm.watch(&job);
    sick.until_it_says("begins");
    let _well = well.unwrap_or_else(|| farm.worker("well"));
    check_steps(watch.rest());
    farm.check_picture(&job, seed);
    sick
}

#[test]
fn a_picture_whose_worker_hangs_in_the_prompt_is_made_by_another() {
    check("encode", true, 41);
}

#[test]
fn a_picture_whose_worker_hangs_in_a_step_is_made_by_another_and_the_worker_says_that_it_takes_no_work() {
    let sick = check("step", true, 42);
    sick.until_it_says("takes no work until it does");
}

#[test]
fn a_picture_whose_worker_hangs_in_the_decode_is_made_by_another() {
    check("decode", true, 43);
}

#[test]
fn a_picture_whose_worker_hangs_with_the_file_in_its_hands_is_made_by_another() {
    check("upload", true, 44);
}

#[test]
fn a_picture_one_of_whose_ranks_hangs_in_a_step_is_made_by_the_others() {
    check("step", false, 45);
}

#[test]
fn a_picture_one_of_whose_ranks_hangs_in_the_decode_is_made_by_the_others() {
    check("decode", false, 46);
}
