//! A tokenizer's identity: sha256 of what decides its ids, however its file is laid out.
//!
//! The two kinds of file are never taken for equal: marks such as `</s>` are text in one and marks in the other.

use prost::Message;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::ModelProto;

/// Keys of `tokenizer.json` that do not decide ids here.
const UNUSED: [&str; 4] = ["version", "truncation", "padding", "decoder"];

/// Of the values in `tokenizer.json`.
pub(super) fn of_json(json: &Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update("tokenizer.json\n");
    if let Value::Object(values) = json {
        let mut values = values.clone();
        values.retain(|key, _| !UNUSED.contains(&key.as_str()));
        add(&mut hash, &Value::Object(values));
    }
    hash.finalize().into()
}

/// Of the fields of `spiece.model` that are read.
pub(super) fn of_pieces(model: &ModelProto) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update("spiece.model\n");
    hash.update(model.encode_to_vec());
    hash.finalize().into()
}

/// A value with its keys in order; each part begins with its kind and length, so that no two values read alike.
fn add(hash: &mut Sha256, value: &Value) {
    let mut text = |kind: u8, text: &str| {
        hash.update([kind]);
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    match value {
        Value::Null => text(0, ""),
        Value::Bool(value) => text(1, if *value { "true" } else { "false" }),
        // The same number may be written `1` or `1.0`.
        Value::Number(number) => match number.as_f64() {
            Some(number) => text(2, &format!("{number:e}")),
            None => text(2, &number.to_string()),
        },
        Value::String(value) => text(3, value),
        Value::Array(values) => {
            text(4, &values.len().to_string());
            values.iter().for_each(|value| add(hash, value));
        }
        Value::Object(values) => {
            text(5, &values.len().to_string());
            let mut entries: Vec<_> = values.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (key, value) in entries {
                add(hash, &Value::String(key.clone()));
                add(hash, value);
            }
        }
    }
}
