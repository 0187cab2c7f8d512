//! Whose a folder is: marked, adopted, refused, locked, and what is cleared at its opening.

use super::*;

fn identity(id: &str) -> Identity {
    Identity { id: id.into(), since: "2026-11-28T00:00:00Z".into(), secret: [7; 32] }
}

fn open(path: &Path, id: &str, adopt: bool) -> Result<Folder, FolderError> {
    Folder::open(path.to_owned(), Path::new("data/store.redb"), &identity(id), adopt)
}

#[test]
fn a_second_store_is_refused_by_name_and_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    drop(open(folder.path(), "first", false).expect("nobody has it"));
    drop(open(folder.path(), "first", false).expect("it is its own"));
    let refused = open(folder.path(), "second", false).err().expect("it is the first one's").to_string();
    for part in [folder.path().to_str().expect("is text"), "store first", "second", "data/store.redb", "--adopt"] {
        assert!(refused.contains(part), "{part} is not in: {refused}");
    }
    assert!(!refused.contains('\n'));
    let taken = open(folder.path(), "second", true).expect("is taken over");
    assert!(taken.is_there());
    assert!(
        matches!(open(folder.path(), "first", false), Err(FolderError::Foreign { other, .. }) if other == "second")
    );
    let marker = read_marker(folder.path()).expect("can be read").expect("is there");
    assert_eq!(marker.earlier_stores, ["first"]);
}

#[test]
fn of_stores_that_open_a_free_folder_at_once_one_has_it() {
    const N_STORES: usize = 8;
    for _ in 0..50 {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let start = std::sync::Barrier::new(N_STORES);
        let opened = |idx: usize| {
            start.wait();
            open(folder.path(), &format!("store-{idx}"), false).is_ok()
        };
        let n_opened = std::thread::scope(|scope| {
            let opened = &opened;
            let opening: Vec<_> = (0..N_STORES).map(|idx| scope.spawn(move || opened(idx))).collect();
            opening.into_iter().map(|opening| opening.join().expect("nobody panics")).filter(|is| *is).count()
        });
        assert_eq!(n_opened, 1);
    }
}

#[test]
fn a_folder_nobody_has_marked_is_adopted_and_loses_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let names = ["ab".repeat(32), ".x.partial".into(), "notes".into(), ".other-store-1.partial".into()];
    for name in &names {
        fs::write(folder.path().join(name), "theirs").expect("can be written");
    }
    let opened = open(folder.path(), "first", false).expect("nobody has it");
    assert!(names.iter().all(|name| folder.path().join(name).exists()));
    assert!(opened.is_left_over(".x.partial") && !opened.is_left_over("notes"));
}

#[test]
fn of_half_written_files_a_start_clears_its_own_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = open(folder.path(), "first", false).expect("nobody has it");
    let (_, own) = first.partial().expect("can be made").keep().expect("stays as a crash leaves it");
    let foreign = folder.path().join(".second-abc.partial");
    fs::write(&foreign, "half").expect("can be written");
    drop(open(folder.path(), "first", false).expect("is its own"));
    assert!(!own.exists() && foreign.exists());
}

#[test]
fn a_store_that_is_gone_or_empty_beside_a_marked_folder_is_not_begun_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (pictures, store) = (folder.path().join("pictures"), folder.path().join("store.redb"));
    Folder::refuse_new_store(&store, &[&pictures]).expect("a new farm");
    drop(open(&pictures, "first", false).expect("nobody has it"));
    for is_empty in [false, true] {
        if is_empty {
            fs::write(&store, "").expect("can be written");
        }
        let refused = Folder::refuse_new_store(&store, &[&pictures]).expect_err("its store is lost").to_string();
        for part in [store.to_str().expect("is text"), "store first", "backup", "--adopt"] {
            assert!(refused.contains(part), "{part} is not in: {refused}");
        }
    }
    fs::write(&store, "something").expect("can be written");
    Folder::refuse_new_store(&store, &[&pictures]).expect("what is wrong with it is said when it is opened");
}

#[test]
fn two_processes_of_one_store_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = open(folder.path(), "first", false).expect("nobody has it");
    let lock = first.lock().expect("nobody is in it");
    assert!(matches!(open(folder.path(), "second", true), Err(FolderError::InUse { .. })), "nor is it taken over");
    assert!(
        matches!(open(folder.path(), "first", false), Err(FolderError::InUse { .. })),
        "nor by a copy of the store"
    );
    drop(lock);
    let copy = open(folder.path(), "first", false).expect("the other has ended");
    drop(copy.lock().expect("the other has ended"));
}

#[test]
fn a_marker_that_is_not_understood_is_refused_and_can_be_taken_over() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join(MARKER), "{").expect("can be written");
    assert!(matches!(open(folder.path(), "first", false), Err(FolderError::Unreadable { .. })));
    assert!(open(folder.path(), "first", true).expect("is taken over").is_there());
}

#[test]
fn a_folder_whose_disk_is_not_mounted_is_not_there() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let opened = open(folder.path(), "first", false).expect("nobody has it");
    fs::remove_file(folder.path().join(MARKER)).expect("can be removed");
    assert!(!opened.is_there());
}
