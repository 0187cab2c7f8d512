//! What waits for the store, in which order it leaves, and what a deletion leaves behind.

use control::{Config, Control, Input, ReplyId, SessionId};
use plan::Millis;
use store::{MemoryStore, Store};

use super::load::LoadError;
use super::*;
use crate::testing::spec;

/// A job, and its images cancelled, as the machine decides it.
fn of_a_job(job: &JobId, count: u32) -> Vec<Output> {
    let mut control = Control::new(Config::default(), Vec::new(), Millis(0));
    let reply = ReplyId(1);
    let submit = Input::Submit { job: job.clone(), request_id: String::new(), spec: spec(count), reply };
    control.handle(Millis(0), submit);
    control.handle(Millis(0), Input::Cancel { job: job.clone(), reply });
    std::iter::from_fn(|| control.poll_output()).collect()
}

fn epoch(n: u64) -> Output {
    Output::Persist(Box::new(Record::NextEpoch(plan::Epoch(n))))
}

fn reply(n: u64) -> Output {
    Output::Reply { reply: ReplyId(n), answer: Ok(JobId("j".into())) }
}

fn opened(store: &MemoryStore) -> (Ledger, Vec<Record>) {
    let (ledger, _, records) = load(store).expect("is read");
    (ledger, records)
}

fn take(ledger: &mut Ledger, outputs: impl IntoIterator<Item = Output>) {
    outputs.into_iter().for_each(|output| ledger.take(output).expect("has JSON"));
}

/// Writes all there is; how many parts that were.
fn write_all(ledger: &mut Ledger, store: &MemoryStore) -> usize {
    let mut n = 0;
    while let Some(txn) = ledger.poll_part() {
        ledger.written(store.commit(&txn).expect("the guards hold"));
        n += 1;
    }
    n
}

#[test]
fn what_rests_on_a_batch_waits_for_that_batch_and_no_other() {
    let store = MemoryStore::new();
    let (mut ledger, _) = opened(&store);
    take(&mut ledger, [reply(1), epoch(1), reply(2)]);
    assert_eq!(ledger.poll_act(), Some(reply(1)), "nothing was to be written before it");
    assert_eq!(ledger.poll_act(), None);
    let first = ledger.poll_part().expect("a batch");
    take(&mut ledger, [reply(3), epoch(2), reply(4)]);
    assert_eq!((ledger.poll_part(), ledger.poll_act()), (None, None), "one at a time");
    ledger.written(store.commit(&first).expect("the guards hold"));
    let left: Vec<_> = std::iter::from_fn(|| ledger.poll_act()).collect();
    assert_eq!(left, [reply(2), reply(3)]);
    assert_eq!(write_all(&mut ledger, &store), 1);
    assert_eq!(ledger.poll_act(), Some(reply(4)));
    assert_eq!(opened(&store).1, [Record::NextEpoch(plan::Epoch(2))]);
}

#[test]
fn who_is_in_is_told_while_the_store_is_at_work() {
    let store = MemoryStore::new();
    let (mut ledger, _) = opened(&store);
    take(&mut ledger, [epoch(1), reply(1)]);
    ledger.poll_part().expect("a batch");
    let welcome = Output::Welcome { worker: plan::WorkerId("a".into()), session: SessionId(1), lease_ttl_ms: 1 };
    take(&mut ledger, [welcome.clone()]);
    assert_eq!((ledger.poll_act(), ledger.poll_act()), (Some(welcome), None));
}

#[test]
fn a_batch_of_many_keys_is_durable_with_its_last_part() {
    let store = MemoryStore::new();
    let (mut ledger, _) = opened(&store);
    let job = JobId("j".into());
    let count = 2 * MOST_KEYS as u32 + 7;
    take(&mut ledger, of_a_job(&job, count));
    take(&mut ledger, [reply(9)]);
    while let Some(txn) = ledger.poll_part() {
        assert!(ledger.poll_act().is_none(), "the reply comes last");
        ledger.written(store.commit(&txn).expect("the guards hold"));
    }
    assert_eq!(std::iter::from_fn(|| ledger.poll_act()).last(), Some(reply(9)));
    assert_eq!(opened(&store).1.len(), count as usize + 1);
}

#[test]
fn a_forgotten_job_is_deleted_with_all_its_images_however_many() {
    let store = MemoryStore::new();
    let (job, count) = (JobId("j".into()), MOST_KEYS as u32 + 7);
    let (mut ledger, _) = opened(&store);
    take(&mut ledger, of_a_job(&job, count));
    write_all(&mut ledger, &store);
    let (mut ledger, _) = opened(&store);
    let forget = Output::Forget { job: job.clone(), n_images: count, artifacts: Vec::new() };
    take(&mut ledger, [forget.clone()]);
    assert_eq!(ledger.poll_act(), None);
    let first = ledger.poll_part().expect("a batch");
    ledger.written(store.commit(&first).expect("the guards hold"));
    let left = opened(&store).1;
    assert!(left.iter().all(|record| matches!(record, Record::Image { .. })), "the job itself goes at once");
    // The lead was taken to look; it is a new ledger that goes on.
    let (mut again, _) = opened(&store);
    assert_eq!(write_all(&mut again, &store), left.len().div_ceil(MOST_KEYS), "its images a few at a time");
    assert_eq!(opened(&store).1, []);
    assert_eq!(ledger.poll_act(), Some(forget), "what rests on the deletion does not wait for its images");
}

#[test]
fn a_job_that_is_forgotten_while_its_records_are_on_their_way_leaves_nothing() {
    let store = MemoryStore::new();
    let job = JobId("j".into());
    for n_parts_before in 0..3 {
        let (mut ledger, _) = opened(&store);
        take(&mut ledger, of_a_job(&job, MOST_KEYS as u32 + 7));
        let mut on_its_way: Option<Arc<Txn>> = None;
        for _ in 0..n_parts_before {
            if let Some(txn) = on_its_way.take() {
                ledger.written(store.commit(&txn).expect("the guards hold"));
            }
            on_its_way = ledger.poll_part();
        }
        take(&mut ledger, [Output::Forget { job: job.clone(), n_images: MOST_KEYS as u32 + 7, artifacts: Vec::new() }]);
        if let Some(txn) = on_its_way {
            ledger.written(store.commit(&txn).expect("the guards hold"));
        }
        write_all(&mut ledger, &store);
        assert_eq!(opened(&store).1, [], "forgotten after {n_parts_before} parts were begun");
    }
}

#[test]
fn a_record_of_another_version_stops_nothing_and_stays() {
    let store = MemoryStore::new();
    let (job, other) = (JobId("j".into()), JobId("k".into()));
    let (mut ledger, _) = opened(&store);
    take(&mut ledger, of_a_job(&job, 2).into_iter().chain(of_a_job(&other, 1)));
    write_all(&mut ledger, &store);
    let leader = store.lead("coordinator", std::time::Duration::from_secs(1)).expect("is granted");
    for key in ["images/j/0", "jobs/k", "notes"] {
        let seen = store.get(key).expect("answers").map(|found| found.version);
        store.commit(&Txn::new(&leader).put(key, seen, "{\"Paused\":1}")).expect("the guard holds");
    }
    let (mut ledger, records) = opened(&store);
    let of_job = |record: &&Record| matches!(record, Record::Job { id, .. } if *id == job);
    assert_eq!(records.iter().filter(of_job).count(), 1);
    assert_eq!(records.len(), 3, "the job, its other image, and the image of the job that is left out");
    write_all(&mut ledger, &store);
    assert_eq!(store.list("", None, 100).expect("answers").len(), 7, "nothing is deleted");
}

#[test]
fn an_epoch_of_another_version_is_refused() {
    let store = MemoryStore::new();
    let leader = store.lead("coordinator", std::time::Duration::from_secs(1)).expect("is granted");
    store.commit(&Txn::new(&leader).put(EPOCH_KEY, None, "x")).expect("the guard holds");
    assert!(matches!(load(&store), Err(LoadError::Epoch(_))));
}
