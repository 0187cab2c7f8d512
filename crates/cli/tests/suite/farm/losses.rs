//! Workers and coordinators stopped, killed, drained and come back.

use std::time::Instant;

use serde_json::Value;

use super::kills::gap;
use super::{Farm, STEPS, check_order, check_steps, epoch, is_running, says, step};

#[test]
fn a_worker_stopped_and_resumed_after_it_was_given_up_changes_nothing() {
    let farm = Farm::start();
    let workers = [farm.worker("a"), farm.worker("b")];
    let job = farm.submit(5);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 2));
    // A silent worker is found by its lease, not by its connections.
    let stopped = Instant::now();
    workers[1].signal("-STOP");
    assert!(watch.until(|event| says(event, "was lost")));
    workers[1].signal("-CONT");
    check_steps(watch.rest());
    let (gap, limit) = gap(&watch, stopped).expect("it had a share, and steps are left");
    println!("{} ms from the stop to stepping again, at most {} ms", gap.as_millis(), limit.as_millis());
    assert!(gap <= limit, "the picture stood still for longer than a lease, a step and half a second");
    farm.check_picture(&job, 5);
}

#[test]
fn a_coordinator_killed_and_restarted_repeats_no_step_and_its_watchers_go_on() {
    let mut farm = Farm::start();
    let _workers = [farm.worker("a"), farm.worker("b")];
    let job = farm.submit(6);
    let waiting = farm.submit(7);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 3));
    farm.coordinator.take().expect("it runs").kill();
    farm.start_coordinator();
    let before = watch.seen.len();
    let events = watch.rest().to_vec();
    check_steps(&events);
    // A step that is made again is made in another attempt.
    let (last, next) = (&events[before - 1], events[before..].iter().find(|event| is_running(event)));
    let next = next.expect("steps were left");
    assert_eq!(epoch(last), epoch(next), "{last} {next}");
    farm.check_picture(&job, 6);
    assert_eq!(farm.call(&["wait", &waiting]).code, Some(0), "the job behind it is not lost");
    farm.check_picture(&waiting, 7);
}

#[test]
fn a_worker_that_is_told_to_end_hands_over_at_a_step_boundary() {
    let farm = Farm::start();
    let leaving = farm.worker("leaving");
    let _staying = farm.worker("staying");
    let job = farm.submit(8);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 2));
    leaving.signal("-TERM");
    let events = watch.rest().to_vec();
    check_steps(&events);
    assert!(events.iter().all(|event| !says(event, "lost")), "{events:?}");
    assert_eq!(leaving.wait(), Some(0));
    farm.check_picture(&job, 8);
}

#[test]
fn a_worker_told_twice_to_end_does_not_end_its_step_and_its_picture_goes_on_elsewhere() {
    let farm = Farm::start();
    let hasty = farm.worker("hasty");
    // A step takes seconds, and one worker alone waits for no other.
    let large = ["a calm sea at dawn", "--size", "1024x1024", "--steps", "1", "--seed", "11"];
    let job = farm.call(&[&["submit"], &large[..]].concat()).quiet().stdout.trim().to_owned();
    hasty.until_it_says("begins");
    hasty.signal("-TERM");
    hasty.until_it_says("once more ends at once");
    hasty.signal("-TERM");
    assert_eq!(hasty.wait(), Some(0));
    let got = farm.call(&["get", &job, "--json"]).quiet().json();
    assert_eq!(got["images"][0]["step"].as_u64(), Some(0), "{got}");
    let _patient = farm.worker("patient");
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    farm.check_picture_of(&job, &large);
}

#[test]
fn a_worker_that_comes_while_a_picture_is_made_takes_a_share() {
    let farm = Farm::start();
    let _first = farm.worker("first");
    let job = farm.submit(9);
    let mut watch = farm.watch(&job);
    assert!(watch.until(is_running));
    let _second = farm.worker("second");
    let events = watch.rest().to_vec();
    check_steps(&events);
    farm.check_picture(&job, 9);
    // The picture may be done before the second is ready; the next one then is made by both.
    let job = farm.submit(10);
    let mut watch = farm.watch(&job);
    let workers = |event: &Value| event["workers"].as_array().map_or(0, Vec::len);
    assert!(watch.until(|event| workers(event) == 2));
    check_steps(watch.rest());
}

#[test]
fn a_picture_all_of_whose_workers_are_gone_waits_and_says_so_and_goes_on_where_it_was() {
    let farm = Farm::start();
    let workers = [farm.worker("a"), farm.worker("b")];
    let job = farm.submit(15);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|event| is_running(event) && step(event) >= 3));
    workers.into_iter().for_each(super::Process::kill);
    assert!(watch.until(|event| event["state"] == "QUEUED" && says(event, "waits for a worker")));
    check_order(&watch.seen);
    let n_done = step(watch.seen.last().expect("there were events"));
    assert!((3..STEPS).contains(&n_done), "{n_done}");
    let got = farm.call(&["get", &job, "--json"]).quiet().json();
    assert_eq!((got["state"].as_str(), got["images"][0]["step"].as_u64()), (Some("QUEUED"), Some(n_done)));
    assert!(got["images"][0]["message"].as_str().is_some_and(|said| said.contains("waits for a worker")), "{got}");
    let _back = farm.worker("c");
    check_steps(watch.rest());
    farm.check_picture(&job, 15);
}
