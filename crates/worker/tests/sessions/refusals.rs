//! What is never taken, and workers that leave.

use tonic::{Code, Status};
use wire::v1::Cause;
use wire::v1::session_request::Message as Report;
use worker::Shutdown;

use super::fake::{Happened, Scene};

/// How an attempt ends whose rows and picture are answered so.
fn ends(rows: fn() -> Result<(), Status>, picture: fn() -> Result<(), Status>) -> Report {
    let mut scene = Scene::start();
    loop {
        match scene.next() {
            Happened::Joined(_, orders) => scene.welcome(&orders, 3000, (64, 2)),
            Happened::Rows(_, reply) => drop(reply.send(rows())),
            Happened::Picture(reply) => drop(reply.send(picture())),
            Happened::Said(report @ (Report::Finished(_) | Report::Failed(_))) => return report,
            Happened::Said(_) => {}
            Happened::Left => panic!("the session ended"),
        }
    }
}

fn never() -> Result<(), Status> {
    Err(Status::new(Code::InvalidArgument, "rows of another program"))
}

#[test]
fn rows_that_are_never_taken_fail_the_attempt_with_the_coordinator_s_words() {
    let Report::Failed(failed) = ends(never, || Ok(())) else { panic!("it cannot go on") };
    assert_eq!(failed.cause(), Cause::Bug);
    assert!(failed.message.contains("rows of another program (InvalidArgument)"), "{}", failed.message);
}

#[test]
fn a_picture_that_is_never_taken_fails_the_attempt_with_the_coordinator_s_words() {
    let Report::Failed(failed) = ends(|| Ok(()), never) else { panic!("it cannot go on") };
    assert_eq!(failed.cause(), Cause::Bug);
    assert!(failed.message.contains("does not take the picture: rows of another program"), "{}", failed.message);
}

#[test]
fn a_worker_that_is_told_to_end_at_once_says_that_it_leaves() {
    let mut scene = Scene::start();
    loop {
        match scene.next() {
            Happened::Joined(_, orders) => scene.welcome(&orders, 3000, (256, 500)),
            Happened::Rows(n, reply) => {
                drop(reply.send(Ok(())));
                if n == 1 {
                    scene.shutdown.send_replace(Shutdown::Now);
                }
            }
            Happened::Said(Report::Leave(_)) => break,
            Happened::Left => panic!("it left without a word"),
            _ => {}
        }
    }
}

#[test]
fn a_session_that_breaks_is_taken_up_again_with_the_attempt_at_work() {
    let mut scene = Scene::start();
    let mut first = None;
    loop {
        match scene.next() {
            Happened::Joined(join, orders) => match join.running {
                None => {
                    scene.welcome(&orders, 3000, (64, 60));
                    first = Some(orders);
                }
                Some(running) => {
                    assert_eq!((running.epoch, running.rank), (1, 0));
                    assert!(running.n_steps_done >= 1 && !running.is_decoding, "{running:?}");
                    break;
                }
            },
            Happened::Rows(n, reply) => {
                drop(reply.send(Ok(())));
                // As a proxy that restarts does it.
                let broken = first.take_if(|_| n == 2);
                if let Some(orders) = broken {
                    drop(orders.blocking_send(Err(Status::unavailable("the proxy restarts"))));
                }
            }
            Happened::Said(Report::Failed(failed)) => panic!("{failed:?}"),
            _ => {}
        }
    }
}
