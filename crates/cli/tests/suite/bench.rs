//! `fresco bench`, at sizes that take no time.

use crate::desk::Desk;

#[test]
fn a_bench_of_what_cannot_be_is_refused() {
    let desk = Desk::new();
    desk.fresco(&["bench", "step", "--size", "16x16", "--kv-ratio", "4"]).refused(2, &["16x16", "R = 4", "no keys"]);
    desk.fresco(&["bench", "step", "--decode", "--widths", "8,8"]).refused(2, &["widths", "four"]);
    desk.fresco(&["bench", "vae", "--roofline", "--json"]).refused(2, &["--roofline", "--json"]);
}

#[test]
fn a_bench_of_a_picture_tells_every_stage() {
    let small =
        ["bench", "step", "--size", "64x64", "--blocks", "2", "--heads", "1", "--kv-ratio", "2", "--steps", "2"];
    let decode = ["--decode", "--widths", "8,8,16,16"];
    let run = Desk::new().fresco(&[&small[..], &decode].concat());
    let said = run.quiet().stdout;
    for part in
        ["captions: ", "step of 2 blocks of 72 channels at 64x64, R = 2", "decode of 64x64: ", "all of it, 2 steps: "]
    {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
}
