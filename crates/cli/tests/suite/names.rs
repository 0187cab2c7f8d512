//! Where pictures go: names that files cannot have are refused before any work, and a picture that is made is kept.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::desk::{Desk, FRESCO, Run, SMALL};

/// A picture nobody would wait for: if it is begun, the test does not end.
const LONG: [&str; 6] = ["render", "a calm sea at dawn", "--size", "512x512", "--steps", "999"];

/// Runs a long render with `args`, which must be refused as wrong usage before it begins.
fn refused(desk: &Desk, args: &[&str], parts: &[&str]) {
    desk.fresco(&[&LONG, args].concat()).refused(2, parts);
}

#[test]
fn a_folder_takes_the_files_inside_it() {
    let desk = Desk::new();
    for folder in ["pictures", "folder.png"] {
        std::fs::create_dir(desk.path(folder)).expect("a folder can be made");
        let names = ["a-calm-sea-at-dawn-s0.png", "a-calm-sea-at-dawn-s1.png"].map(|name| format!("{folder}/{name}"));
        let run = desk.render(&["--out", folder, "--count", "2"]).quiet();
        assert!(run.stdout.lines().zip(&names).all(|(line, name)| line.starts_with(name.as_str())), "{run:?}");
        let again = desk.render(&["--out", &format!("{folder}/")]).quiet();
        assert!(again.stdout.contains("a-calm-sea-at-dawn-s0-2.png"), "{again:?}");
    }
    assert_eq!(desk.files(), ["folder.png", "pictures"]);
    desk.render(&["--out", "."]).quiet();
    assert!(desk.path("a-calm-sea-at-dawn-s0.png").is_file());
}

#[test]
fn a_name_with_another_ending_or_none_is_refused() {
    let desk = Desk::new();
    for out in ["a.gif", "a.jpg", "a", ".png", "a.png.gz"] {
        refused(&desk, &["--out", out], &[&format!("--out {out}:"), ".png or .safetensors"]);
    }
    refused(&desk, &["--out", ""], &["--out"]);
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn a_folder_that_is_none_is_refused() {
    let desk = Desk::new();
    desk.write("file", "x");
    std::os::unix::fs::symlink("loop", desk.path("loop")).expect("a link can be made");
    refused(&desk, &["--out", "nowhere/a.png"], &["nowhere/a.png", "create it"]);
    refused(&desk, &["--out", "nowhere/"], &["--out nowhere/:", "create it"]);
    refused(&desk, &["--out", "nowhere.png/"], &["--out nowhere.png/:", "create it"]);
    refused(&desk, &["--out", "file/a.png"], &["file/a.png", "file is not a folder"]);
    refused(&desk, &["--out", "file/deeper/a.png"], &["file/deeper", "Not a directory"]);
    refused(&desk, &["--out", "loop/a.png"], &["loop", "symbolic links"]);
    assert_eq!(desk.files(), ["file", "loop"]);
}

#[test]
fn a_folder_that_takes_no_files_is_refused() {
    // Mode bits do not bind root, under whom tests may run; no one makes files there.
    if Path::new("/proc/self").is_dir() {
        let run = Desk::new().fresco(&[&LONG[..], &["--out", "/proc/a.png"]].concat());
        run.refused(1, &["/proc/a.png", "cannot write to /proc"]);
    }
}

#[test]
fn a_name_that_is_too_long_is_refused_with_all_that_is_added_to_it() {
    let desk = Desk::new();
    let name = |n_bytes: usize, ending: &str| format!("{}{ending}", "n".repeat(n_bytes - ending.len()));
    let check = |out: &str, more: &[&str]| {
        refused(&desk, &[&["--out", out], more].concat(), &["--out n", "File name too long", "shorter"]);
    };
    check(&name(256, ".png"), &[]);
    check(&name(256, ".safetensors"), &["--force"]);
    // The seeds 9 and 10: the second is one byte longer.
    check(&name(253, ".png"), &["--seed", "9", "--count", "2"]);
    check(&name(255, ".png"), &["--preview-every", "1"]);
    let deep = format!("{}a.png", "folder/".repeat(1000));
    refused(&desk, &["--out", &deep], &["File name too long"]);
    let longest = name(255, ".png");
    desk.render(&["--out", &longest]).quiet();
    assert_eq!(desk.files(), [longest]);
}

#[test]
fn the_last_of_many_names_is_checked_too() {
    let desk = Desk::new();
    desk.write("m-99999.png", "old");
    refused(&desk, &["--count", "100000", "--out", "m.png"], &["m-99999.png exists"]);
    assert_eq!(desk.files(), ["m-99999.png"]);
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let desk = Desk::new();
    let made = Command::new("mkfifo").arg(desk.path("pipe.png")).status().expect("mkfifo is there");
    assert!(made.success());
    for (name, target) in [("nothing.png", "nowhere"), ("device.png", "/dev/null"), ("pipe-too.png", "pipe.png")] {
        std::os::unix::fs::symlink(target, desk.path(name)).expect("a link can be made");
    }
    let files = desk.files();
    for force in [&[][..], &["--force"]] {
        refused(&desk, &[&["--out", "nothing.png"], force].concat(), &["nothing.png", "a link to nothing"]);
        for name in ["pipe.png", "device.png", "pipe-too.png"] {
            refused(&desk, &[&["--out", name], force].concat(), &[name, "a pipe, a device"]);
        }
    }
    assert_eq!(desk.files(), files);
}

#[test]
fn a_picture_whose_name_is_lost_meanwhile_is_kept_and_named() {
    let desk = Desk::new();
    let args = ["render", "x", "--size", "128x128", "--steps", "24", "--preview-every", "1", "--out", "a.png"];
    for (force, reason) in [(&[][..], "exists by now"), (&["--force"], "cannot write a.png")] {
        let mut command = desk.command(FRESCO, &[&args[..], force].concat());
        let mut child = command.env("FRESCO_LOG", "fresco=debug").stderr(Stdio::piped()).spawn().expect("it starts");
        let mut said = BufReader::new(child.stderr.take().expect("is piped")).lines().map_while(Result::ok);
        assert!(said.by_ref().any(|line| line.contains("preview written")), "it did not come to its first step");
        std::fs::create_dir(desk.path("a.png")).expect("the name is free yet");
        let last = said.last().expect("it says why it ends");
        assert_eq!(child.wait().expect("it ends").code(), Some(1), "{last}");
        let (fault, kept) = last.split_once("the picture is whole in ").unwrap_or_else(|| panic!("{last}"));
        assert!(fault.contains(reason), "{last}");
        let kept = desk.path(kept);
        assert!(std::fs::read(&kept).expect("it is kept").starts_with(b"\x89PNG"));
        std::fs::remove_file(kept).expect("it is there");
        assert_eq!(desk.files(), ["a.png"]);
        std::fs::remove_dir(desk.path("a.png")).expect("it is empty");
    }
}

#[test]
fn a_full_disk_leaves_no_file() {
    let desk = Desk::new();
    // With the signal's default action the limit would end the process, with the action to ignore it is an error at once.
    for script in ["ulimit -f 1; exec \"$0\" \"$@\"", "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\""] {
        for out in ["a.png", "a.safetensors"] {
            let args = [&["-c", script, FRESCO], &SMALL[..], &["--out", out]].concat();
            Run::of(&mut desk.command("sh", &args)).refused(1, &["cannot write", out, "File too large"]);
            assert_eq!(desk.files(), Vec::<String>::new());
        }
    }
}
