//! Who is let in, and what becomes of seats when sessions break and coordinators die.

use super::*;

#[test]
fn a_worker_that_does_not_fit_is_refused_by_name_with_the_way_out() {
    let mut farm = Farm::new();
    let version = farm.refused("b", Hello { version: "0.9".into(), ..hello("b") });
    assert_eq!(version, "it runs version 0.9, this farm 1.0: install 1.0 there");
    farm.join("a");
    let other = vec![facts("demo", "fedcba9876543210")];
    let weights = farm.refused("b", Hello { models: other.clone(), ..hello("b") });
    assert_eq!(
        weights,
        "its model `demo` has the sha256 fedcba987654, that of worker `a` 0123456789ab (other noise schedule): copy that model's \
         folder, or give one of them another name"
    );
    let two = farm.refused("b", Hello { models: vec![facts("x", "1"), facts("x", "2")], ..hello("b") });
    assert_eq!(two, "it has two models named `x`: give one of them another name");
    assert_eq!(farm.control.counters().refused, 3);
}

#[test]
fn weights_hold_a_name_while_a_job_that_began_with_them_is_unfinished() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    farm.keep(&job, 0, 1);
    farm.hear(Input::Leave { worker: id("a"), session: a });
    let other = Hello { models: vec![facts("demo", "fedcba9876543210")], ..hello("b") };
    assert_eq!(
        farm.refused("b", other.clone()),
        "its model `demo` has the sha256 fedcba987654, job `j2` began with 0123456789ab: copy that model's \
         folder, give this one another name, or cancel that job"
    );
    assert_eq!(farm.answer(|reply| Input::Cancel { job: job.clone(), reply }), Ok(job));
    assert!(matches!(farm.join_as("b", other).1.as_slice(), [Output::Welcome { .. }]));
}

#[test]
fn a_name_is_taken_until_its_worker_left_or_its_lease_ended() {
    let mut farm = Farm::new();
    let taken = "a worker named `a` is here already: give this one another name with --name";
    let first = farm.join("a");
    assert_eq!(farm.refused("a", hello("second")), taken);
    farm.hear(Input::Leave { worker: id("a"), session: first });
    let (second, _) = farm.join_as("a", hello("second"));
    farm.now += TTL_MS - 1;
    assert_eq!(farm.refused("a", hello("third")), taken);
    farm.now += 1;
    let (_, outputs) = farm.join_as("a", hello("third"));
    assert!(
        outputs.contains(&Output::Expel { worker: id("a"), session: second, why: Expelled::LeaseEnded }),
        "{outputs:?}"
    );
    assert_eq!(farm.control.n_members(), 1);
}

#[test]
fn a_session_that_was_taken_up_again_leaves_the_old_one_without_a_voice() {
    let mut farm = Farm::new();
    let old = farm.join("a");
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let running = Some(Running { epoch, rank: plan::Rank(0), is_decoding: false });
    let (session, outputs) = farm.join_as("a", Hello { running, ..hello("a") });
    assert_eq!(assigned(&outputs), []);
    assert_eq!(farm.hear(Input::Leave { worker: id("a"), session: old }), []);
    assert_eq!(farm.finish("a", old, epoch), []);
    assert_eq!(farm.hear(Input::Drain { worker: id("a"), session: old }), []);
    assert_eq!(farm.hear(Input::Join { worker: id("a"), session: old, hello: hello("a") }), []);
    assert_eq!(farm.control.counters().old_session, 3);
    assert_eq!(farm.epoch(&job, 0), epoch);
    farm.finish("a", session, epoch);
    assert_eq!(farm.image(&job, 0).phase, Phase::Done);
}

#[test]
fn a_lease_lives_on_heartbeats_and_ends_without_them() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    for _ in 0..5 {
        assert_eq!(farm.wait(TTL_MS - 1), []);
        assert_eq!(farm.hear(Input::Heartbeat { worker: id("a"), session: a, work: None }), []);
    }
    assert_eq!(farm.wait(TTL_MS - 1), []);
    assert_eq!(farm.wait(1), [Output::Expel { worker: id("a"), session: a, why: Expelled::LeaseEnded }]);
    assert_eq!((farm.control.n_members(), farm.control.poll_timeout()), (0, None));
}

#[test]
fn an_order_to_stop_is_given_again_when_the_session_broke_before_it_came_through() {
    let mut farm = Farm::new();
    farm.join("a");
    let b = farm.join("b");
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let outputs = farm.hear(Input::Drain { worker: id("b"), session: b });
    assert_eq!(stops(&outputs), [("a".to_owned(), epoch)]);
    let running = Some(Running { epoch, rank: plan::Rank(0), is_decoding: false });
    let (_, outputs) = farm.join_as("a", Hello { running, ..hello("a") });
    assert_eq!(stops(&outputs), [("a".to_owned(), epoch)]);
}

#[test]
fn ranks_that_come_back_after_a_restart_go_on_undisturbed() {
    let mut farm = Farm::new();
    farm.join("a");
    farm.join("b");
    let job = farm.submit(1);
    farm.keep(&job, 0, 3);
    let epoch = farm.epoch(&job, 0);
    farm.restart();
    // Steps are kept while not all of them are back.
    farm.hear(Input::StepKept { epoch, n_steps_done: 4 });
    for (rank, worker) in ["a", "b"].into_iter().enumerate() {
        let running = Some(Running { epoch, rank: plan::Rank(rank as u16), is_decoding: false });
        let (_, outputs) = farm.join_as(worker, Hello { running, ..hello(worker) });
        assert!(matches!(outputs.as_slice(), [Output::Welcome { .. }]), "{outputs:?}");
    }
    for n in 5..20 {
        farm.now += 1_000;
        farm.hear(Input::Heartbeat { worker: id("a"), session: SessionId(farm.n_ids - 1), work: None });
        farm.hear(Input::Heartbeat { worker: id("b"), session: SessionId(farm.n_ids), work: None });
        farm.keep(&job, 0, n);
    }
    assert_eq!(farm.epoch(&job, 0), epoch);
}

#[test]
fn a_rank_that_does_not_come_back_is_replaced_under_a_higher_epoch() {
    let mut farm = Farm::new();
    farm.join("a");
    farm.join("b");
    let job = farm.submit(1);
    farm.keep(&job, 0, 3);
    let epoch = farm.epoch(&job, 0);
    farm.restart();
    let running = Some(Running { epoch, rank: plan::Rank(0), is_decoding: false });
    let (a, outputs) = farm.join_as("a", Hello { running, ..hello("a") });
    assert_eq!(assigned(&outputs), []);
    let mut outputs = Vec::new();
    while farm.now < config().reattach_ms {
        assert_eq!(assigned(&outputs), []);
        farm.now += 1_000;
        outputs = farm.hear(Input::Heartbeat { worker: id("a"), session: a, work: None });
    }
    assert_eq!((aborted(&outputs), assigned(&outputs)), (vec!["a".to_owned()], vec![("a".to_owned(), 3)]));
    assert!(farm.epoch(&job, 0) > epoch);
}

#[test]
fn a_process_that_began_anew_does_not_hold_up_its_image() {
    let mut farm = Farm::new();
    farm.join("a");
    let job = farm.submit(1);
    farm.keep(&job, 0, 3);
    farm.restart();
    let (_, outputs) = farm.join_as("a", hello("another"));
    assert_eq!(assigned(&outputs), [("a".to_owned(), 3)]);
    assert_eq!(farm.image(&job, 0).message, "worker a began anew");
}

#[test]
fn a_part_that_ended_while_the_session_was_broken_may_still_say_how() {
    for says_how in [true, false] {
        let mut farm = Farm::new();
        farm.join("a");
        let job = farm.submit(1);
        farm.keep(&job, 0, 19);
        let epoch = farm.epoch(&job, 0);
        farm.restart();
        let (a, outputs) = farm.join_as("a", hello("a"));
        assert!(matches!(outputs.as_slice(), [Output::Welcome { .. }]), "{outputs:?}");
        if says_how {
            farm.finish("a", a, epoch);
            assert_eq!(farm.image(&job, 0).phase, Phase::Done);
        } else {
            assert_eq!(assigned(&farm.wait(TTL_MS / 3)), [("a".to_owned(), 19)]);
            assert_eq!(farm.image(&job, 0).message, "worker a ended its part and did not say how");
        }
    }
}

#[test]
fn a_worker_that_is_at_something_old_is_told_to_drop_it() {
    let mut farm = Farm::new();
    let running = Some(Running { epoch: Epoch(9), rank: plan::Rank(3), is_decoding: false });
    let (session, outputs) = farm.join_as("a", Hello { running, ..hello("a") });
    assert!(outputs.contains(&Output::Abort { worker: id("a"), session, epoch: Epoch(9) }), "{outputs:?}");
}

#[test]
fn records_that_do_not_fit_together_leave_nothing_running_for_ever() {
    let mut farm = Farm::new();
    farm.join("a");
    let job = farm.submit(1);
    let image = ImageId { job: job.clone(), image: ImageIdx(0) };
    let running = Image { phase: Phase::Running, epoch: Some(Epoch(5)), ..Image::new() };
    let record = |id: ImageId| Record::Image { id, revision: 9, image: Box::new(running.clone()), attempt: None };
    farm.written.push(record(image));
    farm.written.push(record(ImageId { job: JobId("lost".into()), image: ImageIdx(0) }));
    farm.restart();
    assert_eq!(farm.image(&job, 0).phase, Phase::Queued);
}

/// Both workers of a farm with an image each, some steps done.
fn two_at_work() -> (Farm, JobId, [SessionId; 2]) {
    let mut farm = Farm::new();
    let sessions = ["a", "b"].map(|name| farm.join(name));
    let job = farm.submit(2);
    farm.keep(&job, 0, 3);
    farm.keep(&job, 1, 5);
    (farm, job, sessions)
}

#[test]
fn sessions_that_all_break_at_once_repeat_no_step() {
    let (mut farm, job, sessions) = two_at_work();
    let epochs = [farm.epoch(&job, 0), farm.epoch(&job, 1)];
    for (name, session) in ["a", "b"].into_iter().zip(sessions) {
        assert_eq!(farm.hear(Input::Left { worker: id(name), session }), []);
    }
    assert_eq!(farm.wait(900), []);
    for (name, epoch) in ["a", "b"].into_iter().zip(epochs) {
        let running = Some(Running { epoch, rank: plan::Rank(0), is_decoding: false });
        let (_, outputs) = farm.join_as(name, Hello { running, ..hello(name) });
        assert_eq!((aborted(&outputs), assigned(&outputs)), (vec![], vec![]));
    }
    assert_eq!([farm.epoch(&job, 0), farm.epoch(&job, 1)], epochs);
    assert_eq!((farm.image(&job, 0).n_losses, farm.control.counters().cut_by_loss), (0, 0));
}

#[test]
fn a_worker_that_is_not_back_within_a_second_has_lost_its_work() {
    let (mut farm, job, [a, _]) = two_at_work();
    farm.hear(Input::Left { worker: id("a"), session: a });
    assert_eq!(farm.wait(999), []);
    let outputs = farm.wait(1);
    assert!(matches!(outputs.first(), Some(Output::Expel { worker, .. }) if *worker == id("a")), "{outputs:?}");
    assert_eq!(farm.image(&job, 0).message, "worker a was lost");
}

#[test]
fn a_worker_without_a_session_is_given_nothing() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    farm.hear(Input::Left { worker: id("a"), session: a });
    let job = farm.submit(1);
    assert_eq!(farm.image(&job, 0).phase, Phase::Queued);
    let (_, outputs) = farm.join_as("a", hello("a"));
    assert_eq!(assigned(&outputs), [("a".to_owned(), 0)]);
}

#[test]
fn another_process_may_take_the_name_of_one_whose_session_is_broken() {
    let (mut farm, job, [a, _]) = two_at_work();
    farm.hear(Input::Left { worker: id("a"), session: a });
    let (_, outputs) = farm.join_as("a", hello("second"));
    assert!(outputs.iter().any(|output| matches!(output, Output::Welcome { .. })), "{outputs:?}");
    assert_eq!(assigned(&outputs), [("a".to_owned(), 3)], "from the last step kept");
    assert_eq!(farm.seats(&job, 0), ["a"]);
}
