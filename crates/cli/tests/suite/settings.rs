//! Where a setting comes from: flag, environment, the project's file, the user's file, default.

use std::fs;

use crate::desk::{Desk, FRESCO, Run};

fn steps(desk: &Desk, flags: &[&str], variable: Option<&str>) -> u64 {
    let args = [&["render", "x", "--size", "64x64", "--json", "--force", "--out", "a.png"], flags].concat();
    let mut command = desk.command(FRESCO, &args);
    let run = Run::of(command.envs(variable.map(|steps| ("FRESCO_STEPS", steps)))).quiet();
    run.json()["steps"].as_u64().expect("is a number")
}

fn user_settings(desk: &Desk, text: &str) {
    let folder = desk.home().join(".config/fresco");
    fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("fresco.toml"), text)).expect("can be written");
}

#[test]
fn a_flag_goes_before_the_environment_before_the_project_before_the_user_before_the_default() {
    let desk = Desk::new();
    assert_eq!(steps(&desk, &[], None), 20);
    user_settings(&desk, "[render]\nsteps = 5\n");
    assert_eq!(steps(&desk, &[], None), 5);
    desk.write("fresco.toml", "[render]\nsteps = 4\n");
    assert_eq!(steps(&desk, &[], None), 4);
    assert_eq!(steps(&desk, &[], Some("3")), 3);
    assert_eq!(steps(&desk, &["--steps", "2"], Some("3")), 2);
}

#[test]
fn all_kinds_of_settings_are_taken() {
    let desk = Desk::new();
    desk.write(
        "fresco.toml",
        "[render]\nsize = \"64x64\"\nsteps = 1\nguidance = 1.0\njson = true\nout = \"b.png\"\nbit-depth = 16\n",
    );
    let json = desk.fresco(&["render", "x"]).quiet().json();
    assert_eq!((&json["size"], &json["guidance"], &json["path"]), (&"64x64".into(), &1.0.into(), &"b.png".into()));
}

#[test]
fn settings_that_are_not_understood_are_refused_with_file_and_key() {
    let desk = Desk::new();
    let check = |text: &str, parts: &[&str]| {
        desk.write("fresco.toml", text);
        desk.fresco(&["render", "x"]).refused(2, parts);
    };
    check("[render]\nstpes = 1\n", &["fresco.toml", "`render.stpes`"]);
    check("[draw]\nsteps = 1\n", &["fresco.toml", "`draw`"]);
    check("[render]\nsteps = \"many\"\n", &["fresco.toml", "`render.steps`", "'many'"]);
    check("[render]\nsteps = 1\nsteps = 2\n", &["fresco.toml, line 3"]);
    check("[render\n", &["fresco.toml, line 1"]);
    check("[render]\nsize = \"65x64\"\n", &["fresco.toml", "65"]);
}

#[test]
fn a_list_gives_a_flag_several_values() {
    let desk = Desk::new();
    let check = |text: &str, code: i32, parts: &[&str]| {
        desk.write("fresco.toml", text);
        desk.fresco(&["serve"]).refused(code, parts);
    };
    check("[serve]\nmodel = [\"demo\", \"nowhere\"]\n", 3, &["`nowhere`"]);
    check("[serve]\nmodel = []\n", 2, &["`serve.model`", "empty"]);
    check("[serve]\nmodel = [[\"demo\"]]\n", 2, &["`serve.model`"]);
    check("[serve]\nthreads = [1]\n", 2, &["`serve.threads`"]);
}

#[test]
fn a_seed_beyond_what_toml_holds_is_text() {
    let desk = Desk::new();
    let largest = u64::MAX.to_string();
    desk.write("fresco.toml", format!("[render]\nseed = {largest}\n"));
    desk.fresco(&["render", "x"]).refused(2, &["fresco.toml, line 2", "in quotes"]);
    desk.write("fresco.toml", format!("[render]\nseed = \"{largest}\"\nsteps = 1\nsize = \"64\"\n"));
    desk.fresco(&["render", "x"]).quiet();
    assert!(desk.files().contains(&format!("x-s{largest}.png")), "{:?}", desk.files());
}

#[test]
fn a_home_that_cannot_be_looked_into_has_no_settings() {
    let desk = Desk::new();
    // Root may look into every folder; into a link to itself nobody.
    std::os::unix::fs::symlink("loop", desk.path("loop")).expect("a link can be made");
    let mut command = desk.command(FRESCO, &crate::desk::SMALL);
    Run::of(command.env("HOME", desk.path("loop"))).quiet();
    user_settings(&desk, "not settings");
    desk.render(&[]).refused(2, &["fresco.toml, line 1"]);
}
