//! Folders of pictures that two stores meet in, stores that are lost or restored, and pictures that are not what they were.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Farm, Process, until};

/// Names of pictures on the disk, in order.
fn pictures(farm: &Farm) -> Vec<String> {
    let entries = farm.desk.path("data/pictures").read_dir().expect("it is a folder");
    let names = entries.map(|entry| entry.expect("can be read").file_name().into_string().expect("is text"));
    let mut names: Vec<_> = names.filter(|name| name.len() == 64).collect();
    names.sort();
    names
}

fn done(farm: &Farm, seed: u64) -> String {
    let job = farm.submit(seed);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    job
}

fn stop(farm: &mut Farm) {
    let coordinator: Process = farm.coordinator.take().expect("it runs");
    coordinator.signal("-TERM");
    assert_eq!(coordinator.wait(), Some(0));
}

fn picture_of(farm: &Farm, job: &str) -> (String, PathBuf) {
    let image = farm.call(&["get", job, "--json"]).quiet().json()["images"][0].clone();
    let name = image["sha256"].as_str().expect("it is done").to_owned();
    let path = farm.desk.path("data/pictures").join(&name);
    (name, path)
}

#[test]
fn a_second_farm_in_a_folder_is_refused_by_name_and_the_first_loses_nothing() {
    let mut farm = Farm::start();
    let second = |more: &[&str]| {
        let args = ["coordinator", "--listen", "127.0.0.1:0", "--artifacts", "file:data/pictures"];
        farm.desk.fresco(&[&args[..], &["--store", "redb:other/store"], more].concat())
    };
    second(&[]).refused(1, &["data/pictures", "other/store is missing", "--adopt", "belongs to the store"]);
    assert!(!farm.desk.path("other/store").exists(), "nothing is begun");
    second(&["--adopt"]).refused(1, &["data/pictures", "in use by another coordinator"]);
    let _worker = farm.worker("a");
    let job = done(&farm, 31);
    assert_eq!(pictures(&farm).len(), 1);
    // A copy of the store is the same store, and the folder is in use all the same.
    fs::create_dir_all(farm.desk.path("copy")).expect("can be made");
    stop(&mut farm);
    fs::copy(farm.desk.path("data/store"), farm.desk.path("copy/store")).expect("can be copied");
    farm.start_coordinator();
    let args = ["coordinator", "--listen", "127.0.0.1:0", "--artifacts", "file:data/pictures"];
    let copy = farm.desk.fresco(&[&args[..], &["--store", "redb:copy/store"]].concat());
    copy.refused(1, &["data/pictures", "in use by another coordinator"]);
    farm.check_picture(&job, 31);
}

#[test]
fn pictures_that_a_restored_store_does_not_know_stay_until_they_are_collected() {
    let mut farm = Farm::start();
    let worker = farm.worker("a");
    let known = done(&farm, 32);
    stop(&mut farm);
    fs::copy(farm.desk.path("data/store"), farm.desk.path("backup")).expect("can be copied");
    farm.start_coordinator();
    let unknown = done(&farm, 33);
    let (lost, path) = picture_of(&farm, &unknown);
    stop(&mut farm);
    fs::copy(farm.desk.path("backup"), farm.desk.path("data/store")).expect("can be copied");
    let foreign = farm.desk.path("data/pictures").join("ab".repeat(32));
    fs::write(&foreign, "somebody else's").expect("can be written");
    fs::write(farm.desk.path("data/pictures/notes"), "mine").expect("can be written");
    farm.start_coordinator();
    farm.call(&["get", &unknown]).refused(3, &["is not known"]);
    farm.call(&["delete", &known]).quiet();
    until("the deleted job's picture is gone", || pictures(&farm).len() == 2);
    stop(&mut farm);
    farm.start_coordinator();
    assert!(path.exists() && foreign.exists());

    let young = farm.call(&["gc", "--older-than", "1h"]);
    assert!(young.code == Some(0) && young.stdout.is_empty(), "{young:?}");
    let listed = farm.call(&["gc", "--older-than", "0s", "--delete", "--json"]);
    let paths: Vec<_> = listed.stdout.lines().collect();
    assert!(paths.iter().any(|line| line.contains(&lost) && line.contains("\"deleted\":true")), "{listed:?}");
    assert!(!path.exists() && farm.desk.path("data/pictures/notes").exists());
    drop(worker);
}

#[test]
fn gc_without_delete_only_lists_and_leaves_what_jobs_have() {
    let farm = Farm::start();
    let _worker = farm.worker("a");
    let job = done(&farm, 34);
    let foreign = farm.desk.path("data/pictures").join("cd".repeat(32));
    fs::write(&foreign, "nobody's").expect("can be written");
    let listed = farm.call(&["gc", "--older-than", "0s"]);
    assert_eq!(listed.stdout.lines().count(), 1, "{listed:?}");
    assert!(listed.stdout.contains(&"cd".repeat(32)), "{listed:?}");
    assert!(listed.stderr.contains("--delete deletes them") && foreign.exists(), "{listed:?}");
    farm.call(&["gc", "--older-than", "0s", "--delete"]);
    assert!(!foreign.exists());
    farm.check_picture(&job, 34);
}

#[test]
fn a_store_that_was_cut_to_nothing_is_not_begun_anew_beside_its_pictures() {
    let mut farm = Farm::start();
    let _worker = farm.worker("a");
    done(&farm, 35);
    let kept = pictures(&farm);
    for fault in ["is empty", "is missing"] {
        stop(&mut farm);
        let store = farm.desk.path("data/store");
        let whole = fs::read(&store).expect("is there");
        if fault == "is empty" { fs::write(&store, "") } else { fs::remove_file(&store) }.expect("can be done");
        let args = ["coordinator", "--listen", "127.0.0.1:0", "--store", "redb:data/store"];
        let refused = farm.desk.fresco(&[&args[..], &["--artifacts", "file:data/pictures"]].concat());
        refused.refused(1, &["data/store", fault, "backup", "--adopt"]);
        assert_eq!(pictures(&farm), kept);
        fs::write(&store, whole).expect("can be written");
        farm.start_coordinator();
    }
    stop(&mut farm);
    fs::remove_file(farm.desk.path("data/store")).expect("is there");
    farm.start_coordinator_with(&["--adopt"]);
    assert_eq!(farm.call(&["list", "--json"]).quiet().stdout, "");
    assert_eq!(pictures(&farm), kept, "beginning anew deletes nothing");
}

#[test]
fn a_damaged_cut_or_missing_picture_is_found_and_made_again_to_equal_bytes() {
    let farm = Farm::start();
    let _worker = farm.worker("a");
    let job = done(&farm, 36);
    let (_, path) = picture_of(&farm, &job);
    let whole = fs::read(&path).expect("is there");
    let flip = || {
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 1;
        fs::write(&path, bytes)
    };
    let damages: [(&str, &dyn Fn() -> std::io::Result<()>); 4] = [
        ("is damaged", &flip),
        ("bytes instead of", &|| fs::write(&path, &whole[..whole.len() / 3])),
        ("has 0 bytes", &|| fs::write(&path, "")),
        ("is missing", &|| fs::remove_file(&path)),
    ];
    for (fault, damage) in damages {
        damage().expect("can be done");
        let retry = format!("`fresco retry {job}` makes it again");
        farm.call(&["download", &job, "--out", "lost.png"]).refused(1, &[fault, &retry]);
        assert!(!farm.desk.path("lost.png").exists());
        assert!(farm.call(&["get", &job]).quiet().stdout.contains("FAILED"));
        farm.call(&["retry", &job]).quiet();
        assert_eq!(farm.call(&["wait", &job]).code, Some(0));
        farm.check_picture(&job, 36);
        assert_eq!(fs::read(&path).expect("is there"), whole);
    }
}

#[test]
fn the_log_tells_what_happens_one_json_object_a_line() {
    let mut farm = Farm::start();
    stop(&mut farm);
    farm.start_coordinator_with(&["--log-format", "json"]);
    let worker = farm.worker("a");
    let job = done(&farm, 37);
    worker.kill();
    let coordinator = farm.coordinator.as_ref().expect("it runs");
    let started = Instant::now();
    let mut wanted = vec!["worker joined", "job submitted", "image done"];
    while !wanted.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(60), "it does not tell {wanted:?}");
        let line = coordinator.until_it_says("\"level\":");
        let event: serde_json::Value = serde_json::from_str(&line).expect("it is JSON");
        let message = event["message"].as_str().expect("every event has one").to_owned();
        if message == "job submitted" {
            assert_eq!(event["job"].as_str(), Some(job.as_str()));
        }
        wanted.retain(|wanted| *wanted != message);
    }
}
