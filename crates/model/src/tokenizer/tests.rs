//! The charsmap of a real tokenizer, whole and damaged, from both kinds of file.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;

use super::*;

const PIECES: &[u8] = include_bytes!("../../../../tests/goldens/a/model/tokenizer/spiece.model");
const TEXTS: [&str; 4] =
    ["e\u{301}\u{302}\u{323} many marks", "ﬁne ｆｕｌｌ  ｶﾞ", "\u{1}\u{200e}x\u{0}y", "👩‍👩‍👧‍👦 İ ﷺ \u{1100}\u{1161}"];

fn model_proto() -> ModelProto {
    ModelProto::decode(PIECES).expect("the golden tokenizer is a SentencePiece model")
}

fn charsmap_bytes() -> Vec<u8> {
    model_proto().normalizer.expect("it has a normalizer").charsmap
}

/// A `tokenizer.json` with `charsmap`, as converters of SentencePiece models write it.
fn json_with(charsmap: &[u8]) -> Vec<u8> {
    let model = model_proto();
    let vocabulary: Vec<_> = model.pieces.iter().map(|piece| json!([text_of(piece), piece.score])).collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(charsmap)},
            {"type": "Strip", "strip_left": true, "strip_right": true},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary, "byte_fallback": false},
    });
    serde_json::to_vec(&json).expect("it is JSON")
}

#[test]
fn both_kinds_of_file_give_the_same_tokens() {
    let pieces = from_pieces(PIECES).expect("the golden tokenizer opens");
    let json = from_json(&json_with(&charsmap_bytes())).expect("the same as JSON opens");
    for text in TEXTS {
        assert_eq!(pieces.encode(text), json.encode(text), "{text:?}");
    }
    let marks = json.encode(TEXTS[0]).expect("any text can be encoded");
    assert_eq!(marks.ids, [3, 2, 3, 29, 40, 12, 9, 3, 29, 40, 46, 24, 11, 1]);
}

#[test]
fn what_was_cut_is_counted_in_the_prompt_s_own_letters() {
    let tokenizer = from_pieces(PIECES).expect("the golden tokenizer opens");
    // Two letters that are dropped, one that becomes two, and 350 words of one token each.
    let tokens = tokenizer.encode(&format!("\u{1}\u{1}ﬁ {}", "a ".repeat(350))).expect("any text can be encoded");
    assert_eq!(tokens.ids.len(), MAX_TOKENS);
    let n_cut_words = tokens.n_uncut - MAX_TOKENS;
    assert!(n_cut_words > 50);
    assert_eq!(tokens.cut_text, "a ".repeat(n_cut_words).trim());
}

#[test]
fn a_charsmap_cut_short_is_refused() {
    let bytes = charsmap_bytes();
    let trie_end = 4 + u32::from_le_bytes(bytes[..4].try_into().expect("four bytes")) as usize;
    // Without its last replacements entries point behind the end.
    for len in [0, 3, 4, 100, trie_end - 1, trie_end, trie_end + 40] {
        let error = Charsmap::parse(&bytes[..len]).expect_err("part of a table is none");
        assert!(error.starts_with("charsmap: "), "{len} bytes: {error}");
        let error = from_json(&json_with(&bytes[..len])).map(|_| ()).expect_err("nor is it one in a file");
        assert!(error.starts_with("charsmap: "), "{len} bytes: {error}");
    }
    for head in [0_u32, 3, u32::MAX] {
        let bytes = [&head.to_le_bytes(), &bytes[4..]].concat();
        Charsmap::parse(&bytes).expect_err("the trie has another length");
    }
}

#[test]
fn a_damaged_charsmap_is_refused_or_harmless() {
    let whole = charsmap_bytes();
    let mut state = 7_u64;
    println!("seed {state}");
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut n_refused = 0;
    for round in 0..300 {
        let mut bytes = whole.clone();
        for _ in 0..=random(400) {
            // The first children and any place, by turns: most texts pass the first.
            let at = if round % 2 == 0 { 4 + random(4096) } else { random(bytes.len()) };
            bytes[at] = random(256) as u8;
        }
        let Ok(charsmap) = Charsmap::parse(&bytes) else {
            n_refused += 1;
            continue;
        };
        for text in TEXTS {
            let mut text = tokenizers::NormalizedString::from(text);
            tokenizers::Normalizer::normalize(&charsmap, &mut text).expect("it writes something");
        }
    }
    assert!((1..300).contains(&n_refused), "{n_refused} of 300 refused");
}
