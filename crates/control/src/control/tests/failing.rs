//! What becomes of an image when a rank gives up, or is lost.

use super::*;

#[test]
fn what_no_other_worker_would_do_better_fails_at_once() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    farm.join("b");
    let job = farm.submit(1);
    let outputs = farm.fail("a", a, farm.epoch(&job, 0), Cause::Input);
    assert_eq!(aborted(&outputs), ["a", "b"]);
    let image = farm.image(&job, 0);
    assert_eq!((image.phase, image.message.as_str()), (Phase::Failed, "step 3, rank 0: it broke"));
}

#[test]
fn one_worker_whose_program_goes_wrong_fails_no_image_and_a_second_does() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    // What the network did before counts for neither.
    farm.fail("a", a, farm.epoch(&job, 0), Cause::Device);
    farm.wait(100);
    farm.fail("b", b, farm.epoch(&job, 0), Cause::Bug);
    assert_eq!(farm.image(&job, 0).phase, Phase::Queued);
    farm.wait(400);
    assert_eq!(farm.seats(&job, 0), ["a"]);
    farm.fail("a", a, farm.epoch(&job, 0), Cause::Bug);
    assert_eq!(farm.image(&job, 0).phase, Phase::Failed);
}

#[test]
fn a_value_that_is_not_finite_is_tried_once_elsewhere_and_then_final() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    farm.keep(&job, 0, 2);
    farm.fail("a", a, farm.epoch(&job, 0), Cause::NotFinite);
    assert_eq!(farm.image(&job, 0).phase, Phase::Queued);
    assert_eq!(assigned(&farm.wait(100)), [("b".to_owned(), 2)]);
    farm.fail("b", b, farm.epoch(&job, 0), Cause::NotFinite);
    let image = farm.image(&job, 0);
    assert_eq!(image.phase, Phase::Failed);
    assert_eq!(image.message, "step 3, rank 0: it broke (tried 2 times, last by worker b as rank 0 with 2 steps done)");
}

#[test]
fn elsewhere_is_waited_for_and_is_the_same_worker_if_there_is_no_other() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(2);
    let b = farm.join("b");
    farm.fail("a", a, farm.epoch(&job, 0), Cause::NotFinite);
    assert_eq!(farm.wait(100), [], "a is free, but b may do better");
    let outputs = farm.finish("b", b, farm.epoch(&job, 1));
    assert_eq!(assigned(&outputs), [("b".to_owned(), 0)]);
    let outputs = farm.hear(Input::Leave { worker: id("b"), session: b });
    assert_eq!(assigned(&outputs), [("a".to_owned(), 0)]);
}

#[test]
fn a_step_forward_forgives_earlier_failures() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    for n in 1..12 {
        farm.keep(&job, 0, n);
        farm.fail("a", a, farm.epoch(&job, 0), Cause::Device);
        assert_eq!(assigned(&farm.wait(100)), [("a".to_owned(), n)]);
        farm.hear(Input::Heartbeat { worker: id("a"), session: a, work: None });
    }
}

#[test]
fn who_blames_another_is_heard_after_the_other() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    assert_eq!(farm.fail("a", a, epoch, Cause::Peer), []);
    farm.fail("b", b, epoch, Cause::NotFinite);
    assert_eq!((farm.image(&job, 0).n_not_finite, farm.image(&job, 0).phase), (1, Phase::Queued));
}

#[test]
fn blame_alone_begins_a_new_epoch_with_the_same_members_later_each_time() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    for pause_ms in [100, 400, 1_600] {
        let epoch = farm.epoch(&job, 0);
        farm.fail("a", a, epoch, Cause::Peer);
        assert_eq!(farm.wait(pause_ms - 1), []);
        let outputs = farm.wait(1);
        assert_eq!(aborted(&outputs), ["a", "b"]);
        assert_eq!(assigned(&outputs), [("a".to_owned(), 0), ("b".to_owned(), 0)]);
        for (worker, session) in [("a", a), ("b", b)] {
            farm.hear(Input::Heartbeat { worker: id(worker), session, work: None });
        }
    }
}

#[test]
fn a_lost_member_ends_the_epoch_and_the_rest_go_on_from_the_last_step_kept() {
    let mut farm = Farm::new();
    farm.join("a");
    let b = farm.join("b");
    let job = farm.submit(1);
    farm.keep(&job, 0, 7);
    let old = farm.epoch(&job, 0);
    let outputs = farm.hear(Input::Leave { worker: id("b"), session: b });
    assert_eq!((aborted(&outputs), assigned(&outputs)), (vec!["a".to_owned()], vec![("a".to_owned(), 7)]));
    assert!(farm.epoch(&job, 0) > old);
    assert_eq!(farm.image(&job, 0).message, "worker b was lost");
    assert_eq!(farm.finish("b", b, old), []);
    assert_eq!(farm.control.counters().old_session, 1);
}

#[test]
fn an_image_that_loses_one_member_after_the_other_fails_and_says_so() {
    let mut farm = Farm::new();
    let job = farm.submit(1);
    for _ in 0..=config().most_losses {
        let a = farm.join("a");
        farm.hear(Input::Leave { worker: id("a"), session: a });
    }
    let image = farm.image(&job, 0);
    assert_eq!(
        (image.phase, image.message.as_str()),
        (Phase::Failed, "21 workers were lost at it without a step forward")
    );
}

#[test]
fn a_full_disk_is_told_once_and_loses_nothing() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let refuse = |farm: &mut Farm| farm.hear(Input::ArtifactRefused { epoch, message: "no room".into() });
    assert_eq!((refuse(&mut farm).len(), refuse(&mut farm).len()), (1, 0));
    assert_eq!((farm.image(&job, 0).phase, farm.image(&job, 0).message.as_str()), (Phase::Running, "no room"));
    farm.finish("a", a, epoch);
    assert_eq!((farm.image(&job, 0).phase, farm.image(&job, 0).message.as_str()), (Phase::Done, ""));
}

#[test]
fn steps_and_times_that_cannot_be_change_nothing() {
    let mut farm = Farm::new();
    let (a, _) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    assert_eq!(farm.keep(&job, 0, 21), []);
    assert_eq!(farm.keep(&job, 0, 0), []);
    for compute_ms in [f64::NAN, f64::INFINITY, -1.0, 0.0, f64::MIN_POSITIVE] {
        let rank = plan::Rank(u16::MAX);
        assert_eq!(farm.hear(Input::StepTaken { worker: id("a"), session: a, epoch, rank, compute_ms }), []);
    }
    assert!(
        farm.control
            .attempt(epoch)
            .is_some_and(|attempt| attempt.paces.iter().all(|pace| *pace == crate::pace::Pace::default()))
    );
    farm.now = 0;
    farm.hear(Input::Heartbeat { worker: id("a"), session: SessionId(u64::MAX), work: None });
    assert_eq!(farm.control.counters().old_session, 1);
}

#[test]
fn two_workers_that_cannot_reach_each_other_make_images_each_by_itself() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    let beat = |farm: &mut Farm| {
        for (worker, session) in [("a", a), ("b", b)] {
            farm.hear(Input::Heartbeat { worker: id(worker), session, work: None });
        }
    };
    assert_eq!(farm.seats(&job, 0), ["a", "b"]);
    farm.blame("a", a, farm.epoch(&job, 0), 1);
    assert_eq!(assigned(&farm.wait(100)), [("a".to_owned(), 0)]);
    // Nor does b join at a step boundary, or another image that a makes.
    assert_eq!(stops(&farm.keep(&job, 0, 1)), []);
    let second = farm.submit(1);
    assert_eq!(farm.seats(&second, 0), ["b"]);
    beat(&mut farm);
    assert_eq!(stops(&farm.finish("b", b, farm.epoch(&second, 0))), []);
    // Somebody else may.
    let (_, outputs) = farm.join_as("c", hello("c"));
    assert_eq!(stops(&outputs), [("a".to_owned(), farm.epoch(&job, 0))]);
    farm.stop("a", a, farm.epoch(&job, 0));
    assert_eq!(farm.seats(&job, 0), ["a", "c"]);
}

#[test]
fn a_worker_that_reaches_nobody_soon_works_alone_and_fails_no_image() {
    let mut farm = Farm::new();
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let sessions = names.map(|name| farm.join(name));
    let job = farm.submit(1);
    let mut n_attempts = 1;
    while farm.seats(&job, 0).len() > 1 {
        assert_eq!(farm.seats(&job, 0)[0], "a");
        farm.blame("a", sessions[0], farm.epoch(&job, 0), 1);
        farm.wait(100);
        n_attempts += 1;
    }
    assert_eq!((n_attempts, farm.seats(&job, 0), farm.image(&job, 0).n_failures), (4, vec!["a".to_owned()], 0));
    // The others are well.
    let other = farm.submit(1);
    assert_eq!(farm.seats(&other, 0).len(), names.len() - 1);
}

#[test]
fn a_worker_that_begins_anew_is_given_another_chance_with_those_it_could_not_reach() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    farm.blame("a", a, farm.epoch(&job, 0), 1);
    farm.wait(100);
    assert_eq!(farm.seats(&job, 0), ["a"]);
    farm.hear(Input::Leave { worker: id("b"), session: b });
    farm.join("b");
    assert_eq!(stops(&farm.keep(&job, 0, 1)), [("a".to_owned(), farm.epoch(&job, 0))]);
}

#[test]
fn an_old_quarrel_is_forgotten() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    farm.blame("b", b, farm.epoch(&job, 0), 0);
    farm.wait(100);
    for _ in 0..=config().rift_ms / (TTL_MS / 2) {
        for (worker, session) in [("a", a), ("b", b)] {
            farm.hear(Input::Heartbeat { worker: id(worker), session, work: None });
        }
        farm.wait(TTL_MS / 2);
    }
    assert_eq!(stops(&farm.keep(&job, 0, 1)), [("a".to_owned(), farm.epoch(&job, 0))]);
}

#[test]
fn blame_among_those_who_lost_another_says_nothing_of_the_network() {
    let mut farm = Farm::new();
    let (a, _b, c) = (farm.join("a"), farm.join("b"), farm.join("c"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let rank_of_b = farm.seats(&job, 0).iter().position(|seat| seat == "b").expect("has a seat");
    farm.blame("a", a, epoch, rank_of_b as u16);
    farm.hear(Input::Leave { worker: id("c"), session: c });
    let mut seats = farm.seats(&job, 0);
    seats.sort();
    assert_eq!(seats, ["a", "b"]);
}
