//! `fresco verify` on pictures that are whole, changed, and not ours.

use std::io::Cursor;

use crate::desk::{Desk, safetensors_file, tensors};

/// `bytes`, a PNG, with its first pixel's red two levels higher or lower and its text chunks kept.
fn with_one_pixel_changed(bytes: &[u8]) -> Vec<u8> {
    let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().expect("is a PNG");
    let mut samples = vec![0; reader.output_buffer_size().expect("has a size")];
    reader.next_frame(&mut samples).expect("is a picture");
    samples[0] ^= 2;
    let info = reader.info().clone();
    let mut changed = Vec::new();
    let mut writer =
        png::Encoder::with_info(&mut changed, info).and_then(png::Encoder::write_header).expect("can be written");
    writer.write_image_data(&samples).and_then(|()| writer.finish()).expect("can be written");
    changed
}

#[test]
fn a_picture_is_its_own_proof() {
    let desk = Desk::new();
    for (name, bit_depth) in [("a.png", "8"), ("b.png", "16"), ("c.safetensors", "8")] {
        let more = ["--guidance", "3.3", "--negative", "fog", "--seed", "18446744073709551615", "--clean", "none"];
        desk.render(&[&["--out", name, "--bit-depth", bit_depth], &more[..]].concat()).quiet();
        let run = desk.fresco(&["verify", name, "--threads", "1"]).quiet();
        assert_eq!(run.stdout, format!("{name}: same bytes\n"));
    }
}

#[test]
fn a_changed_pixel_is_noticed() {
    let desk = Desk::new();
    desk.render(&["--out", "a.png"]).quiet();
    desk.write("b.png", with_one_pixel_changed(&desk.read("a.png")));
    let run = desk.fresco(&["verify", "b.png"]);
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""), "{run:?}");
    assert_eq!(run.stdout, "b.png: differs: 1 of 4096 pixels differ, by at most 2 levels\n");
    let json = desk.fresco(&["verify", "b.png", "--json"]).json();
    assert_eq!((&json["same_bytes"], &json["n_values_differ"]), (&false.into(), &1.into()));
}

#[test]
fn another_model_is_said_to_be_another() {
    let desk = Desk::new();
    desk.render(&["--out", "a.safetensors"]).quiet();
    let model = desk.demo_copy();
    let file = model.join("vae/diffusion_pytorch_model.safetensors");
    let mut entries = tensors(&std::fs::read(&file).expect("can be read"));
    for entry in entries.iter_mut().filter(|entry| entry.name == "decoder.conv_out.bias") {
        // One half, in half precision.
        entry.bytes[..2].copy_from_slice(&[0, 0x38]);
    }
    std::fs::write(&file, safetensors_file(&entries)).expect("can be written");
    let run = desk.fresco(&["verify", "a.safetensors", "--model", model.to_str().expect("is text")]);
    assert_eq!(run.code, Some(1), "{run:?}");
    assert!(
        run.stdout.contains("the model's weights differ: its sha256 was ") && run.stdout.contains("pixels differ"),
        "{run:?}"
    );
}

#[test]
fn what_is_not_ours_is_refused() {
    let desk = Desk::new();
    let mut plain = Vec::new();
    let mut encoder = png::Encoder::new(&mut plain, 1, 1);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("can be written");
    writer.write_image_data(&[0; 3]).and_then(|()| writer.finish()).expect("can be written");
    desk.write("plain.png", &plain);
    desk.write("cut.png", &plain[..plain.len() - 20]);
    desk.write("text.png", "text");
    desk.fresco(&["verify", "plain.png"]).refused(1, &["plain.png", "no metadata of fresco"]);
    desk.fresco(&["verify", "cut.png"]).refused(1, &["cut.png"]);
    desk.fresco(&["verify", "text.png"]).refused(1, &["text.png", "neither a PNG nor a safetensors file"]);
    desk.fresco(&["verify", "nowhere.png"]).refused(3, &["nowhere.png"]);
    desk.fresco(&["verify", "."]).refused(1, &["picture ."]);
}
