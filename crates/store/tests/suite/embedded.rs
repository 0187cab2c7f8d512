//! The store in a file: who may hold it, what it does about a bad file, and what a crash leaves.

use std::fs;
use std::path::Path;
use std::time::Duration;

use store::{EmbeddedStore, Leadership, Store, StoreError, Txn};
use tempfile::TempDir;

#[test]
fn a_file_that_is_held_names_itself_and_the_way_out() {
    let (folder, store, _) = filled();
    let path = folder.path().join("store.redb");
    let refusal = refusal(&path);
    let text = refusal.to_string();
    assert!(matches!(refusal, StoreError::Unavailable { .. }), "{text}");
    assert!(refusal.is_retryable());
    assert!(text.contains(&*path.to_string_lossy()) && text.contains("another coordinator holds it"), "{text}");
    drop(store);
    EmbeddedStore::open(&path).expect("nobody holds the file any more");
}

#[test]
fn what_is_no_store_is_corrupt_and_stays_as_it_is() {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    for (name, bytes) in [("text", b"hello, I am a shopping list\n".repeat(400)), ("short", b"redb".to_vec())] {
        let path = folder.path().join(name);
        fs::write(&path, &bytes).expect("the folder can be written");
        assert_corrupt(&path);
        assert_eq!(fs::read(&path).expect("the file is there"), bytes);
    }
}

#[test]
fn a_database_of_another_program_is_refused() {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    let path = folder.path().join("other.redb");
    let database = redb::Database::create(&path).expect("the folder can be written");
    let writing = database.begin_write().expect("the database takes writes");
    let table = redb::TableDefinition::<u64, u64>::new("their table");
    writing.open_table(table).expect("the table is new").insert(1, 2).expect("the table takes numbers");
    writing.commit().expect("the disc has room");
    drop(database);
    assert!(assert_corrupt(&path).contains("their table"));
}

#[test]
fn a_truncated_file_is_corrupt() {
    let (folder, store, _) = filled();
    drop(store);
    let path = folder.path().join("store.redb");
    let whole = fs::read(&path).expect("the file is there");
    for len in [whole.len() / 2, 5000, 100] {
        fs::write(&path, &whole[..len]).expect("the folder can be written");
        assert_corrupt(&path);
    }
}

#[test]
fn a_changed_byte_in_a_value_is_found_at_opening() {
    let (folder, store, _) = filled();
    drop(store);
    let path = folder.path().join("store.redb");
    let mut bytes = fs::read(&path).expect("the file is there");
    let at = bytes.windows(7).position(|window| window == b"value 5").expect("values are stored as they are");
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("the folder can be written");
    assert_corrupt(&path);
}

#[test]
fn a_place_that_cannot_be_written_names_itself() {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    for path in [folder.path().join("missing/store.redb"), folder.path().to_path_buf()] {
        let refusal = refusal(&path);
        let text = refusal.to_string();
        assert!(matches!(refusal, StoreError::Unavailable { .. }), "{text}");
        assert!(text.contains(&*path.to_string_lossy()), "{text}");
    }
}

/// A copy of a file that is still open is what a killed process leaves.
#[test]
fn every_commit_is_in_the_file_before_it_returns() {
    let (folder, store, leader) = filled();
    let copy = folder.path().join("copy.redb");
    let mut seen = None;
    for round in 0..5_u8 {
        seen = Some(store.commit(&Txn::new(&leader).put("last", seen, [round])).expect("there is one writer"));
        fs::copy(folder.path().join("store.redb"), &copy).expect("the folder can be written");
        let found = EmbeddedStore::open(&copy).expect("the file is whole").get("last").expect("the store answers");
        assert_eq!(found.map(|found| (found.value, Some(found.version))), Some((vec![round], seen)));
    }
}

fn filled() -> (TempDir, EmbeddedStore, Leadership) {
    let folder = tempfile::tempdir().expect("the system has room for a folder");
    let store = EmbeddedStore::open(folder.path().join("store.redb")).expect("the folder can be written");
    let leader = store.lead("coordinator", Duration::from_secs(3)).expect("leadership is granted");
    let batch = (0..50).fold(Txn::new(&leader), |batch, key_idx| {
        batch.put(format!("key {key_idx}"), None, format!("value {key_idx}").repeat(100))
    });
    store.commit(&batch).expect("the keys are absent");
    (folder, store, leader)
}

fn refusal(path: &Path) -> StoreError {
    EmbeddedStore::open(path).map(|_| ()).expect_err("the file cannot serve as a store")
}

fn assert_corrupt(path: &Path) -> String {
    let refusal = refusal(path);
    let text = refusal.to_string();
    assert!(matches!(refusal, StoreError::Corrupt { .. }), "{text}");
    assert!(!refusal.is_retryable());
    assert!(text.contains(&*path.to_string_lossy()), "{text}");
    text
}
