//! Commands that wait for a job while its coordinator is stopped or gone, and how workers leave one.

use std::process::Stdio;

use super::{Farm, PICTURE, Process, check_steps};
use crate::desk::FRESCO;

/// Starts a command of a client whose standard error is read.
fn start(farm: &Farm, args: &[&str]) -> Process {
    let args = [args, &["--coordinator", &farm.url]].concat();
    Process::start(farm.desk.command(FRESCO, &args).stdin(Stdio::null()))
}

const AWAY: &str = "does not answer: waiting for it";

#[test]
fn a_coordinator_that_is_stopped_is_waited_for_and_that_is_said_once() {
    let farm = Farm::start();
    let job = farm.submit(21);
    let mut watch = farm.watch(&job);
    assert!(watch.until(|_| true));
    let submit = [&["submit"], &PICTURE[..], &["--wait"]].concat();
    let waiting = [start(&farm, &["wait", &job]), start(&farm, &submit)];
    for command in &waiting {
        command.until_it_says("waits for a worker");
    }
    let coordinator = farm.coordinator.as_ref().expect("it runs");
    coordinator.signal("-STOP");
    // Those that begin meanwhile are no worse off.
    let late = [start(&farm, &["wait", &job]), start(&farm, &submit)];
    for command in waiting.iter().chain(&late) {
        command.until_it_says(AWAY);
    }
    coordinator.signal("-CONT");
    let _worker = farm.worker("a");
    for command in waiting.into_iter().chain(late) {
        let (code, said) = command.rest();
        assert_eq!(code, Some(0), "{said:?}");
        assert!(!said.iter().any(|line| line.contains(AWAY)), "said twice: {said:?}");
    }
    check_steps(watch.rest());
    let jobs = farm.call(&["list"]).quiet().stdout;
    assert_eq!(jobs.lines().count(), 3, "a job that was asked for twice is made once: {jobs}");
}

#[test]
fn a_coordinator_that_is_gone_for_a_while_is_waited_for() {
    let mut farm = Farm::start();
    let job = farm.submit(22);
    let waiting = [start(&farm, &["wait", &job]), start(&farm, &[&["submit"], &PICTURE[..], &["--wait"]].concat())];
    for command in &waiting {
        command.until_it_says("waits for a worker");
    }
    farm.coordinator.take().expect("it runs").kill();
    for command in &waiting {
        command.until_it_says(AWAY);
    }
    farm.start_coordinator();
    let _worker = farm.worker("a");
    for command in waiting {
        let (code, said) = command.rest();
        assert_eq!(code, Some(0), "{said:?}");
    }
}

#[test]
fn an_interrupted_command_ends_while_it_waits_for_its_coordinator() {
    let mut farm = Farm::start();
    let job = farm.submit(23);
    let waiting = start(&farm, &["wait", &job]);
    waiting.until_it_says("waits for a worker");
    farm.coordinator.take().expect("it runs").kill();
    waiting.until_it_says(AWAY);
    waiting.signal("-INT");
    assert_ne!(waiting.wait(), Some(0));
    // A farm that is not there from the start is not waited for.
    farm.call(&["wait", &job]).refused(9, &[&farm.url, "fresco serve"]);
}

#[test]
fn an_idle_worker_that_is_drained_leaves_without_a_warning() {
    let mut farm = Farm::start();
    for name in ["a", "b"] {
        let worker = farm.worker(name);
        worker.until_it_says("joined");
        worker.signal("-TERM");
        assert_eq!(worker.wait(), Some(0));
    }
    let coordinator = farm.coordinator.take().expect("it runs");
    coordinator.signal("-TERM");
    let (code, said) = coordinator.rest();
    assert_eq!(code, Some(0));
    assert!(said.iter().all(|line| line.contains(" INFO ")), "{said:?}");
}
