//! What people bring along from other programs and from their surroundings: empty variables, other flags, other syntax.
//!
//! Leaves out settings files (`settings`).

use std::io::Write;
use std::process::Stdio;

use crate::desk::{Desk, FRESCO, Run, SMALL};

/// A small render with a variable set.
fn with(desk: &Desk, args: &[&str], name: &str, value: &str) -> Run {
    Run::of(desk.command(FRESCO, args).env(name, value))
}

fn piped(desk: &Desk, args: &[&str], input: &str) -> Run {
    let mut command = desk.command(FRESCO, args);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the program can be started");
    child.stdin.take().expect("is piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends").into()
}

#[test]
fn an_empty_variable_is_not_set() {
    let desk = Desk::new();
    let names = [
        "BASE",
        "BIT_DEPTH",
        "CLEAN",
        "COUNT",
        "FORCE",
        "GUIDANCE",
        "ISA",
        "JSON",
        "LATENTS",
        "LOG",
        "MODEL",
        "NEGATIVE",
        "OUT",
        "PREVIEW_EVERY",
        "SEED",
        "THREADS",
        "WORKERS",
    ];
    let mut all = desk.command(FRESCO, &SMALL);
    all.envs(names.map(|name| (format!("FRESCO_{name}"), "")));
    Run::of(&mut all).quiet();
    assert_eq!(desk.files(), ["a-calm-sea-at-dawn-s0.png"]);
    for name in ["FRESCO_SIZE", "FRESCO_STEPS"] {
        // The rest of the flags give it nothing to fail at before it looks for the model.
        with(&desk, &["render", "x", "--model", "nowhere"], name, "").refused(3, &["`nowhere`"]);
    }
    let mut list = desk.command(FRESCO, &["list"]);
    let farm = ["COORDINATOR", "JSON", "TLS_CERT"].map(|name| (format!("FRESCO_{name}"), ""));
    Run::of(list.envs(farm)).refused(9, &["http://127.0.0.1:7400"]);
    let mut coordinator = desk.command(FRESCO, &["coordinator", "--store", "redb:/proc/store"]);
    let roles = ["LISTEN", "STORE", "ARTIFACTS", "LEASE_TTL_MS", "STATUS"].map(|name| (format!("FRESCO_{name}"), ""));
    let run = Run::of(coordinator.envs(roles));
    assert!(run.code == Some(1) && run.stderr.contains("/proc/"), "{run:?}");
    with(&desk, &["worker", "drain"], "FRESCO_WORKER_NAME", "").refused(2, &["<NAME>"]);
}

#[test]
fn a_wrong_value_of_a_variable_is_told_by_its_name() {
    let desk = Desk::new();
    let check = |name: &str, value: &str, code: i32| {
        let run = with(&desk, &["render", "x", "--steps", "1"], name, value);
        run.refused(code, &[name, value]);
    };
    check("FRESCO_SEED", "many", 2);
    check("FRESCO_SIZE", "500x512", 2);
    check("FRESCO_THREADS", "-1", 2);
    check("FRESCO_JSON", "maybe", 2);
    check("FRESCO_GUIDANCE", "-1", 2);
    check("FRESCO_OUT", "x.gif", 2);
    check("FRESCO_MODEL", "nowhere", 3);
    check("FRESCO_BASE", "nowhere", 3);
    check("FRESCO_LATENTS", "nowhere", 3);
    with(&desk, &["list"], "FRESCO_COORDINATOR", "http://127.0.0.1:9").refused(9, &["FRESCO_COORDINATOR"]);
    // A flag goes before its variable, and is called by its name.
    with(&desk, &[&SMALL[..], &["--seed", "1"]].concat(), "FRESCO_SEED", "many").quiet();
    let run = with(&desk, &["render", "x", "--seed", "many"], "FRESCO_SEED", "few");
    assert!(run.stderr.contains("--seed") && !run.stderr.contains("FRESCO_SEED"), "{run:?}");
}

#[test]
fn an_address_to_listen_at_is_taken_or_refused_with_an_example() {
    let desk = Desk::new();
    for role in [&["serve", "--listen"][..], &["coordinator", "--status"], &["worker", "--listen"]] {
        for (address, example) in [("7400", "0.0.0.0:7400"), (":7401", "127.0.0.1:7401"), ("here:1", "127.0.0.1:")] {
            desk.fresco(&[role, &[address]].concat()).refused(2, &[&format!("'{address}'"), example]);
        }
    }
}

#[test]
fn flags_of_other_programs_are_answered_with_ours() {
    let desk = Desk::new();
    let check = |args: &[&str], parts: &[&str]| {
        for command in ["render", "submit"] {
            desk.fresco(&[&[command], args].concat()).refused(2, parts);
        }
    };
    check(&["a", "castle", "in", "fog"], &["'castle'", "put the whole prompt in quotes"]);
    check(&["x", "--width", "512", "--height", "512"], &["--width", "--size WIDTHxHEIGHT"]);
    check(&["x", "-W", "512"], &["-W", "--size"]);
    check(&["x", "-n", "4"], &["-n", "--count"]);
    check(&["x", "--cfg=7"], &["--cfg", "--guidance"]);
    check(&["x", "--guidance_scale", "7"], &["--guidance"]);
    check(&["x", "--num-inference-steps", "20"], &["--steps"]);
    check(&["x", "--negative-prompt", "fog"], &["--negative TEXT"]);
    check(&["x", "--resolution", "512"], &["--size"]);
    check(&["--prompt", "x"], &["--prompt", "the prompt stands alone"]);
    check(&["-5 degrees in the fog"], &["put -- before it"]);
    desk.fresco(&["a castle in fog"]).refused(2, &["fresco render \"a castle in fog\""]);
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn syntax_of_other_programs_is_drawn_and_said_to_be_text() {
    let desk = Desk::new();
    let prompt = "a (castle:1.3) <lora:style:0.8> in __season__";
    let json = ["render", prompt, "--size", "64", "--steps", "1", "--json", "--out", "a.png"];
    for more in [&["--negative", "(fog:1.1)"][..], &["--workers", "2", "--force", "--negative", "(fog:1.1)"]] {
        let run = desk.fresco(&[&json[..], more].concat());
        assert_eq!((run.code, run.said().len()), (Some(0), 4), "{run:?}");
        for part in ["`(castle:1.3)`", "`<lora:style:0.8>`", "`__season__`", "`(fog:1.1)` in the negative prompt"] {
            assert!(
                run.said().iter().any(|line| line.starts_with("warning: ") && line.contains(part)),
                "{part}: {run:?}"
            );
        }
        assert_eq!(run.json()["warnings"].as_array().map(Vec::len), Some(4), "{run:?}");
    }
}

#[test]
fn a_size_far_from_the_models_is_hinted_at() {
    let desk = Desk::new();
    let hints = |size: &str| {
        let run = desk.fresco(&["render", "x", "--steps", "1", "--size", size, "--out", "a.png", "--force"]).quiet();
        run.stderr.lines().filter(|line| line.contains("512x512")).count()
    };
    assert_eq!((hints("64"), hints("256x256"), hints("256x512")), (1, 0, 0));
}

#[test]
fn a_random_seed_is_drawn_told_and_written_down() {
    let desk = Desk::new();
    let seed = || {
        let run = desk.render(&["--seed", "random", "--count", "2", "--out", "a.png", "--json"]).quiet();
        let seeds: Vec<u64> = run
            .stdout
            .lines()
            .map(|line| {
                let told: serde_json::Value = serde_json::from_str(line).expect("is JSON");
                told["seed"].as_u64().expect("is a number")
            })
            .collect();
        assert_eq!(seeds[1], seeds[0] + 1);
        seeds[0]
    };
    let first = seed();
    let name = format!("a-{first}.png");
    desk.fresco(&["verify", &name]).quiet();
    desk.render(&["--seed", &first.to_string(), "--out", "again.png"]).quiet();
    assert_eq!(desk.read(&name), desk.read("again.png"));
    assert!((0..8).any(|_| seed() != first), "nine equal seeds were drawn");
    desk.fresco(&["submit", "x", "--seed", "random", "--request-id", "a"]).refused(2, &["--request-id", "--seed"]);
}

#[test]
fn each_line_of_a_file_is_a_prompt() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("shots")).expect("a folder can be made");
    desk.write("shots.txt", "\u{feff}a calm sea at dawn\r\n\n  a deep canyon\n");
    let flags = ["--size", "64", "--steps", "1", "--count", "2", "--out", "shots"];
    desk.fresco(&[&["render", "--prompts", "shots.txt"], &flags[..]].concat()).quiet();
    let names =
        ["a-calm-sea-at-dawn-s0.png", "a-calm-sea-at-dawn-s1.png", "a-deep-canyon-s0.png", "a-deep-canyon-s1.png"];
    for name in names {
        assert!(desk.path("shots").join(name).is_file(), "{name}");
    }
    let alone = ["render", "a deep canyon", "--size", "64", "--steps", "1", "--seed", "1", "--out", "alone.png"];
    desk.fresco(&alone).quiet();
    assert_eq!(desk.read("shots/a-deep-canyon-s1.png"), desk.read("alone.png"));
    desk.write("empty.txt", "\n \n");
    desk.fresco(&["render", "--prompts", "empty.txt"]).refused(2, &["--prompts empty.txt", "no prompt"]);
    desk.fresco(&["render", "--prompts", "nowhere"]).refused(3, &["--prompts nowhere"]);
    desk.fresco(&["render", "x", "--prompts", "shots.txt"]).refused(2, &["PROMPT", "--prompts"]);
    desk.fresco(&["render", "--prompts", "shots.txt", "--out", "a.png"]).refused(2, &["--out a.png", "folder"]);
}

#[test]
fn several_lines_of_standard_input_are_one_prompt_and_it_is_said() {
    let desk = Desk::new();
    let args = ["render", "-", "--size", "64", "--steps", "1", "--out", "a.png", "--force"];
    let run = piped(&desk, &args, "a calm sea\na deep canyon\n");
    assert_eq!((run.code, run.said().len()), (Some(0), 1), "{run:?}");
    assert!(run.said()[0].contains("2 lines") && run.said()[0].contains("--prompts -"), "{run:?}");
    piped(&desk, &args, "a calm sea\n\n").quiet();
    let each = ["render", "--prompts", "-", "--size", "64", "--steps", "1"];
    piped(&desk, &each, "a calm sea\na deep canyon\n").quiet();
    assert_eq!(desk.files(), ["a-calm-sea-s0.png", "a-deep-canyon-s0.png", "a.png"]);
}
