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
