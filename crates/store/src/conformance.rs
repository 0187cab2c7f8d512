//! What every store must do, as one suite that each implementation runs from its tests.
//!
//! A fact takes `open`, which opens the store under test; calling it again, after the one before was dropped, opens
//! the same store. Facts keep to keys and names of their own, so one store may serve all of them, in any order.
//! They panic where the store breaks its word.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use crate::{Leadership, MAX_KEY_BYTES, MAX_TXN_BYTES, MAX_TXN_KEYS, Revision, Store, StoreError, Txn};

/// Opens the store under test.
pub type Open<'a> = &'a dyn Fn() -> Box<dyn Store>;

const TTL: Duration = Duration::from_secs(3);

/// What was put is what is got, with the revision of its commit as version; other keys are not there.
pub fn a_value_reads_back_with_the_revision_that_wrote_it(open: Open<'_>) {
    let (store, leader) = opened(open, "read-back");
    let bytes: Vec<u8> = (0..=255).collect();
    let revision = put(&*store, &leader, "read-back/a", None, &bytes);
    let found = store.get("read-back/a").expect("the store answers").expect("the key was put");
    assert_eq!((found.value, found.version), (bytes, revision));
    assert_eq!(store.get("read-back/").expect("the store answers"), None);
    assert_eq!(store.get("read-back/aa").expect("the store answers"), None);
}

/// An empty value is a value: the key is there.
pub fn an_empty_value_is_not_an_absent_key(open: Open<'_>) {
    let (store, leader) = opened(open, "empty");
    put(&*store, &leader, "empty/a", None, b"");
    assert_eq!(value(&*store, "empty/a"), Some(Vec::new()));
}

/// Each commit that writes has a higher revision than all before it.
pub fn revisions_only_rise(open: Open<'_>) {
    let (store, leader) = opened(open, "rise");
    let mut last = put(&*store, &leader, "rise/a", None, b"0");
    for round in 1..5_u8 {
        let next = put(&*store, &leader, "rise/a", Some(last), &[round]);
        assert!(next > last, "revision {next} follows {last}");
        last = next;
    }
    let deleted = store.commit(&Txn::new(&leader).delete("rise/a", last)).expect("the version is the last one");
    assert!(deleted > last, "a deletion counts: {deleted} follows {last}");
}

/// A key made anew has a version it never had, so what was seen before its deletion matches nothing.
pub fn a_version_is_never_used_again(open: Open<'_>) {
    let (store, leader) = opened(open, "anew");
    let first = put(&*store, &leader, "anew/a", None, b"first");
    store.commit(&Txn::new(&leader).delete("anew/a", first)).expect("the version is the last one");
    assert_eq!(value(&*store, "anew/a"), None);
    let second = put(&*store, &leader, "anew/a", None, b"second");
    assert!(second > first);
    let late = Txn::new(&leader).put("anew/a", Some(first), "late");
    assert_conflict(store.commit(&late), "anew/a");
    assert_eq!(value(&*store, "anew/a"), Some(b"second".to_vec()));
}

/// One guard that does not hold stops the whole batch: nothing is put, nothing deleted, no revision used.
pub fn a_conflict_changes_nothing(open: Open<'_>) {
    let (store, leader) = opened(open, "conflict");
    let before = put(&*store, &leader, "conflict/b", None, b"kept");
    let batches = [
        Txn::new(&leader).put("conflict/a", None, "new").put("conflict/b", None, "over"),
        Txn::new(&leader).put("conflict/a", None, "new").expect("conflict/b", None),
        Txn::new(&leader).put("conflict/a", None, "new").expect("conflict/b", Some(Revision(before.0 + 1))),
        Txn::new(&leader).put("conflict/a", None, "new").delete("conflict/b", Revision(before.0 + 1)),
    ];
    for batch in &batches {
        assert_conflict(store.commit(batch), "conflict/b");
    }
    let absent = Txn::new(&leader).delete("conflict/b", before).put("conflict/c", Some(before), "never there");
    assert_conflict(store.commit(&absent), "conflict/c");
    let page = store.list("conflict/", None, 10).expect("the store answers");
    let kept: Vec<_> = page.into_iter().map(|(key, found)| (key, found.value, found.version)).collect();
    assert_eq!(kept, [("conflict/b".to_owned(), b"kept".to_vec(), before)]);
}

/// All writes of a batch have one version, and guards on keys it does not write count too.
pub fn a_batch_is_written_as_one(open: Open<'_>) {
    let (store, leader) = opened(open, "batch");
    let old = put(&*store, &leader, "batch/old", None, b"old");
    let seen = put(&*store, &leader, "batch/seen", None, b"seen");
    let batch = Txn::new(&leader).put("batch/a", None, "1").put("batch/b", None, "2").delete("batch/old", old);
    let revision = store.commit(&batch.expect("batch/seen", Some(seen))).expect("all guards hold");
    let page = store.list("batch/", None, 10).expect("the store answers");
    let found: Vec<_> = page.iter().map(|(key, found)| (key.as_str(), found.version)).collect();
    assert_eq!(found, [("batch/a", revision), ("batch/b", revision), ("batch/seen", seen)]);
}

/// A batch without writes says whether its guards hold, and changes nothing.
pub fn a_batch_without_writes_asks(open: Open<'_>) {
    let (store, leader) = opened(open, "ask");
    let version = put(&*store, &leader, "ask/a", None, b"a");
    store.commit(&Txn::new(&leader).expect("ask/a", Some(version)).expect("ask/b", None)).expect("both guards hold");
    assert_conflict(store.commit(&Txn::new(&leader).expect("ask/a", None)), "ask/a");
    let found = store.get("ask/a").expect("the store answers").expect("the key was put");
    assert_eq!(found.version, version);
}

/// Pages of any size, one after the other, give each key with the prefix once, in byte order, and no other key.
pub fn a_listing_in_pages_is_the_whole_listing(open: Open<'_>) {
    let (store, leader) = opened(open, "list");
    let names = ["list/a", "list/a/b", "list/b", "list/é", "list/z", "list0", "list"];
    for name in names {
        put(&*store, &leader, name, None, name.as_bytes());
    }
    let expected = ["list/a", "list/a/b", "list/b", "list/z", "list/é"];
    for page_len in 1..=6 {
        let mut listed: Vec<String> = Vec::new();
        loop {
            let page = store.list("list/", listed.last().map(String::as_str), page_len).expect("the store answers");
            assert!(page.len() <= page_len);
            assert!(page.iter().all(|(key, found)| key.as_bytes() == found.value));
            if page.is_empty() {
                break;
            }
            listed.extend(page.into_iter().map(|(key, _)| key));
        }
        assert_eq!(listed, expected, "in pages of {page_len}");
    }
    let keys = |after, limit| -> Vec<String> {
        let page = store.list("list/", after, limit).expect("the store answers");
        page.into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(None, 0), [""; 0]);
    assert_eq!(keys(Some("a key before the prefix"), 1), ["list/a"]);
    assert_eq!(keys(Some("list/az"), 1), ["list/b"], "a key that is not there still says where to go on");
    assert_eq!(keys(Some("list0"), 1), [""; 0]);
}

/// Who leads later has a higher term, and the earlier leader can neither write nor have a guard confirmed.
pub fn a_deposed_leader_is_refused(open: Open<'_>) {
    let (store, old) = opened(open, "depose");
    let version = put(&*store, &old, "depose/a", None, b"old");
    let new = store.lead("depose", TTL).expect("leadership is granted");
    assert!(new.term() > old.term());
    // The batch conflicts as well: being deposed is the news that counts.
    let write = Txn::new(&old).put("depose/a", None, "late");
    for late in [write, Txn::new(&old), Txn::new(&old).delete("depose/a", version)] {
        let refusal = store.commit(&late).expect_err("an old leader is refused");
        assert!(
            matches!(refusal, StoreError::Deposed { term, current } if (term, current) == (old.term(), new.term())),
            "{refusal}"
        );
        assert!(!refusal.is_retryable());
    }
    assert_eq!(value(&*store, "depose/a"), Some(b"old".to_vec()));
    put(&*store, &new, "depose/a", Some(version), b"new");
    let other = store.lead("depose something else", TTL).expect("leadership is granted");
    put(&*store, &other, "depose/b", None, b"other");
    store.commit(&Txn::new(&new)).expect("who leads something else deposes nobody here");
}

/// Values, versions, the revision and terms are the same after the store was closed and opened again.
pub fn what_was_committed_is_there_after_reopening(open: Open<'_>) {
    let (store, leader) = opened(open, "reopen");
    let kept = put(&*store, &leader, "reopen/kept", None, b"kept");
    let gone = put(&*store, &leader, "reopen/gone", None, b"gone");
    let last = store.commit(&Txn::new(&leader).delete("reopen/gone", gone)).expect("the version is the last one");
    drop(store);
    let (store, next) = opened(open, "reopen");
    assert!(next.term() > leader.term());
    let refusal = store.commit(&Txn::new(&leader)).expect_err("an old leader is refused");
    assert!(matches!(refusal, StoreError::Deposed { .. }), "{refusal}");
    let page = store.list("reopen/", None, 10).expect("the store answers");
    let found: Vec<_> = page.into_iter().map(|(key, found)| (key, found.value, found.version)).collect();
    assert_eq!(found, [("reopen/kept".to_owned(), b"kept".to_vec(), kept)]);
    assert!(put(&*store, &next, "reopen/next", None, b"next") > last);
}

/// Of many who saw the same version, exactly one writes, round after round.
pub fn of_many_commits_on_one_key_exactly_one_wins(open: Open<'_>) {
    const N_WRITERS: u8 = 6;
    let (store, leader) = opened(open, "race");
    let mut seen = None;
    for round in 0..8_u8 {
        let start = Barrier::new(usize::from(N_WRITERS));
        let attempt = |writer: u8| {
            let batch = Txn::new(&leader).put("race/key", seen, [round, writer]);
            start.wait();
            store.commit(&batch)
        };
        let results: Vec<_> = thread::scope(|scope| {
            let attempt = &attempt;
            let writers: Vec<_> = (0..N_WRITERS).map(|writer| scope.spawn(move || attempt(writer))).collect();
            writers.into_iter().map(|writer| writer.join().expect("a commit does not panic")).collect()
        });
        let mut won = Vec::new();
        for (writer, result) in (0..N_WRITERS).zip(results) {
            match result {
                Ok(revision) => won.push((writer, revision)),
                refused => assert_conflict(refused, "race/key"),
            }
        }
        let [(writer, revision)] = won[..] else { panic!("{} of {N_WRITERS} commits won", won.len()) };
        let found = store.get("race/key").expect("the store answers").expect("one commit won");
        assert_eq!((found.value, found.version), (vec![round, writer], revision));
        seen = Some(revision);
    }
}

/// While batches are written, a listing sees all of each or nothing of it.
pub fn a_reader_sees_no_half_batch(open: Open<'_>) {
    let (store, leader) = opened(open, "whole");
    let both = |seen, round: u8| {
        let batch = Txn::new(&leader).put("whole/a", seen, [round]).put("whole/b", seen, [round]);
        store.commit(&batch).expect("there is one writer")
    };
    let first = both(None, 0);
    thread::scope(|scope| {
        let writer = scope.spawn(|| (1..20).fold(first, |seen, round| both(Some(seen), round)));
        while !writer.is_finished() {
            let page = store.list("whole/", None, 2).expect("the store answers");
            assert_eq!(page[0].1, page[1].1, "both keys are of one batch");
        }
    });
    assert_eq!(value(&*store, "whole/b"), Some(vec![19]));
}

/// A batch whose commit was not answered is found if it was written, and only then.
pub fn a_batch_is_found_once_it_is_written(open: Open<'_>) {
    let (store, leader) = opened(open, "found");
    let old = put(&*store, &leader, "found/old", None, b"old");
    let batch = Txn::new(&leader).delete("found/old", old).put("found/new", None, "new");
    assert_eq!(batch.found_in(&*store).expect("the store answers"), None);
    let revision = store.commit(&batch).expect("the guards hold");
    assert_eq!(batch.found_in(&*store).expect("the store answers"), Some(revision));
    // The same value once more is another write.
    let again = Txn::new(&leader).put("found/new", Some(revision), "new");
    assert_eq!(again.found_in(&*store).expect("the store answers"), None);
    let deletion = Txn::new(&leader).delete("found/new", revision);
    assert_eq!(deletion.found_in(&*store).expect("the store answers"), None);
    store.commit(&deletion).expect("the guard holds");
    assert_eq!(deletion.found_in(&*store).expect("the store answers"), Some(Revision::default()));
    assert_eq!(Txn::new(&leader).found_in(&*store).expect("the store answers"), None);
}

/// A batch at a limit is taken, one over it is refused and changes nothing.
pub fn a_batch_over_a_limit_is_refused(open: Open<'_>) {
    let (store, leader) = opened(open, "large");
    let batch = |n_keys: usize, key_bytes: usize, txn_bytes: usize| {
        let key = |key_idx: usize| format!("{:x<key_bytes$}", format!("large/{key_idx:03}/{key_bytes}"));
        let first = Txn::new(&leader).put(key(0), None, vec![7; txn_bytes - n_keys * key_bytes]);
        (1..n_keys).fold(first, |batch, key_idx| batch.put(key(key_idx), None, ""))
    };
    for over in [batch(MAX_TXN_KEYS + 1, 20, 4096), batch(1, MAX_KEY_BYTES + 1, 4096), batch(2, 21, MAX_TXN_BYTES + 1)]
    {
        let refusal = store.commit(&over).expect_err("the batch is over a limit");
        assert!(matches!(refusal, StoreError::TooLarge { size, limit, .. } if size == limit + 1), "{refusal}");
        assert!(!refusal.is_retryable());
    }
    assert!(store.list("large/", None, 1).expect("the store answers").is_empty());
    for at in [batch(MAX_TXN_KEYS, 22, 4096), batch(1, MAX_KEY_BYTES, 4096), batch(2, 23, MAX_TXN_BYTES)] {
        store.commit(&at).expect("the batch is at a limit");
    }
    let n_kept = store.list("large/", None, usize::MAX).expect("the store answers").len();
    assert_eq!(n_kept, MAX_TXN_KEYS + 3);
}

fn opened(open: Open<'_>, name: &str) -> (Box<dyn Store>, Leadership) {
    let store = open();
    let leader = store.lead(name, TTL).expect("leadership is granted");
    (store, leader)
}

fn put(store: &dyn Store, leader: &Leadership, key: &str, seen: Option<Revision>, value: &[u8]) -> Revision {
    store.commit(&Txn::new(leader).put(key, seen, value)).expect("the key is as it was seen")
}

fn value(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(key).expect("the store answers").map(|found| found.value)
}

fn assert_conflict(result: Result<Revision, StoreError>, expected: &str) {
    let refusal = result.expect_err("a guard does not hold");
    assert!(matches!(&refusal, StoreError::Conflict { key } if key == expected), "{refusal}");
    assert!(!refusal.is_retryable());
}
