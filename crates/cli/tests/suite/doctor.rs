//! `fresco doctor`, and what fresco says about itself.

use crate::desk::Desk;

#[test]
fn a_sound_machine_passes_the_doctor() {
    let desk = Desk::new();
    let run = desk.fresco(&["doctor"]).quiet();
    assert!(run.stdout.contains("numeric class") && !run.stdout.contains("fail  "), "{run:?}");
    let json = desk.fresco(&["doctor", "--json"]).quiet().json();
    assert_eq!(json["ok"], true);
    let run = desk.fresco(&["doctor", "--model", "nowhere"]);
    assert!(run.code == Some(1) && run.stdout.contains("fail  model"), "{run:?}");
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn completions_and_the_version_are_printed() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(desk.fresco(&["completion", shell]).quiet().stdout.contains("fresco"));
    }
    assert_eq!(desk.fresco(&["--version"]).quiet().stdout, format!("fresco {}\n", env!("CARGO_PKG_VERSION")));
    let help = desk.fresco(&["render", "--help"]).quiet().stdout;
    assert!(help.starts_with("Examples:\n") && !help.contains('\u{1b}'), "{help}");
}
