//! The suite of `store::conformance`, run by the store in memory, the one in a file, and a file written before.

use std::sync::Arc;
use std::time::Duration;

use store::{EmbeddedStore, MemoryStore, Store, Txn, conformance};

/// One test a fact for each way to open a store.
macro_rules! all_stores {
    ($($fact:ident,)*) => {
        mod memory {
            $(#[test] fn $fact() { super::in_memory(super::conformance::$fact); })*
        }
        mod file {
            $(#[test] fn $fact() { super::in_a_file(super::conformance::$fact); })*
        }
        mod reopened_file {
            $(#[test] fn $fact() { super::in_a_file_written_before(super::conformance::$fact); })*
        }
    };
}

all_stores! {
    a_value_reads_back_with_the_revision_that_wrote_it,
    an_empty_value_is_not_an_absent_key,
    revisions_only_rise,
    a_version_is_never_used_again,
    a_conflict_changes_nothing,
    a_batch_is_written_as_one,
    a_batch_without_writes_asks,
    a_listing_in_pages_is_the_whole_listing,
    a_deposed_leader_is_refused,
    what_was_committed_is_there_after_reopening,
    of_many_commits_on_one_key_exactly_one_wins,
    a_reader_sees_no_half_batch,
    a_batch_is_found_once_it_is_written,
    a_batch_over_a_limit_is_refused,
}

type Fact = fn(conformance::Open<'_>);

/// It forgets with the process, not with a handle: every handle opened is to the same keys.
fn in_memory(fact: Fact) {
    let store = Arc::new(MemoryStore::new());
    fact(&|| Box::new(Arc::clone(&store)));
}

fn in_a_file(fact: Fact) {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    let path = folder.path().join("store.redb");
    fact(&|| Box::new(EmbeddedStore::open(&path).expect("nobody else holds the file")));
}

fn in_a_file_written_before(fact: Fact) {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    let path = folder.path().join("store.redb");
    let open = || EmbeddedStore::open(&path).expect("nobody else holds the file");
    let store = open();
    let leader = store.lead("before", Duration::from_secs(3)).expect("leadership is granted");
    for key in ["before", "middle", "zzz"] {
        store.commit(&Txn::new(&leader).put(key, None, key)).expect("the key is absent");
    }
    drop(store);
    fact(&|| Box::new(open()));
}
