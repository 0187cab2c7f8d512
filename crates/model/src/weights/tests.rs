//! Weight files that look like something else, and folders that say a thing twice.

use super::*;

/// A safetensors file with one f32 named `name`, its header padded to `header_len` bytes.
fn file_with_header_of(header_len: usize, name: &str) -> Vec<u8> {
    let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
    assert!(header.len() <= header_len);
    let header = format!("{header:header_len$}");
    [&(header_len as u64).to_le_bytes(), header.as_bytes(), &1.5_f32.to_le_bytes()].concat()
}

/// Pickles begin with byte 0x80 and their protocol's number, and so does a header of 0x280 to 0x580 bytes.
#[test]
fn a_header_whose_length_looks_like_a_pickle_is_read() {
    let dir = tempfile::tempdir().expect("the system has room for a folder");
    let path = dir.path().join("model.safetensors");
    for header_len in [0x80, 0x280, 0x380, 0x480, 0x580] {
        std::fs::write(&path, file_with_header_of(header_len, "a")).expect("the folder can be written");
        let weights = Weights::open(dir.path(), "vae").expect("it is a safetensors file");
        assert_eq!(weights.f32("a").and_then(|a| a.to_vec1::<f32>()).expect("a value"), [1.5], "{header_len}");
    }
    std::fs::write(&path, b"\x80\x02}q\x00.").expect("the folder can be written");
    let faults = Weights::open(dir.path(), "vae").map(|_| ()).expect_err("a pickle is never read");
    assert!(matches!(&faults[..], [fault] if fault.contains("is a pickle")), "{faults:?}");
}

fn folder_of(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("the system has room for a folder");
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).expect("can be written");
    }
    dir
}

/// The first fault of the folder of `files`, read for the tensor `a`.
fn fault(files: &[(&str, &[u8])]) -> Option<String> {
    let dir = folder_of(files);
    let wanted = vec![(vec!["a".to_owned()], vec![1])];
    Weights::open_for(dir.path(), "vae", &wanted).err().and_then(|faults| faults.into_iter().next())
}

#[test]
fn a_tensor_in_two_shards_is_read_from_the_one_that_the_index_names() {
    let file = file_with_header_of(80, "a");
    let shards: [(&str, &[u8]); 2] = [("1.safetensors", &file), ("2.safetensors", &file)];
    let with = |index: &[u8]| fault(&[&shards[..], &[("m.safetensors.index.json", index)]].concat());
    assert_eq!(with(br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#), None);
    let neither = with(br#"{"weight_map": {"c": "1.safetensors", "b": "2.safetensors"}}"#);
    let expected = "vae: tensor `a` is in both 1.safetensors and 2.safetensors, and the index names neither";
    assert_eq!(neither.as_deref(), Some(expected));
    for outside in ["../1.safetensors", "/etc/passwd", ".."] {
        assert!(with(format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#).as_bytes()).is_some(), "{outside}");
    }
}

#[test]
fn a_shard_that_nobody_needs_may_be_missing_or_damaged() {
    let file = file_with_header_of(80, "a");
    let index = br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "3.safetensors"}}"#;
    let files: [(&str, &[u8]); 3] =
        [("1.safetensors", &file), ("2.safetensors", b"cut"), ("m.safetensors.index.json", index)];
    assert_eq!(fault(&files), None);
    assert_eq!(fault(&files[1..]).as_deref(), Some("vae: missing shards: `1.safetensors`"));
}

#[test]
fn sharded_variants_are_read_under_both_names_of_their_index() {
    let file = file_with_header_of(80, "a");
    for (shard, index) in [
        ("model.fp16-00001-of-00002.safetensors", "model.safetensors.index.fp16.json"),
        ("model-00001-of-00002.fp16.safetensors", "model.safetensors.fp16.index.json"),
        ("model-00001-of-00002.fp16.safetensors", "model.fp16.safetensors.index.json"),
    ] {
        let map = format!(r#"{{"weight_map": {{"a": "{shard}"}}}}"#);
        let files: [(&str, &[u8]); 2] = [(shard, &file), (index, map.as_bytes())];
        assert_eq!(fault(&files), None, "{index}");
        let without = fault(&files[..1]).expect("it is not known what is where");
        assert!(without.contains(shard) && without.contains("no index"), "{without}");
    }
}

#[test]
fn of_several_sets_the_plain_one_is_read_and_the_others_are_told_of() {
    let file = file_with_header_of(80, "a");
    let files: [(&str, &[u8]); 3] =
        [("model.bf16.safetensors", b"x"), ("model.fp16.safetensors", b"x"), ("model.safetensors", &file)];
    let dir = folder_of(&files);
    let weights = Weights::open_for(dir.path(), "vae", &vec![(vec!["a".into()], vec![1])]).expect("one is plain");
    assert_eq!(weights.unused().files, ["model.bf16.safetensors", "model.fp16.safetensors"]);
    let unclear = fault(&files[..2]).expect("neither is");
    assert!(unclear.contains("`model.bf16.safetensors`, `model.fp16.safetensors` could each be"), "{unclear}");
}
