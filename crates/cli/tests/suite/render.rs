//! Pictures that are rendered: the files, what is in them, and what is said about them.

use std::io::{Cursor, Write};
use std::process::Stdio;

use plan::LatentSize;
use safetensors::{Dtype, SafeTensors};

use crate::desk::{Desk, Entry, FRESCO, Run, SMALL, safetensors_file, values};

/// Size, bits, samples and text chunks of a PNG.
struct Png {
    size: (u32, u32),
    bit_depth: png::BitDepth,
    samples: Vec<u8>,
    fresco: String,
    parameters: Option<String>,
}

fn png(bytes: &[u8]) -> Png {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("is a PNG");
    let mut samples = vec![0; reader.output_buffer_size().expect("has a size")];
    reader.next_frame(&mut samples).expect("is a picture");
    let info = reader.info();
    assert_eq!(info.color_type, png::ColorType::Rgb);
    let chunk = |keyword: &str| {
        let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == keyword);
        chunk.map(|chunk| chunk.get_text().expect("is text"))
    };
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == "parameters");
    Png {
        size: info.size(),
        bit_depth: info.bit_depth,
        samples,
        fresco: chunk("fresco").expect("has metadata"),
        parameters: plain.map(|chunk| chunk.text.clone()).or(chunk("parameters")),
    }
}

#[test]
fn a_picture_is_written_and_the_only_line_says_where() {
    let desk = Desk::new();
    let run = desk.render(&[]).quiet();
    assert_eq!(desk.files(), ["a-calm-sea-at-dawn-s0.png"]);
    assert_eq!(run.stdout.lines().count(), 1);
    assert!(run.stdout.starts_with("a-calm-sea-at-dawn-s0.png: 64x64, 2 steps, seed 0, in "), "{run:?}");
    assert_eq!(png(&desk.read("a-calm-sea-at-dawn-s0.png")).size, (64, 64));
}

#[test]
fn the_default_name_is_numbered_when_it_is_taken() {
    let desk = Desk::new();
    for _ in 0..3 {
        desk.render(&[]).quiet();
    }
    let files = ["a-calm-sea-at-dawn-s0-2.png", "a-calm-sea-at-dawn-s0-3.png", "a-calm-sea-at-dawn-s0.png"];
    assert_eq!(desk.files(), files);
}

#[test]
fn width_goes_before_height() {
    let desk = Desk::new();
    desk.fresco(&["render", "x", "--steps", "1", "--size", "96x64", "--out", "a.png"]).quiet();
    assert_eq!(png(&desk.read("a.png")).size, (96, 64));
}

#[test]
fn equal_requests_give_equal_bytes_on_any_number_of_threads() {
    let desk = Desk::new();
    for (name, threads) in [("a.png", "1"), ("b.png", "2"), ("c.png", "2")] {
        desk.render(&["--out", name, "--threads", threads]).quiet();
    }
    assert_eq!(desk.read("a.png"), desk.read("b.png"));
    assert_eq!(desk.read("b.png"), desk.read("c.png"));
    desk.render(&["--out", "d.png", "--seed", "1"]).quiet();
    assert_ne!(png(&desk.read("a.png")).samples, png(&desk.read("d.png")).samples);
}

#[test]
fn a_picture_says_how_it_was_made() {
    let desk = Desk::new();
    desk.render(&["--out", "a.png", "--negative", "fog", "--guidance", "3.25", "--seed", "7"]).quiet();
    let png = png(&desk.read("a.png"));
    let said: serde_json::Value = serde_json::from_str(&png.fresco).expect("is JSON");
    let sha256 = said["model"]["sha256"].as_str().expect("is text");
    assert_eq!(sha256.len(), 64);
    let digests = said["model"]["digests"].as_object().expect("what differs can be named");
    let parts: Vec<&str> = digests.keys().map(String::as_str).collect();
    assert_eq!(parts, ["configuration", "noise_schedule", "tokenizer", "weights"]);
    let expected = serde_json::json!({
        "prompt": "a calm sea at dawn", "negative": "fog", "seed": 7, "size": "64x64", "steps": 2,
        "guidance": 3.25, "clean": "basic", "bit_depth": 8, "model": {"name": "demo", "sha256": sha256, "digests": digests},
        "version": env!("CARGO_PKG_VERSION"), "numeric_class": said["numeric_class"], "plan": "exact",
        "approximations": [],
    });
    assert_eq!(said, expected);
    let parameters = format!(
        "a calm sea at dawn\nNegative prompt: fog\nSteps: 2, Sampler: DPM++ 2M, CFG scale: 3.25, Seed: 7, \
         Size: 64x64, Model: demo, Model hash: {}",
        &sha256[..10]
    );
    assert_eq!(png.parameters.as_deref(), Some(parameters.as_str()));
}

#[test]
fn a_prompt_beyond_latin_1_is_kept() {
    let desk = Desk::new();
    let prompt = "海 at dawn";
    desk.fresco(&["render", prompt, "--size", "64", "--steps", "1", "--out", "a.png"]).quiet();
    let png = png(&desk.read("a.png"));
    assert!(png.fresco.contains(prompt) && png.parameters.is_some_and(|text| text.starts_with(prompt)));
}

#[test]
fn tensors_are_written_and_agree_with_both_depths_of_the_picture() {
    let desk = Desk::new();
    for out in ["a.safetensors", "a.png"] {
        desk.render(&["--out", out]).quiet();
    }
    desk.render(&["--out", "deep.png", "--bit-depth", "16"]).quiet();
    let bytes = desk.read("a.safetensors");
    let file = SafeTensors::deserialize(&bytes).expect("is a safetensors file");
    assert_eq!(file.tensor("latents").expect("is there").shape(), [1, 4, 8, 8]);
    assert_eq!(file.tensor("image").expect("is there").shape(), [1, 3, 64, 64]);
    assert_eq!(file.tensor("embeds").expect("is there").shape()[0], 1);
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("has a header");
    let said = header.metadata().as_ref().and_then(|entries| entries.get("fresco")).expect("has metadata");
    assert!(said.contains("\"prompt\":\"a calm sea at dawn\""), "{said}");

    let image = values(&bytes, "image");
    let (plain, deep) = (png(&desk.read("a.png")), png(&desk.read("deep.png")));
    assert_eq!((plain.bit_depth, deep.bit_depth), (png::BitDepth::Eight, png::BitDepth::Sixteen));
    for (idx, value) in image.iter().enumerate() {
        let (channel, pixel) = (idx / (64 * 64), idx % (64 * 64));
        let place = 3 * pixel + channel;
        assert_eq!(plain.samples[place], (value * 255.0).round_ties_even() as u8);
        let sample = u16::from_be_bytes([deep.samples[2 * place], deep.samples[2 * place + 1]]);
        assert_eq!(sample, (value * 65535.0).round_ties_even() as u16);
    }
    desk.render(&["--out", "b.safetensors", "--threads", "1"]).quiet();
    assert_eq!(bytes, desk.read("b.safetensors"));
}

#[test]
fn a_count_gives_as_many_pictures_with_their_seeds_in_their_names() {
    let desk = Desk::new();
    let run = desk.render(&["--count", "3", "--seed", "7", "--out", "a.png", "--json"]).quiet();
    assert_eq!(desk.files(), ["a-7.png", "a-8.png", "a-9.png"]);
    let lines: Vec<serde_json::Value> =
        run.stdout.lines().map(|line| serde_json::from_str(line).expect("is JSON")).collect();
    assert_eq!(lines.iter().map(|line| line["seed"].as_u64()).collect::<Vec<_>>(), [Some(7), Some(8), Some(9)]);
    desk.render(&["--seed", "8", "--out", "alone.png"]).quiet();
    assert_eq!(desk.read("alone.png"), desk.read("a-8.png"));
}

#[test]
fn json_is_all_that_is_on_standard_output() {
    let desk = Desk::new();
    let json = desk.render(&["--json", "--out", "a.png"]).quiet().json();
    assert_eq!((&json["path"], &json["size"], &json["steps"]), (&"a.png".into(), &"64x64".into(), &2.into()));
    assert!(json["seconds"].as_f64() > json["seconds_per_step"].as_f64());
    let hash = desk.fresco(&["verify", "a.png", "--json"]).quiet().json();
    assert_eq!((&json["sha256"], &hash["same_bytes"]), (&hash["sha256"], &true.into()));
}

#[test]
fn force_replaces_a_file() {
    let desk = Desk::new();
    desk.write("a.png", "old");
    desk.render(&["--out", "a.png", "--force"]).quiet();
    assert!(desk.read("a.png").starts_with(b"\x89PNG"));
    assert_eq!(desk.files(), ["a.png"]);
}

#[test]
fn a_prompt_may_come_from_standard_input() {
    let desk = Desk::new();
    desk.render(&["--out", "a.png"]).quiet();
    let args = [&["render", "-"], &SMALL[2..], &["--out", "b.png"]].concat();
    let mut command = desk.command(FRESCO, &args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program can be started");
    let mut stdin = child.stdin.take().expect("is piped");
    stdin.write_all(b"a calm sea at dawn\n").expect("it reads");
    drop(stdin);
    Run::from(child.wait_with_output().expect("it ends")).quiet();
    assert_eq!(desk.read("a.png"), desk.read("b.png"));
}

#[test]
fn given_noise_takes_the_place_of_the_seeds() {
    let desk = Desk::new();
    let noise = model::noise::initial(5, LatentSize { rows: 8, cols: 8 }).expect("noise can be drawn");
    let noise: Vec<f32> = noise.flatten_all().and_then(|noise| noise.to_vec1()).expect("is f32");
    let bytes = noise.iter().flat_map(|value| value.to_le_bytes()).collect();
    let entry = Entry { name: "latents".into(), dtype: Dtype::F32, shape: vec![1, 4, 8, 8], bytes };
    desk.write("noise.safetensors", safetensors_file(&[entry]));
    desk.render(&["--seed", "5", "--out", "a.safetensors"]).quiet();
    desk.render(&["--latents", "noise.safetensors", "--out", "b.safetensors"]).quiet();
    assert_eq!(values(&desk.read("a.safetensors"), "image"), values(&desk.read("b.safetensors"), "image"));
    desk.fresco(&["verify", "b.safetensors"]).refused(1, &["b.safetensors", "--latents"]);
    let run = desk.fresco(&["verify", "b.safetensors", "--latents", "noise.safetensors"]).quiet();
    assert_eq!(run.stdout, "b.safetensors: same bytes\n");
}

#[test]
fn previews_come_and_go_and_change_nothing() {
    let desk = Desk::new();
    desk.render(&["--out", "a.png"]).quiet();
    let args = [&SMALL[..], &["--out", "b.png", "--preview-every", "1"]].concat();
    let run = Run::of(desk.command(FRESCO, &args).env("FRESCO_LOG", "fresco=debug"));
    assert!(run.code == Some(0) && run.stderr.contains("preview written"), "{run:?}");
    assert!(run.stderr.contains("b.preview.png"), "{run:?}");
    assert_eq!(desk.files(), ["a.png", "b.png"]);
    assert_eq!(desk.read("a.png"), desk.read("b.png"));
}
