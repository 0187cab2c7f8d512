//! Sick workers: who is charged with a failure, who rests, and what the others are given meanwhile.

use super::*;
use crate::member::MemberState;

/// Whoever is put into quarantine.
fn quarantined(outputs: &[Output]) -> Vec<(String, u64)> {
    let quarantine = |output: &Output| match output {
        Output::Quarantine { worker, for_ms, .. } => Some((worker.0.clone(), *for_ms)),
        _ => None,
    };
    outputs.iter().filter_map(quarantine).collect()
}

fn state(farm: &Farm, worker: &str) -> MemberState {
    farm.control.members().find(|member| member.worker == id(worker)).expect("is in").state
}

#[test]
fn a_worker_that_fails_at_three_images_in_a_row_rests_and_its_images_are_not_charged() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(4);
    let mut outputs = Vec::new();
    for (image, pause_ms) in [(0, 100), (1, 400), (2, 0)] {
        assert_eq!(farm.seats(&job, image), ["a"], "something else each time");
        outputs = farm.fail("a", a, farm.epoch(&job, image), Cause::Device);
        outputs.extend(farm.wait_alive(pause_ms));
    }
    assert_eq!(quarantined(&outputs), [("a".to_owned(), 15_000)]);
    assert_eq!(state(&farm, "a"), MemberState::Quarantined);
    for image in 0..3 {
        let found = farm.image(&job, image);
        assert_eq!((found.phase, found.n_failures, found.n_tries), (Phase::Queued, 0, 1));
    }
    assert_eq!(assigned(&farm.wait_alive(14_000)), []);
    assert_eq!(assigned(&farm.wait_alive(1_100)).len(), 1, "then it is tried with one image");
    assert_eq!(farm.seats(&job, 3), ["a"]);
    let outputs = farm.fail("a", a, farm.epoch(&job, 3), Cause::Device);
    assert_eq!(quarantined(&outputs), [("a".to_owned(), 30_000)], "the second time for twice as long");
}

#[test]
fn a_device_that_is_in_use_for_half_an_hour_fails_no_image() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(2);
    while farm.now < 1_800_000 {
        for image in 0..2 {
            if let Some(epoch) = farm.image(&job, image).epoch {
                farm.fail("a", a, epoch, Cause::Device);
            }
        }
        farm.wait_alive(1_000);
    }
    farm.wait_alive(1_000_000);
    assert!((0..2).any(|image| farm.image(&job, image).phase == Phase::Running), "it is tried again");
    assert!((0..2).all(|image| farm.image(&job, image).phase != Phase::Failed));
}

#[test]
fn an_image_no_worker_can_make_fails_in_the_end() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    let mut n = 0;
    while farm.image(&job, 0).phase != Phase::Failed {
        if let Some(epoch) = farm.image(&job, 0).epoch {
            farm.fail("a", a, epoch, Cause::Device);
            n += 1;
        }
        farm.wait_alive(60_000);
        assert!(n <= config().most_tries, "it is tried for ever");
    }
    assert_eq!(n, config().most_tries);
}

#[test]
fn an_image_that_failed_waits_for_a_worker_known_to_be_well() {
    let mut farm = Farm::new();
    let (a, b, _c) = (farm.join("a"), farm.join("b"), farm.join("c"));
    let job = farm.submit(3);
    let (of_a, of_b) = (farm.epoch(&job, 0), farm.epoch(&job, 1));
    farm.fail("a", a, of_a, Cause::Bug);
    // Both others are at work, and whether they are well is not known yet.
    assert_eq!(assigned(&farm.wait(100)), []);
    farm.keep(&job, 1, 1);
    let outputs = farm.finish("b", b, of_b);
    assert_eq!(assigned(&outputs), [("b".to_owned(), 0)]);
    assert_eq!(farm.seats(&job, 0), ["b"]);
}

#[test]
fn two_sick_workers_of_many_fail_no_image_of_a_job_that_works_elsewhere() {
    let mut farm = Farm::new();
    let names = ["a", "b", "c", "d"];
    let sessions = names.map(|name| farm.join(name));
    let jobs = [farm.submit(6), farm.submit(2)];
    let images: Vec<(JobId, u32)> = (0..8).map(|n| (jobs[n as usize / 6].clone(), n % 6)).collect();
    // The job works: c takes a step.
    farm.keep(&jobs[0], 2, 1);
    for round in 0..50 {
        for (name, session) in names.iter().zip(sessions).take(2) {
            let is_its = |(job, image): &&(JobId, u32)| {
                farm.image(job, *image).epoch.is_some() && farm.seats(job, *image) == [(*name).to_owned()]
            };
            if let Some((job, image)) = images.iter().find(is_its) {
                farm.fail(name, session, farm.epoch(job, *image), Cause::Bug);
            }
        }
        farm.wait_alive(1_000);
        let phase = |(job, image): &(JobId, u32)| farm.image(job, *image).phase;
        assert!(images.iter().all(|image| phase(image) != Phase::Failed), "round {round}");
    }
    assert_eq!(farm.control.counters().quarantines, 2);
}

#[test]
fn a_suspect_is_given_another_job_which_tells_whether_it_is_the_worker() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let (bad, good) = (farm.submit(3), farm.submit(1));
    farm.fail("a", a, farm.epoch(&bad, 0), Cause::Bug);
    farm.wait(100);
    assert_eq!(farm.seats(&good, 0), ["a"], "though the other job is first in the queue");
    farm.keep(&good, 0, 1);
    farm.finish("a", a, farm.epoch(&good, 0));
    assert_eq!(farm.image(&bad, 0).phase, Phase::Running, "it is well, and there is nobody else");
}

#[test]
fn who_gave_a_value_that_is_not_finite_in_a_team_shows_when_it_is_alone() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    assert_eq!(farm.seats(&job, 0), ["a", "b"]);
    farm.fail("b", b, farm.epoch(&job, 0), Cause::NotFinite);
    farm.wait(100);
    assert_eq!(farm.seats(&job, 0), ["a"], "alone");
    farm.keep(&job, 0, 1);
    farm.join("c");
    assert_eq!(stops(&farm.keep(&job, 0, 2)), [], "and stays so");
    farm.finish("a", a, farm.epoch(&job, 0));
    assert_eq!(farm.image(&job, 0).phase, Phase::Done);
}

#[test]
fn a_worker_that_starts_anew_under_its_name_is_no_better_for_it() {
    let mut farm = Farm::new();
    let job = farm.submit(6);
    for (image, pause_ms) in [(0, 100), (1, 400), (2, 0)] {
        let a = farm.join("a");
        farm.fail("a", a, farm.epoch(&job, image), Cause::Bug);
        farm.hear(Input::Leave { worker: id("a"), session: a });
        farm.wait(pause_ms);
    }
    let a = farm.join("a");
    assert_eq!(state(&farm, "a"), MemberState::Quarantined);
    farm.hear(Input::Leave { worker: id("a"), session: a });
}

/// A process that is ended for its memory says nothing: its lease ends, and it comes back under its name.
#[test]
fn a_worker_that_dies_at_three_images_in_a_row_rests_however_often_it_is_started() {
    let mut farm = Farm::new();
    farm.wait(3_600_000);
    let job = farm.submit(1);
    for incarnation in ["1", "2", "3"] {
        let (session, _) = farm.join_as("a", hello(incarnation));
        assert_eq!(farm.seats(&job, 0), ["a"]);
        farm.hear(Input::Left { worker: id("a"), session });
        farm.wait(5_000);
    }
    let (_, outputs) = farm.join_as("a", hello("4"));
    assert_eq!(quarantined(&outputs), [("a".to_owned(), 15_000)]);
    assert_eq!((assigned(&outputs), farm.image(&job, 0).n_losses), (vec![], 3));
    assert_eq!(state(&farm, "a"), MemberState::Quarantined);
    farm.join("b");
    assert_eq!(farm.seats(&job, 0), ["b"], "others go on meanwhile");
}

#[test]
fn a_process_that_was_only_cut_off_is_not_sick() {
    let mut farm = Farm::new();
    let job = farm.submit(1);
    for _ in 0..5 {
        let (session, _) = farm.join_as("a", hello("1"));
        assert_eq!(farm.seats(&job, 0), ["a"]);
        farm.hear(Input::Left { worker: id("a"), session });
        farm.wait(5_000);
    }
    assert_eq!(farm.control.counters().quarantines, 0);
}

#[test]
fn deaths_that_lie_far_apart_are_forgotten() {
    let mut farm = Farm::new();
    farm.submit(1);
    for incarnation in ["1", "2", "3", "4", "5"] {
        let (session, _) = farm.join_as("a", hello(incarnation));
        farm.hear(Input::Left { worker: id("a"), session });
        farm.wait(11 * 60_000);
    }
    assert_eq!(farm.control.counters().quarantines, 0);
}

#[test]
fn a_worker_that_says_that_it_leaves_is_not_sick() {
    let mut farm = Farm::new();
    farm.submit(1);
    for incarnation in ["1", "2", "3", "4"] {
        let (session, outputs) = farm.join_as("a", hello(incarnation));
        assert_eq!(assigned(&outputs).len(), 1);
        farm.hear(Input::Leave { worker: id("a"), session });
    }
    assert_eq!(farm.control.counters().quarantines, 0);
}
