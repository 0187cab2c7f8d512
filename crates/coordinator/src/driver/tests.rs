//! The one loop under a clock that tests hand in: stops, graces, late messages.

use plan::WorkerId;

use super::*;
use crate::testing::{self, Coordinator, LEASE_MS};

mod outages;

fn id(worker: &str) -> WorkerId {
    WorkerId(worker.to_owned())
}

fn heartbeat(worker: &str, session: u64) -> Message {
    Message::Do(Input::Heartbeat { worker: id(worker), session: SessionId(session), work: None })
}

fn join(worker: &str, session: u64, hello: control::Hello) -> Message {
    let session = SessionId(session);
    Message::Join { session, orders: mpsc::channel(8).0, input: Input::Join { worker: id(worker), session, hello } }
}

fn members(driver: &Driver) -> Vec<WorkerId> {
    driver.control.members().map(|view| view.worker).collect()
}

/// A driver with the members a and b, whose sessions are 1 and 2, and its clock in milliseconds.
fn driver() -> (Driver, impl Fn(u64) -> Instant) {
    let started = Instant::now();
    let mut driver = Coordinator::new(started).driver;
    for (worker, session) in [("a", 1), ("b", 2)] {
        driver.turn(started, Some((started, join(worker, session, testing::hello()))));
    }
    assert_eq!(members(&driver), [id("a"), id("b")]);
    (driver, move |ms| started + Duration::from_millis(ms))
}

#[tokio::test]
async fn a_flood_of_questions_keeps_no_lease_alive() {
    let (mut driver, at) = driver();
    let ask = || Message::Ask(Box::new(|_: &Control| {}));
    driver.turn(at(LEASE_MS - 1), Some((at(LEASE_MS - 1), ask())));
    assert_eq!(members(&driver).len(), 2);
    driver.turn(at(LEASE_MS), Some((at(LEASE_MS), ask())));
    assert_eq!(members(&driver), []);
}

#[tokio::test]
async fn what_was_heard_in_time_counts_though_the_clock_is_further() {
    let (mut driver, at) = driver();
    driver.turn(at(LEASE_MS + 50), Some((at(LEASE_MS - 50), heartbeat("a", 1))));
    driver.turn(at(LEASE_MS + 50), None);
    assert_eq!(members(&driver), [id("a")]);
}

#[tokio::test]
async fn a_coordinator_that_was_stopped_hears_its_members_before_it_gives_them_up() {
    let (mut driver, at) = driver();
    // The clock first, or whoever is read first: neither ends a lease.
    driver.turn(at(60_000), None);
    driver.turn(at(60_001), Some((at(60_001), heartbeat("a", 1))));
    assert_eq!(members(&driver), [id("a"), id("b")]);
    driver.turn(at(60_000 + LEASE_MS / 3), None);
    assert_eq!(members(&driver), [id("a")], "b had its grace");
    driver.turn(at(60_000 + 2 * LEASE_MS), None);
    assert_eq!(members(&driver), [id("a")], "another stop is another grace");
}

#[tokio::test]
async fn a_worker_that_hung_up_on_a_stopped_coordinator_has_the_grace_to_come_again() {
    let (mut driver, at) = driver();
    let left = |worker: &str, session| Message::Do(Input::Left { worker: id(worker), session: SessionId(session) });
    driver.turn(at(60_000), Some((at(60_000), left("a", 1))));
    driver.turn(at(60_001), Some((at(60_001), left("b", 2))));
    assert_eq!(members(&driver), [id("a"), id("b")]);
    driver.turn(at(60_002), Some((at(60_002), join("a", 3, testing::hello()))));
    driver.turn(at(60_000 + LEASE_MS / 3), None);
    driver.turn(at(60_000 + LEASE_MS / 3 + 1), None);
    assert_eq!(members(&driver), [id("a")], "b did not come");
}

#[tokio::test]
async fn a_process_that_died_while_the_coordinator_was_stopped_makes_room_for_its_successor() {
    let (mut driver, at) = driver();
    let left = Input::Left { worker: id("a"), session: SessionId(1) };
    driver.turn(at(60_000), Some((at(60_000), Message::Do(left))));
    let hello = control::Hello { incarnation: "second".into(), ..testing::hello() };
    driver.turn(at(60_001), Some((at(60_001), join("a", 3, hello))));
    let sessions: Vec<_> = driver.control.members().map(|view| view.session).collect();
    assert_eq!(sessions, [SessionId(3), SessionId(2)]);
}

#[tokio::test]
async fn a_driver_that_is_behind_with_what_it_heard_was_not_stopped() {
    let (mut driver, at) = driver();
    for heard in [LEASE_MS - 200, LEASE_MS - 100, LEASE_MS + 10] {
        driver.turn(at(60_000), Some((at(heard), heartbeat("a", 1))));
    }
    assert_eq!(members(&driver), [id("a")], "b was silent, and a was not");
}

#[tokio::test]
async fn a_lease_ends_in_time_when_nothing_was_stopped() {
    let (mut driver, at) = driver();
    driver.turn(at(1_000), Some((at(1_000), heartbeat("a", 1))));
    driver.turn(at(LEASE_MS + 20), None);
    assert_eq!(members(&driver), [id("a")]);
}
