//! Requests that cannot be met: each is refused in one line that names the value, and leaves no file.
//!
//! Leaves out faults of the model folder (`bad_model`) and names that files cannot have (`names`).

use std::path::Path;

use safetensors::Dtype;

use crate::desk::{Desk, Entry, FRESCO, Run, safetensors_file};

/// Runs `fresco render "x"` with `args`, which must be refused with `code` in a line that holds `parts`.
fn check(args: &[&str], code: i32, parts: &[&str]) {
    let desk = Desk::new();
    desk.fresco(&[&["render", "x"], args].concat()).refused(code, parts);
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn a_size_that_is_no_multiple_of_16_is_refused_with_its_neighbours() {
    check(&["--size", "500x512"], 2, &["500", "496 or 512"]);
    check(&["--size", "0x16"], 2, &["width 0"]);
    check(&["--size", "16x4294967290"], 2, &["4294967290"]);
}

#[test]
fn a_size_that_leaves_no_keys_once_compressed_is_refused() {
    check(&["--size", "16x64"], 2, &["size 16x64 is too small", "at least 32 px"]);
}

#[test]
fn a_size_that_is_none_is_refused() {
    for text in ["wide", "64x", "x64", "64x64x64", "-64x64", "1e3x64", "", "99999999999999999999x16"] {
        check(&[&format!("--size={text}")], 2, &["--size"]);
    }
}

#[test]
fn a_side_longer_than_any_pictures_is_refused_with_the_limit() {
    for (size, side) in [("8208x16", "width 8208"), ("16x4294967280", "height 4294967280")] {
        check(&["--size", size], 2, &[side, "at most 8192"]);
    }
}

#[test]
fn a_size_larger_than_memory_is_refused_with_the_need_and_what_there_is() {
    // Only Linux tells a process its own limit in a file.
    if Path::new("/proc/self/limits").is_file() {
        let desk = Desk::new();
        let script = "ulimit -v 2000000; exec \"$0\" \"$@\"";
        let args = ["-c", script, FRESCO, "render", "x", "--size", "4096x4096", "--threads", "1"];
        let said = ["4096x4096 needs", "1.9 GiB is available", "smaller --size"];
        Run::of(&mut desk.command("sh", &args)).refused(1, &said);
    }
}

#[test]
fn steps_out_of_range_are_refused() {
    check(&["--steps", "0"], 2, &["'0'", "--steps", "1 to 999"]);
    check(&["--steps", "1000"], 2, &["'1000'", "--steps", "1 to 999"]);
    check(&["--steps", "-1"], 2, &["'-1'", "--steps", "1 to 999"]);
    check(&["--steps", "many"], 2, &["'many'", "--steps"]);
}

#[test]
fn guidance_out_of_range_is_refused() {
    check(&["--guidance", "NaN"], 2, &["guidance NaN"]);
    check(&["--guidance", "inf"], 2, &["guidance inf"]);
    check(&["--guidance", "-1"], 2, &["guidance -1"]);
    check(&["--guidance", "much"], 2, &["'much'", "--guidance"]);
}

#[test]
fn other_numbers_out_of_range_are_refused() {
    check(&["--threads", "0"], 2, &["'0'", "--threads"]);
    check(&["--threads", "1025"], 2, &["'1025'", "--threads"]);
    check(&["--count", "0"], 2, &["'0'", "--count"]);
    check(&["--seed", "-1"], 2, &["'-1'", "--seed", "`random`"]);
    check(&["--seed", "18446744073709551615", "--count", "2"], 2, &["18446744073709551615", "count of 2"]);
    check(&["--bit-depth", "12"], 2, &["'12'", "--bit-depth"]);
    check(&["--clean", "deep"], 2, &["'deep'", "--clean"]);
}

#[test]
fn a_device_that_is_none_is_refused_with_those_there_are() {
    let desk = Desk::new();
    for device in ["gpu", "cuda:x", "cuda:-1", "rocm:0"] {
        let parts = [device, "--device", "cpu, or cuda:N"];
        Run::of(&mut desk.command(FRESCO, &["worker", "--device", device])).refused(2, &parts);
        Run::of(&mut desk.command(FRESCO, &["bench", "block", "--device", device])).refused(2, &parts);
    }
}

#[test]
fn a_gpu_that_cannot_be_used_is_refused_before_anything_is_read() {
    let desk = Desk::new();
    // Whether there is no driver, an old one or no such GPU: nobody has a thousand.
    for args in
        [&["worker", "--model", "nowhere", "--device", "cuda:1000"][..], &["bench", "vae", "--device", "cuda:1000"]]
    {
        Run::of(&mut desk.command(FRESCO, args)).refused(9, &["device: ", "driver"]);
    }
}

#[test]
fn a_flag_that_does_not_exist_is_refused() {
    check(&["--stpes", "3"], 2, &["--stpes", "--steps"]);
    let desk = Desk::new();
    desk.fresco(&["render"]).refused(2, &["<PROMPT>"]);
    desk.fresco(&["rendr"]).refused(2, &["rendr", "render"]);
}

#[test]
fn control_characters_are_refused_by_place() {
    let desk = Desk::new();
    desk.fresco(&["render", "a\u{7}b"]).refused(2, &["the prompt", "U+0007", "character 2"]);
    desk.fresco(&["render", "a", "--negative", "\u{1b}[31m"]).refused(2, &["the negative prompt", "U+001B"]);
    assert_eq!(desk.files(), Vec::<String>::new());
}

#[test]
fn an_empty_prompt_is_rendered() {
    let desk = Desk::new();
    desk.fresco(&["render", "", "--size", "64x64", "--steps", "1"]).quiet();
    assert_eq!(desk.files(), ["picture-s0.png"]);
}

#[test]
fn a_prompt_over_300_tokens_is_rendered_and_what_was_cut_is_said_once() {
    let desk = Desk::new();
    let prompt = format!("{}a city skyline", "a calm sea at dawn ".repeat(100));
    let args = ["render", &prompt, "--size", "64x64", "--steps", "1", "--count", "2", "--out", "a.png"];
    let run = desk.fresco(&args);
    assert_eq!((run.code, run.said().len()), (Some(0), 1), "{run:?}");
    assert!(run.said()[0].starts_with("warning: the prompt has "), "{run:?}");
    assert!(run.stderr.contains("300 is the limit") && run.stderr.contains("a city skyline"), "{run:?}");
    assert_eq!(desk.files(), ["a-0.png", "a-1.png"]);
    check_long("x".repeat(70_000).as_str());
}

fn check_long(prompt: &str) {
    Desk::new().fresco(&["render", prompt]).refused(2, &["70000 bytes", "65536"]);
}

#[test]
fn a_model_that_is_nowhere_is_refused_with_the_places() {
    check(&["--model", "nowhere"], 3, &["`nowhere`", "models", "FRESCO_MODELS"]);
    check(&["--model", "./nowhere"], 3, &["`./nowhere`"]);
    check(&["--base", "nowhere"], 3, &["`nowhere`"]);
    let desk = Desk::new();
    desk.write("file", "x");
    desk.render(&["--model", "./file"]).refused(2, &["`./file`", "not a folder"]);
}

#[test]
fn a_file_that_exists_is_kept() {
    let desk = Desk::new();
    for name in ["a.png", "a.safetensors", "b-1.png", "c.preview.png"] {
        desk.write(name, "old");
    }
    desk.render(&["--out", "a.png"]).refused(2, &["a.png exists", "--force"]);
    desk.render(&["--out", "a.safetensors"]).refused(2, &["a.safetensors exists"]);
    desk.render(&["--out", "b.png", "--count", "2"]).refused(2, &["b-1.png exists"]);
    desk.render(&["--out", "c.png", "--preview-every", "1"]).refused(2, &["c.preview.png exists"]);
    assert_eq!(desk.files(), ["a.png", "a.safetensors", "b-1.png", "c.preview.png"]);
    assert_eq!(desk.read("a.png"), b"old");
}

#[test]
fn noise_that_does_not_fit_is_refused() {
    let desk = Desk::new();
    let noise = |file: &str, name: &str, dtype: Dtype, shape: &[usize], value: f32| {
        let n_values: usize = shape.iter().product();
        let bytes = match dtype {
            Dtype::F16 => vec![0; 2 * n_values],
            _ => (0..n_values).flat_map(|_| value.to_le_bytes()).collect(),
        };
        let entry = Entry { name: name.into(), dtype, shape: shape.to_vec(), bytes };
        desk.write(file, safetensors_file(&[entry]));
    };
    noise("name", "noise", Dtype::F32, &[1, 4, 8, 8], 0.0);
    noise("shape", "latents", Dtype::F32, &[1, 4, 8, 16], 0.0);
    noise("dtype", "latents", Dtype::F16, &[1, 4, 8, 8], 0.0);
    noise("value", "latents", Dtype::F32, &[1, 4, 8, 8], f32::INFINITY);
    noise("sound", "latents", Dtype::F32, &[1, 4, 8, 8], 0.0);
    desk.write("text", "not a tensor");
    desk.write("empty", "");
    let check = |file: &str, code: i32, parts: &[&str]| desk.render(&["--latents", file]).refused(code, parts);
    check("name", 2, &["--latents name", "no tensor `latents`", "noise"]);
    check("shape", 2, &["[1, 4, 8, 16]", "[1, 4, 8, 8]"]);
    check("dtype", 2, &["F16", "F32"]);
    check("value", 2, &["holds inf at element 0"]);
    check("text", 2, &["--latents text", "no safetensors file"]);
    check("empty", 2, &["--latents empty"]);
    check(".", 2, &["--latents ."]);
    check("nowhere", 3, &["--latents nowhere"]);
    desk.render(&["--latents", "sound", "--count", "2"]).refused(2, &["--latents", "--count"]);
    assert!(!desk.files().iter().any(|name| name.ends_with(".png")));
}
