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

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let dir = tempfile::tempdir().expect("the system has room for a folder");
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).expect("can be written");
    write("1.safetensors", &file_with_header_of(80, "a"));
    write("2.safetensors", &file_with_header_of(80, "a"));
    write("m.safetensors.index.json", br#"{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#);
    let faults = Weights::open(dir.path(), "vae").map(|_| ()).expect_err("which one counts is not known");
    assert_eq!(faults, ["vae: tensor `a` is in both 1.safetensors and 2.safetensors"]);
    for outside in ["../1.safetensors", "/etc/passwd", ".."] {
        let index = format!(r#"{{"weight_map": {{"a": "{outside}"}}}}"#);
        write("m.safetensors.index.json", index.as_bytes());
        assert!(Weights::open(dir.path(), "vae").is_err(), "{outside}");
    }
}
