//! The driver over a store that is slow, away, or done with it. Time is virtual.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::Poll;

use plan::WorkerId;
use store::{MemoryStore, Store, Term, Txn};

use super::*;
use crate::store_thread::settle;
use crate::testing::{self, Coordinator, Farm, spec};

/// What goes wrong with a commit.
#[derive(Clone, Copy)]
enum Fault {
    /// Nothing is written.
    Away,
    /// It is written, and nobody is told.
    Unanswered,
    /// Somebody else leads.
    Deposed,
    /// Somebody else has written.
    Conflict,
}

/// A store whose commits take a while and go wrong as a test has it.
struct Faulty {
    store: Arc<MemoryStore>,
    takes: Duration,
    away_until: Instant,
    faults: Arc<Mutex<VecDeque<Fault>>>,
}

impl Writer for Faulty {
    fn write(&mut self, txn: Arc<Txn>, is_unsure: bool) -> BoxFuture<'static, Result<Revision, StoreError>> {
        let (store, takes, away_until) = (Arc::clone(&self.store), self.takes, self.away_until);
        let faults = Arc::clone(&self.faults);
        Box::pin(async move {
            tokio::time::sleep(takes).await;
            let fault = faults.lock().expect("nobody panicked").pop_front();
            let away =
                || StoreError::Unavailable { place: "of tests".into(), reason: "no space left on device".into() };
            match fault {
                _ if Instant::now() < away_until => Err(away()),
                None => settle(&*store, &txn, is_unsure),
                Some(Fault::Away) => Err(away()),
                Some(Fault::Unanswered) => settle(&*store, &txn, is_unsure).and_then(|_| Err(away())),
                Some(Fault::Deposed) => Err(StoreError::Deposed { term: Term(1), current: Term(2) }),
                Some(Fault::Conflict) => Err(StoreError::Conflict { key: "jobs/x".into() }),
            }
        })
    }
}

fn coordinator(takes: Duration, away: Duration, faults: &[Fault]) -> (Coordinator, Arc<MemoryStore>) {
    let store = Arc::new(MemoryStore::new());
    let away_until = Instant::now() + away;
    let faults = Arc::new(Mutex::new(faults.iter().copied().collect()));
    let writer = Faulty { store: Arc::clone(&store), takes, away_until, faults };
    (Coordinator::over(&*store, Box::new(writer), Instant::now()), store)
}

async fn submit(desk: &Desk, name: &str) -> Result<JobId, Refusal> {
    let (job, request_id) = (JobId(name.into()), name.to_owned());
    let submitted = desk.request(|reply| Input::Submit { job, request_id, spec: spec(1), reply }).await;
    submitted.expect("the driver runs")
}

async fn knows(desk: &Desk, job: &str) -> bool {
    let job = JobId(job.into());
    desk.ask(move |control| control.job(&job).is_some()).await.expect("the driver runs")
}

fn n_jobs(store: &MemoryStore) -> usize {
    store.list("jobs/", None, 100).expect("answers").len()
}

async fn n_members(farm: &Farm) -> usize {
    farm.desk.ask(Control::n_members).await.expect("the driver runs")
}

#[tokio::test(start_paused = true)]
async fn commits_of_five_seconds_end_no_lease_and_keep_nobody_waiting_who_only_asks() {
    let (coordinator, _) = coordinator(Duration::from_secs(5), Duration::ZERO, &[]);
    let farm = coordinator.start();
    let mut held = Vec::new();
    for name in ["a", "b"] {
        let (session, mut orders) = farm.join(name).await;
        let welcome = tokio::time::timeout(Duration::from_secs(1), orders.recv()).await.expect("at once");
        assert!(matches!(welcome.expect("is open").message, Some(Order::Welcome(_))));
        held.push((WorkerId(name.into()), session, orders));
    }
    let started = Instant::now();
    let desk = farm.desk.clone();
    let submitting = tokio::spawn(async move {
        for name in ["one", "two", "three"] {
            submit(&desk, name).await.expect("is accepted");
        }
        Instant::now()
    });
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (worker, session, _) in &held {
            let heartbeat = Input::Heartbeat { worker: worker.clone(), session: *session, work: None };
            farm.desk.tell(heartbeat).await.expect("the driver runs");
        }
        let asked = Instant::now();
        assert_eq!(n_members(&farm).await, 2, "after {:?}", started.elapsed());
        assert!(asked.elapsed() < Duration::from_secs(1));
    }
    let accepted = submitting.await.expect("nobody panicked") - started;
    assert!(accepted >= Duration::from_secs(15), "a job is accepted once it is durable, not after {accepted:?}");
    let (_, _, orders) = &mut held[0];
    assert!(matches!(orders.try_recv().expect("it has work").message, Some(Order::Assign(_))));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_writes_is_waited_out_and_clients_are_told() {
    for away_s in [1, 30] {
        let away = Duration::from_secs(away_s);
        let (coordinator, store) = coordinator(Duration::from_millis(1), away, &[]);
        let farm = coordinator.start();
        let first = submit(&farm.desk, "first").await;
        assert!(matches!(&first, Err(Refusal::Unsure { reason }) if reason.contains("no space left")), "{first:?}");
        let second = submit(&farm.desk, "second").await;
        assert!(matches!(second, Err(Refusal::StoreAway { .. })), "{second:?}");
        assert!(knows(&farm.desk, "first").await && !knows(&farm.desk, "second").await);
        tokio::time::sleep(away + Duration::from_secs(2)).await;
        assert_eq!(submit(&farm.desk, "first").await, Ok(JobId("first".into())), "it was done after all");
        assert_eq!(submit(&farm.desk, "second").await, Ok(JobId("second".into())));
        assert_eq!(n_jobs(&store), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_was_written_and_not_answered_is_not_written_twice() {
    for faults in [&[Fault::Unanswered][..], &[Fault::Away, Fault::Unanswered, Fault::Away]] {
        let (coordinator, store) = coordinator(Duration::from_millis(1), Duration::ZERO, faults);
        let farm = coordinator.start();
        let first = submit(&farm.desk, "first").await;
        assert!(matches!(first, Err(Refusal::Unsure { .. })), "{first:?}");
        tokio::time::sleep(Duration::from_secs(5)).await;
        let revision = store.get("jobs/first").expect("answers").expect("is there").version;
        submit(&farm.desk, "second").await.expect("the store is well");
        assert_eq!(store.get("jobs/first").expect("answers").expect("is there").version, revision);
        assert_eq!(n_jobs(&store), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_refuses_for_good_ends_the_driver_and_nothing_is_promised() {
    for fault in [Fault::Deposed, Fault::Conflict] {
        let (coordinator, store) = coordinator(Duration::from_millis(1), Duration::ZERO, &[fault]);
        let desk = coordinator.driver.desk();
        let running = tokio::spawn(coordinator.driver.run());
        let answer = desk.request(|reply| Input::Submit {
            job: JobId("x".into()),
            request_id: String::new(),
            spec: spec(1),
            reply,
        });
        assert!(matches!(answer.await, Err(Unanswered::Gone)));
        let ended = running.await.expect("nobody panicked");
        assert!(matches!(ended, Err(DriverError::Store(_))), "{ended:?}");
        assert_eq!(n_jobs(&store), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_ask_too_much_at_once_are_sent_away_and_members_are_heard() {
    let (coordinator, _) = coordinator(Duration::from_millis(1), Duration::ZERO, &[]);
    // Its driver is not at work yet.
    let desk = coordinator.driver.desk();
    let mut waiting = Vec::new();
    let refused = loop {
        let mut asked = Box::pin({
            let desk = desk.clone();
            async move { desk.ask(|_| ()).await }
        });
        match std::future::poll_fn(|context| Poll::Ready(asked.as_mut().poll(context))).await {
            Poll::Ready(answer) => break answer,
            Poll::Pending => waiting.push(asked),
        }
    };
    assert!(matches!(refused, Err(Unanswered::Busy)));
    let join = desk.join(WorkerId("a".into()), testing::hello());
    let (_, mut orders) = tokio::time::timeout(Duration::from_secs(1), join).await.expect("has room").expect("runs");
    tokio::spawn(coordinator.driver.run());
    assert!(orders.recv().await.is_some());
    for asked in waiting {
        asked.await.expect("is answered");
    }
}
