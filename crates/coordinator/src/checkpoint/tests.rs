//! Checkpoints in memory and in files: what is kept, what is found damaged, what is swept.

use std::fs;
use std::path::Path;

use control::{ArtifactRef, Image, Phase};
use futures_util::FutureExt;
use plan::{ArtifactKind, ImageIdx, JobId, Millis};

use super::*;

fn place(n_steps_done: usize, first_row: usize, n_rows: usize) -> Place {
    Place { n_steps_done, first_row, n_rows, all_rows: 3, cols: 1 }
}

/// Rows of which every value is its plane and row.
fn rows(first_row: usize, n_rows: usize) -> Vec<u8> {
    let value = |plane: usize, row: usize| ((plane * 10 + row) as f32).to_le_bytes();
    (0..8).flat_map(|plane| (first_row..first_row + n_rows).flat_map(move |row| value(plane, row))).collect()
}

fn image() -> ImageId {
    ImageId { job: JobId("a-job".into()), image: ImageIdx(0) }
}

/// What the store says of the image.
fn record(phase: Phase, n_steps_done: usize) -> Record {
    let artifact = ArtifactRef { sha256: "cafe".into(), size_bytes: 1, kind: ArtifactKind::Png8 };
    let image = Image {
        phase,
        n_steps_done,
        epoch: None,
        numeric_class: None,
        weights_sha256: None,
        artifact: (phase == Phase::Done).then_some(artifact),
        message: String::new(),
        n_failures: 0,
        n_losses: 0,
        n_not_finite: 0,
        n_bugs: 0,
        n_tries: 0,
        n_resplits: 0,
        avoid: BTreeSet::new(),
        not_before: Millis(0),
    };
    Record::Image { id: self::image(), revision: 1, image: Box::new(image), attempt: None }
}

fn origin() -> Origin {
    Origin { weights_sha256: "ab".repeat(32), numeric_class: "avx512".into() }
}

fn open(folder: &Path) -> Checkpoints {
    Checkpoints::new(crate::testing::in_folder(folder, ""))
}

/// Opens a folder as after a restart. How many steps the image has then.
fn restart(folder: &Path, phase: Phase, n_steps_done: usize) -> (Checkpoints, usize) {
    let checkpoints = open(folder);
    let mut records = [record(phase, n_steps_done)];
    checkpoints.check(&mut records).expect("the folder can be read");
    let [Record::Image { image, .. }] = &records else { panic!("stays what it is") };
    (checkpoints, image.n_steps_done)
}

/// A folder in which steps of the image were kept by its first epoch.
fn kept(steps: impl IntoIterator<Item = usize>) -> (tempfile::TempDir, Checkpoints) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let checkpoints = open(folder.path());
    checkpoints.open_epoch(&image(), Epoch(1), origin());
    for n in steps {
        assert!(checkpoints.put(&image(), Epoch(1), place(n, 0, 3), &rows(0, 3)).expect("is taken"));
    }
    (folder, checkpoints)
}

fn n_files(folder: &Path) -> usize {
    fs::read_dir(folder).expect("is a folder").count() - 1
}

/// Damages files of steps after a restart and looks what becomes of their image.
fn check_damaged(damage: impl Fn(&mut Vec<u8>)) {
    let spoil = |path: &Path| {
        let mut bytes = fs::read(path).expect("is there");
        damage(&mut bytes);
        fs::write(path, bytes).expect("can be written");
    };
    let (folder, checkpoints) = kept([1, 2]);
    spoil(&checkpoints.files.path(&image(), 2));
    let (restarted, n_steps_done) = restart(folder.path(), Phase::Queued, 2);
    assert_eq!(n_steps_done, 2, "no file is read before it is needed");
    restarted.open_epoch(&image(), Epoch(2), origin());
    assert_eq!(restarted.get(&image(), 2), None);
    assert_eq!(restarted.newest_whole(&image(), 2), 1, "the step before is whole");
    assert_eq!(restarted.get(&image(), 1).expect("is whole"), rows(0, 3));

    spoil(&restarted.files.path(&image(), 1));
    assert_eq!((restarted.get(&image(), 1), restarted.newest_whole(&image(), 2)), (None, 0), "no step is whole");
    restarted.open_epoch(&image(), Epoch(3), origin());
    let put =
        |first_row, n_rows| restarted.put(&image(), Epoch(3), place(1, first_row, n_rows), &rows(first_row, n_rows));
    assert!(!put(0, 1).expect("is taken"), "what is bad was not kept");
    assert!(put(1, 2).expect("is taken"));
    assert_eq!(open_with(folder.path(), 1).get(&image(), 1).expect("was made anew"), rows(0, 3));
}

/// As after a restart, with an attempt at the image.
fn open_with(folder: &Path, n_steps_done: usize) -> Checkpoints {
    let (checkpoints, n) = restart(folder, Phase::Queued, n_steps_done);
    assert_eq!(n, n_steps_done, "its checkpoint is there");
    checkpoints.open_epoch(&image(), Epoch(9), origin());
    checkpoints
}

#[test]
fn a_flipped_bit_is_found() {
    check_damaged(|bytes| bytes[17] ^= 4);
    check_damaged(|bytes| *bytes.last_mut().expect("it has a checksum") ^= 128);
}

#[test]
fn a_file_that_is_cut_short_is_found() {
    for n_left in [0, 3, 4, 95, 99] {
        check_damaged(|bytes| bytes.truncate(n_left));
    }
}

#[test]
fn a_file_of_zeros_is_found() {
    check_damaged(|bytes| bytes.fill(0));
    check_damaged(|bytes| *bytes = vec![0; 4]);
}

#[test]
fn a_file_under_the_name_of_another_step_is_found() {
    let (folder, checkpoints) = kept([1, 2]);
    let [one, two] = [1, 2].map(|n| checkpoints.files.path(&image(), n));
    fs::rename(one, two).expect("a file can be renamed");
    assert_eq!(open_with(folder.path(), 2).newest_whole(&image(), 2), 0);
}

#[test]
fn bands_in_any_order_make_a_whole_that_outlives_the_process() {
    let (folder, checkpoints) = kept([]);
    let (image, epoch) = (image(), Epoch(1));
    assert!(!checkpoints.put(&image, epoch, place(1, 1, 2), &rows(1, 2)).expect("is taken"));
    assert_eq!(checkpoints.get(&image, 1), None, "half a checkpoint is none");
    assert!(checkpoints.put(&image, epoch, place(1, 0, 1), &rows(0, 1)).expect("is taken"));
    assert_eq!(checkpoints.get(&image, 1).expect("is whole"), rows(0, 3));
    let restarted = open_with(folder.path(), 1);
    assert_eq!(restarted.get(&image, 1).expect("is on the disk"), rows(0, 3));
    let epoch = Epoch(9);
    let again = restarted.put(&image, epoch, place(1, 1, 2), &rows(1, 2));
    assert!(again.expect("is taken"), "what was kept before a restart is whole");
    for n in 2..4 {
        assert!(restarted.put(&image, epoch, place(n, 0, 3), &rows(0, 3)).expect("is taken"));
    }
    assert_eq!((restarted.get(&image, 1), n_files(folder.path())), (None, 2), "two steps back nobody goes");
    assert!(restarted.remove(&image), "it has files");
    restarted.sweep();
    assert_eq!((restarted.get(&image, 3), n_files(folder.path())), (None, 0));
}

#[test]
fn an_older_step_is_not_forgotten_before_a_newer_one_is_whole() {
    let (_folder, checkpoints) = kept([1, 2]);
    let (image, epoch) = (image(), Epoch(1));
    for n in 3..6 {
        assert!(!checkpoints.put(&image, epoch, place(n, 0, 2), &rows(0, 2)).expect("is taken"));
    }
    assert!(checkpoints.get(&image, 1).is_some() && checkpoints.get(&image, 2).is_some());
    assert!(checkpoints.put(&image, epoch, place(3, 2, 1), &rows(2, 1)).expect("is taken"));
    assert_eq!(checkpoints.get(&image, 1), None);
    assert!(checkpoints.get(&image, 2).is_some() && checkpoints.get(&image, 3).is_some());
}

#[test]
fn a_start_deletes_no_file_whatever_the_store_says_of_its_image() {
    for phase in [Phase::Done, Phase::Failed, Phase::Cancelled, Phase::Queued] {
        let (folder, _) = kept([1, 2]);
        restart(folder.path(), phase, 1);
        open(folder.path()).check(&mut []).expect("the folder can be read");
        assert_eq!(n_files(folder.path()), 2, "{phase:?}");
    }
}

#[test]
fn an_image_whose_newest_file_is_gone_goes_back_to_the_one_before() {
    let (folder, checkpoints) = kept([1, 2]);
    fs::remove_file(checkpoints.files.path(&image(), 2)).expect("is there");
    assert_eq!(restart(folder.path(), Phase::Queued, 2).1, 1);
    fs::remove_file(checkpoints.files.path(&image(), 1)).expect("is there");
    assert_eq!(restart(folder.path(), Phase::Queued, 2).1, 0);
}

#[test]
fn rows_of_other_weights_or_another_class_count_for_nothing() {
    let others =
        [Origin { weights_sha256: "cd".repeat(32), ..origin() }, Origin { numeric_class: "neon".into(), ..origin() }];
    for other in others {
        let (folder, _) = kept([1, 2]);
        let (restarted, _) = restart(folder.path(), Phase::Queued, 2);
        restarted.open_epoch(&image(), Epoch(2), other.clone());
        assert_eq!((restarted.get(&image(), 2), restarted.newest_whole(&image(), 2)), (None, 0));
        let put = |n_rows| restarted.put(&image(), Epoch(2), place(1, 0, n_rows), &rows(0, n_rows));
        assert!(!put(2).expect("is taken"), "what is there is not of these weights");
        assert!(put(3).expect("is taken"));
        assert_eq!(restarted.get(&image(), 1).expect("is kept"), rows(0, 3));
    }
    let (_folder, checkpoints) = kept([]);
    let half = |epoch| checkpoints.put(&image(), Epoch(epoch), place(1, 0, 2), &rows(0, 2)).expect("is taken");
    assert!(!half(1));
    checkpoints.open_epoch(&image(), Epoch(2), Origin { numeric_class: "neon".into(), ..origin() });
    assert!(
        !checkpoints.put(&image(), Epoch(2), place(1, 2, 1), &rows(2, 1)).expect("is taken"),
        "halves of two classes"
    );
}

#[test]
fn an_image_without_files_leaves_nothing_to_sweep() {
    let (folder, checkpoints) = kept([1]);
    let other = ImageId { image: ImageIdx(7), ..image() };
    assert!(!checkpoints.remove(&other), "it never began");
    checkpoints.open_epoch(&other, Epoch(2), origin());
    assert!(!checkpoints.remove(&other), "it has not kept a step");
    assert!(checkpoints.remove(&image()));
    checkpoints.open_epoch(&other, Epoch(3), origin());
    checkpoints.put(&other, Epoch(3), place(1, 0, 3), &rows(0, 3)).expect("is taken");
    assert!(!checkpoints.remove(&other), "a sweep is under way, and takes it along");
    checkpoints.sweep();
    assert_eq!(n_files(folder.path()), 0);
}

#[test]
fn an_image_that_is_begun_anew_loses_what_it_had_and_nothing_else() {
    let (folder, checkpoints) = kept([1, 2]);
    assert!(checkpoints.remove(&image()));
    checkpoints.open_epoch(&image(), Epoch(2), origin());
    assert_eq!(checkpoints.get(&image(), 2), None, "that was another beginning");
    let put = |n, n_rows| checkpoints.put(&image(), Epoch(2), place(n, 0, n_rows), &rows(0, n_rows));
    assert!(!put(2, 1).expect("is taken"), "that was another beginning");
    assert!(put(1, 3).expect("is taken"));
    checkpoints.sweep();
    assert_eq!(n_files(folder.path()), 1, "the sweep comes late");
    assert_eq!(open_with(folder.path(), 1).get(&image(), 1).expect("is kept"), rows(0, 3));
}

#[test]
fn rows_that_come_behind_the_end_of_their_image_or_epoch_leave_nothing() {
    let (folder, checkpoints) = kept([]);
    let image = image();
    let is_over = |epoch| {
        let put = checkpoints.put(&image, epoch, place(1, 0, 3), &rows(0, 3));
        matches!(put, Err(PutError::Over(over)) if over == epoch)
    };
    checkpoints.remove(&image);
    assert!(is_over(Epoch(1)), "the image is over");
    assert!(checkpoints.state().images.is_empty());
    assert_eq!(n_files(folder.path()), 0);
    checkpoints.open_epoch(&image, Epoch(2), origin());
    assert!(is_over(Epoch(1)), "the image goes on in another epoch");
    checkpoints.open_epoch(&image, Epoch(1), origin());
    assert!(!is_over(Epoch(2)), "an epoch that is known late does not replace its successor");
}

#[tokio::test]
async fn rows_are_waited_for_until_their_rank_has_sent_newer_ones_or_the_image_is_over() {
    let (_folder, checkpoints) = kept([]);
    let (image, epoch) = (image(), Epoch(1));
    let put = |n, first_row| checkpoints.put(&image, epoch, place(n, first_row, 1), &rows(first_row, 1));
    let kept = |n| checkpoints.until_kept(&image, epoch, n);
    put(4, 0).expect("is taken");
    assert!(kept(4).now_or_never().is_none());
    put(5, 0).expect("is taken");
    assert!(kept(4).now_or_never().is_none(), "newer rows of the same rank say nothing of the others");
    let (waited, _) = tokio::join!(kept(4), async { put(5, 1).expect("is taken") });
    waited.expect("that rank will not send step 4 any more");
    let (waited, _) = tokio::join!(kept(5), async { put(5, 2).expect("is taken") });
    waited.expect("it is whole");
    put(6, 0).expect("is taken");
    let (waited, _) = tokio::join!(kept(6), async { checkpoints.remove(&image) });
    assert!(matches!(waited, Err(PutError::Over(Epoch(1)))), "the image is over");
}
