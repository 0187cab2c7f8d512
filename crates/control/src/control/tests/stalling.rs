//! Ranks that make no progress.

use super::*;
use crate::input::Work;
use crate::member::MemberState;

fn working(farm: &mut Farm, worker: &str, epoch: Epoch, (progress, waits): (u64, bool)) -> Vec<Output> {
    let session = session_of(farm, worker);
    farm.hear(Input::Heartbeat { worker: id(worker), session, work: Some(Work { epoch, progress, waits }) })
}

/// Short steps, so that the least patience counts.
fn quick(name: &str) -> Hello {
    Hello { flop_per_s: 1e15, ..hello(name) }
}

const PATIENCE_MS: u64 = 60_000;

/// Seconds go by in which each of them says how far it is.
fn watch(farm: &mut Farm, for_ms: u64, epoch: Epoch, of: &[(&str, Option<u64>, bool)]) -> Vec<Output> {
    let mut outputs = Vec::new();
    for _ in 0..for_ms / 1_000 {
        outputs.extend(farm.wait(1_000));
        for (worker, progress, waits) in of {
            let progress = progress.unwrap_or(farm.now);
            outputs.extend(working(farm, worker, epoch, (progress, *waits)));
        }
    }
    outputs
}

#[test]
fn a_rank_that_makes_no_progress_is_given_up_and_its_image_goes_on_elsewhere() {
    let mut farm = Farm::new();
    farm.join_as("a", quick("a"));
    let job = farm.submit(1);
    farm.keep(&job, 0, 4);
    farm.join_as("b", quick("b"));
    // Nobody is asked to make room for a worker while nothing is gained by it.
    let epoch = farm.epoch(&job, 0);
    farm.control.attempts.get_mut(&epoch).expect("is on").stopped = None;
    let sessions = farm.join_as("c", Hello { models: Vec::new(), ..quick("c") });
    drop(sessions);
    let mut outputs = Vec::new();
    for _ in 0..PATIENCE_MS / 1_000 + 2 {
        outputs.extend(farm.wait(1_000));
        outputs.extend(working(&mut farm, "a", epoch, (7, false)));
        for other in ["b", "c"] {
            let session = session_of(&farm, other);
            outputs.extend(farm.hear(Input::Heartbeat { worker: id(other), session, work: None }));
        }
    }
    assert_eq!(aborted(&outputs), ["a"]);
    assert_eq!(assigned(&outputs), [("b".to_owned(), 4)]);
    let message = &farm.image(&job, 0).message;
    assert!(message.starts_with("worker a made no progress for 6"), "{message}");
    assert_eq!(farm.control.counters().stalled, 1);
}

#[test]
fn progress_however_slow_is_progress() {
    let mut farm = Farm::new();
    farm.join_as("a", quick("a"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    for n in 0..40 {
        assert_eq!(watch(&mut farm, PATIENCE_MS - 2_000, epoch, &[("a", Some(n), false)]), []);
    }
    assert_eq!(farm.epoch(&job, 0), epoch);
}

#[test]
fn a_long_step_is_given_ten_times_what_the_device_would_take_for_it() {
    let mut farm = Farm::new();
    // Some 0.6 TFLOP a step of 256² at 5 GFLOP/s: two minutes each.
    farm.join_as("a", Hello { flop_per_s: 5e9, ..hello("a") });
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    assert_eq!(watch(&mut farm, 600_000, epoch, &[("a", Some(1), false)]), []);
    let outputs = watch(&mut farm, 3_600_000, epoch, &[("a", Some(1), false)]);
    assert_eq!(aborted(&outputs).first().map(String::as_str), Some("a"));
}

#[test]
fn who_waits_for_a_rank_that_hangs_is_not_to_blame() {
    let mut farm = Farm::new();
    for name in ["a", "b"] {
        farm.join_as(name, quick(name));
    }
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    assert_eq!(farm.seats(&job, 0), ["a", "b"]);
    let outputs = watch(&mut farm, PATIENCE_MS + 2_000, epoch, &[("a", Some(9), true), ("b", Some(3), false)]);
    assert_eq!(aborted(&outputs), ["a", "b"]);
    assert_eq!(farm.image(&job, 0).avoid.iter().map(|worker| worker.0.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(farm.seats(&job, 0), ["a"]);
}

#[test]
fn ranks_that_all_wait_for_each_other_are_given_up_with_nobody_to_blame() {
    let mut farm = Farm::new();
    for name in ["a", "b"] {
        farm.join_as(name, quick(name));
    }
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let waiting = [("a", Some(9), true), ("b", Some(9), true)];
    assert_eq!(watch(&mut farm, 2 * PATIENCE_MS - 2_000, epoch, &waiting), []);
    assert_eq!(aborted(&watch(&mut farm, 4_000, epoch, &waiting)), ["a", "b"]);
    let image = farm.image(&job, 0);
    assert_eq!((image.avoid.len(), image.n_failures, image.n_losses), (0, 0, 1));
}

#[test]
fn a_worker_whose_thread_does_not_end_gets_no_work_until_it_has() {
    let mut farm = Farm::new();
    farm.join_as("a", quick("a"));
    let job = farm.submit(2);
    let old = farm.epoch(&job, 0);
    let outputs = watch(&mut farm, PATIENCE_MS + 5_000, old, &[("a", Some(1), false)]);
    assert_eq!((aborted(&outputs), assigned(&outputs)), (vec!["a".to_owned()], vec![]));
    let state = |farm: &Farm| farm.control.members().next().expect("is in").state;
    assert_eq!(state(&farm), MemberState::Quarantined);
    assert_eq!(assigned(&watch(&mut farm, 600_000, old, &[("a", Some(1), false)])), []);
    farm.beat();
    assert_eq!(state(&farm), MemberState::Busy, "its thread has ended");
}

#[test]
fn a_worker_that_only_keeps_its_lease_loses_its_image() {
    let mut farm = Farm::new();
    farm.join_as("a", quick("a"));
    let job = farm.submit(1);
    let outputs = farm.wait_alive(PATIENCE_MS + 1_000);
    assert_eq!(aborted(&outputs), ["a"]);
    assert_eq!(farm.image(&job, 0).n_tries, 1);
}
