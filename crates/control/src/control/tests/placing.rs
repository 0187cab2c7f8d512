//! Who gets which image, who makes room for others, and what those who wait are told.

use super::*;

#[test]
fn images_come_first_and_what_is_left_is_shared() {
    let mut farm = Farm::new();
    let job = farm.submit(2);
    assert_eq!(assigned(&farm.outputs()), []);
    for worker in ["a", "b", "c"] {
        farm.join(worker);
    }
    assert_eq!((farm.seats(&job, 0), farm.seats(&job, 1)), (vec!["a".to_owned()], vec!["b".to_owned()]));
    // The third joins one image at its next step boundary, not both.
    let outputs = [farm.keep(&job, 0, 1), farm.keep(&job, 1, 1)].concat();
    assert_eq!(stops(&outputs), [("a".to_owned(), farm.epoch(&job, 0))]);
}

#[test]
fn members_of_equal_speed_are_shared_evenly() {
    let mut farm = Farm::new();
    for worker in ["a", "b", "c", "d"] {
        farm.join(worker);
    }
    let first = farm.submit(1);
    assert_eq!(farm.seats(&first, 0).len(), 4);
    let second = farm.submit(1);
    let epoch = farm.epoch(&first, 0);
    let outputs = farm.keep(&first, 0, 1);
    assert_eq!(stops(&outputs), [("a".to_owned(), epoch)]);
    for worker in farm.seats(&first, 0) {
        let session = session_of(&farm, &worker);
        farm.stop(&worker, session, epoch);
    }
    assert_eq!((farm.seats(&first, 0).len(), farm.seats(&second, 0).len()), (2, 2));
}

#[test]
fn an_attempt_stops_only_when_all_its_ranks_have() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    let outputs = farm.hear(Input::Drain { worker: id("b"), session: b });
    assert_eq!(stops(&outputs), [("a".to_owned(), epoch)]);
    farm.keep(&job, 0, 1);
    assert_eq!(farm.stop("a", a, epoch), []);
    assert_eq!(farm.stop("a", a, epoch), []);
    let outputs = farm.stop("b", b, epoch);
    assert_eq!((assigned(&outputs), aborted(&outputs)), (vec![("a".to_owned(), 1)], Vec::new()));
    assert!(outputs.contains(&Output::Drained { worker: id("b"), session: b }), "{outputs:?}");
    assert_eq!(farm.image(&job, 0).n_losses, 0);
    // What it says afterwards is of the past.
    assert_eq!(farm.hear(Input::Heartbeat { worker: id("b"), session: b, work: None }), []);
    assert_eq!(farm.hear(Input::Leave { worker: id("b"), session: b }), []);
}

#[test]
fn a_worker_that_drains_with_nothing_to_do_is_told_at_once() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let outputs = farm.hear(Input::Drain { worker: id("a"), session: a });
    assert_eq!(outputs, [Output::Drained { worker: id("a"), session: a }]);
}

#[test]
fn nothing_stops_before_its_last_step_or_in_its_decode() {
    let mut farm = Farm::new();
    farm.join("a");
    let b = farm.join("b");
    let job = farm.submit(1);
    farm.keep(&job, 0, 19);
    assert_eq!(stops(&farm.hear(Input::Drain { worker: id("b"), session: b })), []);
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    farm.keep(&job, 0, 10);
    let epoch = farm.epoch(&job, 0);
    farm.hear(Input::Decoding { worker: id("a"), session: a, epoch });
    let (_, outputs) = farm.join_as("b", hello("b"));
    assert_eq!(stops(&outputs), []);
    assert_eq!(stops(&farm.hear(Input::Drain { worker: id("a"), session: a })), []);
}

#[test]
fn a_worker_that_would_not_help_is_left_out_without_a_stop() {
    let mut farm = Farm::new();
    farm.join("a");
    let job = farm.submit(1);
    farm.join_as("b", Hello { flop_per_s: 1e6, ..hello("b") });
    for n in 1..19 {
        assert_eq!(stops(&farm.keep(&job, 0, n)), [], "at step {n}");
    }
    farm.join_as("c", Hello { flop_per_s: f64::NAN, ..hello("c") });
    assert_eq!(farm.seats(&job, 0), ["a"]);
}

#[test]
fn an_image_stays_in_the_numeric_class_it_began_in_and_says_what_it_waits_for() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    farm.keep(&job, 0, 1);
    farm.join_as("b", Hello { numeric_class: "avx2".into(), ..hello("b") });
    assert_eq!(stops(&farm.keep(&job, 0, 2)), [], "b's bytes would differ");
    farm.hear(Input::Leave { worker: id("a"), session: a });
    let image = farm.image(&job, 0);
    let message = "waits for a worker of numeric class avx512, in which it began";
    assert_eq!((image.phase, image.message.as_str()), (Phase::Queued, message));
    farm.join("a");
    assert_eq!((farm.seats(&job, 0), farm.image(&job, 0).message.as_str()), (vec!["a".to_owned()], ""));
}

#[test]
fn rows_another_class_left_behind_are_dropped_before_an_image_begins_anew() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(1);
    farm.hear(Input::Leave { worker: id("a"), session: a });
    let (_, outputs) = farm.join_as("b", Hello { numeric_class: "avx2".into(), ..hello("b") });
    let drop = outputs.iter().position(|output| matches!(output, Output::DropCheckpoint { .. }));
    let assign = outputs.iter().position(|output| matches!(output, Output::Assign { .. }));
    assert!(drop.is_some() && drop < assign, "{outputs:?}");
    assert_eq!(farm.seats(&job, 0), ["b"]);
}

#[test]
fn without_workers_jobs_wait_and_say_so_until_there_is_one() {
    let mut farm = Farm::new();
    let job = farm.submit(3);
    let said = |farm: &Farm, idx| farm.image(&job, idx).message.clone();
    let message = "waits for a worker that has the model `demo`";
    assert_eq!(said(&farm, 0), message);
    let other = vec![facts("other", "0123456789abcdef")];
    farm.join_as("b", Hello { models: other, ..hello("b") });
    assert_eq!((said(&farm, 0), farm.image(&job, 0).phase), (message.into(), Phase::Queued));
    let a = farm.join("a");
    assert_eq!([said(&farm, 0), said(&farm, 1), said(&farm, 2)], ["", "", ""]);
    farm.keep(&job, 0, 5);
    farm.hear(Input::Leave { worker: id("a"), session: a });
    assert_eq!((said(&farm, 0), said(&farm, 1)), (message.into(), message.into()));
    assert_eq!(farm.control.poll_timeout(), Some(Millis(TTL_MS)), "b's lease, and nothing else to wake up for");
}

#[test]
fn an_epoch_is_written_down_before_it_is_given_out() {
    let mut farm = Farm::new();
    farm.join("a");
    farm.control.handle(
        Millis(0),
        Input::Submit { job: JobId("j".into()), request_id: String::new(), spec: spec(1), reply: ReplyId(0) },
    );
    let outputs: Vec<Output> = std::iter::from_fn(|| farm.control.poll_output()).collect();
    let at = |is: fn(&Output) -> bool| outputs.iter().position(is).expect("it happens");
    let is_epoch = |record: &Record| matches!(record, Record::NextEpoch(Epoch(2)));
    let job = at(|output| matches!(output, Output::Persist(record) if matches!(**record, Record::Job { .. })));
    let epoch = outputs.iter().position(|output| matches!(output, Output::Persist(record) if is_epoch(record)));
    let assign = at(|output| matches!(output, Output::Assign { .. }));
    assert!(epoch.is_some_and(|epoch| epoch < assign), "{outputs:?}");
    assert!(job < at(|output| matches!(output, Output::Reply { .. })), "{outputs:?}");
}

#[test]
fn an_image_stops_no_team_whose_members_it_is_spared() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let spared = farm.submit(1);
    // It broke at both, and at whoever else there was; c is here and busy with something else.
    farm.fail("a", a, farm.epoch(&spared, 0), Cause::Device);
    farm.wait(100);
    farm.fail("b", b, farm.epoch(&spared, 0), Cause::Device);
    let models = [hello("c").models, vec![facts("other", "cd")]].concat();
    farm.join_as("c", Hello { models, ..hello("c") });
    let busy = farm.answer(|reply| {
        let spec = JobSpec { model: "other".into(), ..spec(1) };
        Input::Submit { job: JobId("busy".into()), request_id: String::new(), spec, reply }
    });
    assert_eq!(farm.seats(&busy.expect("is taken"), 0), ["c"]);
    farm.wait_alive(500);
    farm.prove("a", a);
    farm.prove("b", b);
    let shared = farm.submit(1);
    assert_eq!(farm.seats(&shared, 0), ["a", "b"]);
    farm.wait(400);
    assert_eq!(farm.image(&spared, 0).phase, Phase::Queued, "it waits for c");
    assert_eq!(stops(&farm.keep(&shared, 0, 1)), []);
}

#[test]
fn a_worker_too_slow_for_a_seat_is_tried_again_in_time() {
    let mut farm = Farm::new();
    let with_speed = |name: &str, flop_per_s| Hello { flop_per_s, ..hello(name) };
    let (a, _) = farm.join_as("a", with_speed("a", 1e12));
    farm.join_as("b", with_speed("b", 1e12));
    // Something else took its cores for a while.
    farm.control.members.get_mut(&id("b")).expect("is in").speed = 1e9;
    let mut n_images = 0;
    let seats = loop {
        let job = farm.submit(1);
        let (seats, epoch) = (farm.seats(&job, 0), farm.epoch(&job, 0));
        if seats.len() == 2 {
            break seats;
        }
        farm.finish("a", a, epoch);
        n_images += 1;
        assert!(n_images < 200, "it never was");
    };
    assert_eq!(seats, ["a", "b"]);
    assert!(n_images > 5, "it was after {n_images} images");
}
