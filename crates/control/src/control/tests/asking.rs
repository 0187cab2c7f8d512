//! What clients ask for and are answered.

use super::*;

fn check(answer: Result<JobId, ControlError>, expected: &str) {
    assert_eq!(answer.expect_err("must be refused").to_string(), expected);
}

#[test]
fn a_bad_wish_is_refused_by_its_value_and_the_way_out() {
    let mut farm = Farm::new();
    check(farm.ask("", spec(0)), "a job of 0 images is out of range: ask for 1 to 6");
    check(farm.ask("", spec(7)), "a job of 7 images is out of range: ask for 1 to 6");
    let job = farm.submit(6);
    check(farm.ask("", spec(3)), "6 images wait already, 8 is the limit: try again later");
    farm.submit(2);
    let unknown = JobId("gone".into());
    let message = "job `gone` is not known: `fresco list` shows those that are";
    check(farm.answer(|reply| Input::Cancel { job: unknown.clone(), reply }), message);
    check(farm.answer(|reply| Input::Retry { job: unknown, reply }), message);
    let nothing = format!("job `{job}` has no failed or cancelled image to render again");
    check(farm.answer(|reply| Input::Retry { job: job.clone(), reply }), &nothing);
    assert_eq!(farm.answer(|reply| Input::Cancel { job: job.clone(), reply }), Ok(job.clone()));
    check(farm.answer(|reply| Input::Cancel { job: job.clone(), reply }), &format!("job `{job}` is over already"));
    farm.submit(6);
    let full = "8 images wait already, 8 is the limit: try again later";
    check(farm.answer(|reply| Input::Retry { job: job.clone(), reply }), full);
}

#[test]
fn the_same_request_id_gives_the_same_job_and_refuses_another_wish_even_after_a_restart() {
    let mut farm = Farm::new();
    let job = farm.ask("mine", spec(2)).expect("the job is fine");
    for _ in 0..2 {
        assert_eq!(farm.ask("mine", spec(2)), Ok(job.clone()));
        let other = "request id `mine` was used for job `j1`, which asks for something else: choose another id";
        check(farm.ask("mine", spec(3)), other);
        farm.restart();
    }
    assert_eq!(farm.control.jobs().count(), 1);
}

#[test]
fn a_job_id_that_comes_twice_does_not_replace_the_job() {
    let mut farm = Farm::new();
    let job = farm.submit(2);
    let again = |spec| |reply| Input::Submit { job: JobId("j1".into()), request_id: String::new(), spec, reply };
    assert_eq!(farm.answer(again(spec(2))), Ok(job.clone()));
    assert!(farm.answer(again(spec(1))).is_err());
    assert_eq!(farm.control.job(&job).map(|job| job.images.len()), Some(2));
}

#[test]
fn seeds_count_up_and_wrap() {
    let mut farm = Farm::new();
    let job = farm.submit(2);
    let job = farm.control.job(&job).expect("the job is known");
    assert_eq!((job.request(ImageIdx(0)).seed, job.request(ImageIdx(1)).seed), (u64::MAX, 0));
}

#[test]
fn cancelling_ends_all_ranks_at_once_and_late_results_change_nothing() {
    let mut farm = Farm::new();
    let (a, b) = (farm.join("a"), farm.join("b"));
    let job = farm.submit(1);
    let epoch = farm.epoch(&job, 0);
    assert_eq!(farm.seats(&job, 0), ["a", "b"]);
    let outputs = farm.hear(Input::Cancel { job: job.clone(), reply: ReplyId(7) });
    assert_eq!(aborted(&outputs), ["a", "b"]);
    assert!(outputs.iter().any(|output| matches!(output, Output::DropCheckpoint { .. })));
    assert_eq!(farm.finish("a", a, epoch), []);
    assert_eq!(farm.fail("b", b, epoch, Cause::Peer), []);
    assert_eq!(farm.hear(Input::StepKept { epoch, n_steps_done: 1 }), []);
    assert_eq!(farm.hear(Input::ArtifactRefused { epoch, message: "full".into() }), []);
    assert_eq!(farm.image(&job, 0).phase, Phase::Cancelled);
    assert_eq!(farm.control.counters().old_epoch, 4);
}

#[test]
fn a_job_is_partly_failed_when_its_last_image_is_done_and_only_the_failed_one_goes_again() {
    let mut farm = Farm::new();
    let a = farm.join("a");
    let job = farm.submit(2);
    let phase = |farm: &Farm| farm.control.job(&job).expect("the job is known").phase();
    farm.fail("a", a, farm.epoch(&job, 0), Cause::Input);
    assert_eq!((phase(&farm), farm.image(&job, 1).phase), (Phase::Running, Phase::Running));
    farm.finish("a", a, farm.epoch(&job, 1));
    assert_eq!(phase(&farm), Phase::Failed);
    assert_eq!(farm.answer(|reply| Input::Retry { job: job.clone(), reply }), Ok(job.clone()));
    assert_eq!((farm.image(&job, 0).phase, farm.image(&job, 1).phase), (Phase::Running, Phase::Done));
    farm.finish("a", a, farm.epoch(&job, 0));
    assert_eq!(phase(&farm), Phase::Done);
}

#[test]
fn revisions_of_a_job_rise_by_one_and_survive_a_restart() {
    let mut farm = Farm::new();
    farm.join("a");
    let job = farm.submit(1);
    let revision = |farm: &Farm| farm.control.job(&job).expect("the job is known").revision;
    for n in 1..4 {
        let before = revision(&farm);
        let outputs = farm.keep(&job, 0, n);
        let told = outputs.iter().find_map(|output| match output {
            Output::Event(event) => Some((event.revision, event.n_steps_done, event.n_steps)),
            _ => None,
        });
        assert_eq!(told, Some((before + 1, n, 20)));
        farm.restart();
        assert_eq!(revision(&farm), before + 1);
    }
}

fn forgotten(outputs: &[Output]) -> Vec<(String, Vec<String>)> {
    let forget = |output: &Output| match output {
        Output::Forget { job, artifacts, .. } => Some((job.0.clone(), artifacts.clone())),
        _ => None,
    };
    outputs.iter().filter_map(forget).collect()
}

#[test]
fn a_job_that_is_over_can_be_deleted_and_its_request_id_used_again() {
    let mut farm = Farm::new();
    let job = farm.ask("mine", spec(2)).expect("the job is fine");
    check(
        farm.answer(|reply| Input::Delete { job: job.clone(), reply }),
        "job `j1` is not over: `fresco cancel j1` ends it",
    );
    farm.answer(|reply| Input::Cancel { job: job.clone(), reply }).expect("it is cancelled");
    let outputs = farm.hear(Input::Delete { job: job.clone(), reply: ReplyId(99) });
    assert_eq!(forgotten(&outputs), [("j1".to_owned(), Vec::new())]);
    let replies = outputs.iter().filter(|output| matches!(output, Output::Reply { answer: Ok(_), .. })).count();
    assert!(replies == 1 && matches!(outputs.last(), Some(Output::Reply { .. })), "{outputs:?}");
    assert!(farm.control.job(&job).is_none());
    let message = "job `j1` is not known: `fresco list` shows those that are";
    check(farm.answer(|reply| Input::Delete { job: job.clone(), reply }), message);
    let again = farm.ask("mine", spec(1)).expect("the name is free");
    assert_ne!(again, job);
}

#[test]
fn a_picture_goes_with_the_last_job_that_has_it() {
    let mut farm = Farm::new();
    let jobs = [farm.submit(1), farm.submit(1)];
    let session = farm.join("a");
    for job in &jobs {
        let epoch = farm.epoch(job, 0);
        farm.finish("a", session, epoch);
    }
    farm.restart();
    for (job, goes) in jobs.iter().zip([vec![], vec!["cafe".to_owned()]]) {
        assert!(farm.control.has_picture("cafe"));
        let outputs = farm.hear(Input::Delete { job: job.clone(), reply: ReplyId(99) });
        assert_eq!(forgotten(&outputs), [(job.0.clone(), goes)]);
    }
    assert!(!farm.control.has_picture("cafe"));
}
