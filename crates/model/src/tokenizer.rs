//! Prompts to token ids, from `tokenizer.json` or from SentencePiece's `spiece.model` alone.
//!
//! Leaves out cleaning (`plan::Clean`) and padding: networks here run on the real tokens. Ids are
//! SentencePiece's, but for letters under three and more stacked accents, which the library normalises as one.

use std::path::Path;

use plan::request::MAX_TOKENS;
use prost::Message;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;

/// A T5 tokenizer.
pub struct Tokenizer(tokenizers::Tokenizer);

/// A prompt as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, at most [`MAX_TOKENS`], the end mark last.
    pub ids: Vec<u32>,
    /// Tokens the prompt would have without the limit, the end mark included.
    pub n_uncut: usize,
    /// The part of the prompt that did not fit.
    pub cut_text: String,
}

/// Id of the end mark in every T5 vocabulary.
const END_ID: u32 = 1;

impl Tokenizer {
    /// Opens the tokenizer in `dir`; `tokenizer.json` goes before `spiece.model`.
    ///
    /// # Errors
    /// If neither is there or it cannot be read, as one line.
    pub fn open(dir: &Path) -> Result<Self, String> {
        let (json, pieces) = (dir.join("tokenizer.json"), dir.join("spiece.model"));
        if json.is_file() {
            let mut tokenizer = tokenizers::Tokenizer::from_file(&json)
                .map_err(|error| format!("tokenizer/tokenizer.json: {error}"))?;
            tokenizer.with_padding(None);
            tokenizer.with_truncation(None).map_err(|error| format!("tokenizer/tokenizer.json: {error}"))?;
            return Ok(Self(tokenizer));
        }
        if pieces.is_file() {
            let bytes = std::fs::read(&pieces).map_err(|error| format!("tokenizer/spiece.model: {error}"))?;
            return from_pieces(&bytes).map(Self).map_err(|error| format!("tokenizer/spiece.model: {error}"));
        }
        Err(format!("tokenizer: neither tokenizer.json nor spiece.model in {}", dir.display()))
    }

    /// `text` as ids, cut to the limit.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Tokens, String> {
        let encoding = self.0.encode_char_offsets(text, true).map_err(|error| format!("tokenizer: {error}"))?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.last() != Some(&END_ID) {
            ids.push(END_ID);
        }
        let n_uncut = ids.len();
        let mut cut_text = String::new();
        if n_uncut > MAX_TOKENS {
            let first_cut = encoding.get_offsets()[MAX_TOKENS - 1].0;
            cut_text = text.chars().skip(first_cut).collect::<String>().trim().to_owned();
            ids.truncate(MAX_TOKENS - 1);
            ids.push(END_ID);
        }
        Ok(Tokens { ids, n_uncut, cut_text })
    }

    /// Size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.0.get_vocab_size(true)
    }
}

/// The fields of SentencePiece's `ModelProto` (`sentencepiece_model.proto`) a Unigram tokenizer needs.
#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3")]
    kind: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    /// 1 is Unigram, the default.
    #[prost(int32, optional, tag = "3")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "35")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", tag = "2")]
    charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4")]
    remove_extra_whitespaces: Option<bool>,
}

/// `Piece::kind` of ordinary text.
const NORMAL: i32 = 1;
/// `Piece::kind` of the unknown piece.
const UNKNOWN: i32 = 2;
/// `Piece::kind` of pieces a user asked for when the vocabulary was trained.
const USER_DEFINED: i32 = 4;
/// `Piece::kind` of single bytes.
const BYTE: i32 = 6;
const UNIGRAM: i32 = 1;

/// The text that becomes `piece`. Marks such as `</s>` stand for no text: somebody who types one means the
/// letters, as in SentencePiece. They go under a character that is none.
fn text_of(piece: &Piece) -> String {
    match piece.kind.unwrap_or(NORMAL) {
        NORMAL | USER_DEFINED | BYTE => piece.piece.clone(),
        _ => format!("\u{10ffff}{}", piece.piece),
    }
}

fn from_pieces(bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let model = ModelProto::decode(bytes).map_err(|error| format!("not a SentencePiece model: {error}"))?;
    let trainer = model.trainer.unwrap_or_default();
    let model_type = trainer.model_type.unwrap_or(UNIGRAM);
    if model_type != UNIGRAM {
        return Err(format!("SentencePiece model type {model_type} is not Unigram, which T5 uses"));
    }
    let unknown = model.pieces.iter().position(|piece| piece.kind == Some(UNKNOWN));
    let end = model.pieces.get(END_ID as usize).ok_or("a vocabulary of fewer than two pieces")?.piece.clone();
    let vocabulary = model.pieces.into_iter().map(|piece| (text_of(&piece), f64::from(piece.score))).collect();
    let unigram = Unigram::from(vocabulary, unknown, trainer.byte_fallback.unwrap_or(false)).map_err(|e| text(&e))?;
    let mut tokenizer = tokenizers::Tokenizer::new(unigram);

    let normalizer = model.normalizer.unwrap_or_default();
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if !normalizer.charsmap.is_empty() {
        steps.push(Precompiled::from(&normalizer.charsmap).map_err(|e| text(&e))?.into());
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        steps.push(Strip::new(true, true).into());
        let spaces = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".into());
        steps.push(Replace::new(spaces, " ").map_err(|e| text(&e))?.into());
    }
    tokenizer.with_normalizer(Some(Sequence::new(steps))).map_err(|e| text(&e))?;
    let prepend =
        if normalizer.add_dummy_prefix.unwrap_or(true) { PrependScheme::Always } else { PrependScheme::Never };
    tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', prepend, true)));
    let template = TemplateProcessing::builder()
        .try_single(format!("$A {end}"))
        .map_err(|e| text(&e))?
        .special_tokens(vec![(end, END_ID)])
        .build()
        .map_err(|e| text(&e))?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}
