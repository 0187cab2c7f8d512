//! Prompts to token ids, from `tokenizer.json` or from SentencePiece's `spiece.model` alone.
//!
//! Leaves out cleaning (`plan::Clean`) and padding: networks here run on the real tokens. Ids are
//! SentencePiece's, for which `charsmap.rs` stands in for the library's step of that name.

mod charsmap;
mod digest;
mod steps;

use std::path::Path;

use plan::request::MAX_TOKENS;
use prost::Message;
use serde_json::Value;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::{Replace, Strip};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    DecoderWrapper, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl,
};

use charsmap::Charsmap;
use steps::{Step, Steps};

/// The library's tokenizer with our steps before it.
type Parts = TokenizerImpl<ModelWrapper, Steps, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// A T5 tokenizer.
pub struct Tokenizer {
    parts: Parts,
    digest: [u8; 32],
    most_tokens: usize,
}

/// A prompt as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ids, at most as many as the model takes, the end mark last.
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
            let bytes = std::fs::read(&json).map_err(|error| format!("tokenizer/tokenizer.json: {error}"))?;
            return from_json(&bytes).map_err(|error| format!("tokenizer/tokenizer.json: {error}"));
        }
        if pieces.is_file() {
            let bytes = std::fs::read(&pieces).map_err(|error| format!("tokenizer/spiece.model: {error}"))?;
            return from_pieces(&bytes).map_err(|error| format!("tokenizer/spiece.model: {error}"));
        }
        Err(format!("tokenizer: neither tokenizer.json nor spiece.model in {}", dir.display()))
    }

    fn new(parts: Parts, digest: [u8; 32]) -> Self {
        Self { parts, digest, most_tokens: MAX_TOKENS }
    }

    /// For a model that takes no more than `most_tokens`, two at least.
    #[must_use]
    pub fn limited_to(self, most_tokens: usize) -> Self {
        Self { most_tokens: most_tokens.clamp(2, MAX_TOKENS), ..self }
    }

    /// Tokens of a prompt that the model takes.
    pub fn most_tokens(&self) -> usize {
        self.most_tokens
    }

    /// sha256 of what decides ids; the limit is not part of it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// `text` as ids, cut to the limit.
    ///
    /// # Errors
    /// If the tokenizer cannot encode it.
    pub fn encode(&self, text: &str) -> Result<Tokens, String> {
        let encoding = self.parts.encode_char_offsets(text, true).map_err(|error| format!("tokenizer: {error}"))?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.last() != Some(&END_ID) {
            ids.push(END_ID);
        }
        let n_uncut = ids.len();
        let mut cut_text = String::new();
        let most = self.most_tokens;
        if n_uncut > most {
            let first_cut = encoding.get_offsets()[most - 1].0;
            cut_text = text.chars().skip(first_cut).collect::<String>().trim().to_owned();
            ids.truncate(most - 1);
            ids.push(END_ID);
        }
        Ok(Tokens { ids, n_uncut, cut_text })
    }

    /// Size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.parts.get_vocab_size(true)
    }
}

/// All that `tokenizer.json` says but padding and truncation, which are not the tokenizer's to decide here.
fn from_json(bytes: &[u8]) -> Result<Tokenizer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let mut json: Value = serde_json::from_slice(bytes).map_err(|e| text(&e))?;
    let digest = digest::of_json(&json);
    // Taken out before the library sees it: a damaged charsmap makes it panic.
    let steps = json.get_mut("normalizer").map(Value::take).unwrap_or_default();
    let library: tokenizers::Tokenizer = serde_json::from_value(json).map_err(|e| text(&e))?;
    let mut parts: Parts = TokenizerBuilder::new()
        .with_model(library.get_model().clone())
        .with_pre_tokenizer(library.get_pre_tokenizer().cloned())
        .with_post_processor(library.get_post_processor().cloned())
        .with_added_vocabulary(library.get_added_vocabulary().clone())
        .build()
        .map_err(|e| text(&e))?;
    parts.with_normalizer(Some(Steps::from_json(steps)?)).map_err(|e| text(&e))?;
    Ok(Tokenizer::new(parts, digest))
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

fn from_pieces(bytes: &[u8]) -> Result<Tokenizer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let model = ModelProto::decode(bytes).map_err(|error| format!("not a SentencePiece model: {error}"))?;
    let digest = digest::of_pieces(&model);
    let trainer = model.trainer.unwrap_or_default();
    let model_type = trainer.model_type.unwrap_or(UNIGRAM);
    if model_type != UNIGRAM {
        return Err(format!("SentencePiece model type {model_type} is not Unigram, which T5 uses"));
    }
    let unknown = model.pieces.iter().position(|piece| piece.kind == Some(UNKNOWN));
    let end = model.pieces.get(END_ID as usize).ok_or("a vocabulary of fewer than two pieces")?.piece.clone();
    let vocabulary = model.pieces.into_iter().map(|piece| (text_of(&piece), f64::from(piece.score))).collect();
    let unigram = Unigram::from(vocabulary, unknown, trainer.byte_fallback.unwrap_or(false)).map_err(|e| text(&e))?;
    let mut tokenizer = Parts::new(unigram.into());

    let normalizer = model.normalizer.unwrap_or_default();
    let mut steps = Steps::default();
    if !normalizer.charsmap.is_empty() {
        steps.0.push(Step::Charsmap(Charsmap::parse(&normalizer.charsmap)?));
    }
    if normalizer.remove_extra_whitespaces.unwrap_or(true) {
        steps.0.push(Step::Library(Strip::new(true, true).into()));
        let spaces = tokenizers::normalizers::replace::ReplacePattern::Regex(" {2,}".into());
        steps.0.push(Step::Library(Replace::new(spaces, " ").map_err(|e| text(&e))?.into()));
    }
    tokenizer.with_normalizer(Some(steps)).map_err(|e| text(&e))?;
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
    Ok(Tokenizer::new(tokenizer, digest))
}

#[cfg(test)]
mod tests;
