//! What a user asks for, valid by construction.
//!
//! Leaves out where the result goes and which files hold the model: those are the caller's.

use crate::geometry::ImageSize;
use serde::{Deserialize, Serialize};

/// Tokens a prompt may have, the end mark included (PixArt-Σ's `model_max_length`).
pub const MAX_TOKENS: usize = 300;
/// The noise schedule has 1,000 timesteps; with more steps than this two of them would be the same.
pub const MAX_STEPS: u32 = 999;
/// Longest prompt in bytes; far beyond what 300 tokens can hold.
pub const MAX_PROMPT_BYTES: usize = 64 * 1024;

/// How a prompt is prepared before it is cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Clean {
    /// As typed.
    None,
    /// Lower-cased, white space at both ends removed (what diffusers does without its optional packages).
    #[default]
    Basic,
}

impl Clean {
    /// `text`, prepared.
    pub fn apply(self, text: &str) -> String {
        match self {
            Self::None => text.to_owned(),
            Self::Basic => text.to_lowercase().trim().to_owned(),
        }
    }
}

/// One picture to render.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RenderRequest {
    /// What to draw.
    pub prompt: String,
    /// What to steer away from; empty for the unconditional branch as trained.
    pub negative: String,
    /// Size of the picture.
    pub size: ImageSize,
    /// Denoising steps.
    pub steps: u32,
    /// Classifier-free guidance weight; at 1 or less only the prompt's own branch runs, as in diffusers.
    pub guidance: f64,
    /// Seed of the initial noise.
    pub seed: u64,
    /// How the two prompts are prepared.
    pub clean: Clean,
}

/// Why a request cannot be rendered. Each variant names the value and the way out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// A side is zero or not a multiple of 16.
    #[error("{side} {px} px is not a multiple of 16: use {}{above}", if *.below == 0 { String::new() } else { format!("{} or ", .below) })]
    #[allow(missing_docs)]
    Side { side: &'static str, px: u32, below: u32, above: u32 },
    /// A side longer than any picture's.
    #[error("{side} {px} px is out of range: use at most {}", ImageSize::MOST_PX)]
    #[allow(missing_docs)]
    Long { side: &'static str, px: u32 },
    /// Not a size at all.
    #[error("size `{text}` is not WIDTHxHEIGHT in pixels, such as 1024x576")]
    #[allow(missing_docs)]
    SizeSyntax { text: String },
    /// Not one token is left once keys and values are compressed.
    #[error("size {size} is too small for this model: use at least {least_px} px on each side")]
    #[allow(missing_docs)]
    Small { size: ImageSize, least_px: u32 },
    /// No steps, or more than the noise schedule has.
    #[error("steps {steps} is out of range: use 1 to {MAX_STEPS}; 12 to 20 is usual")]
    #[allow(missing_docs)]
    Steps { steps: u32 },
    /// A guidance weight that is no number or negative.
    #[error("guidance {guidance} is out of range: use 0 to 100; 4.5 is usual, 1 turns it off")]
    #[allow(missing_docs)]
    Guidance { guidance: f64 },
    /// Pictures whose seeds would go beyond the largest there is.
    #[error("seed {seed} leaves no room for a count of {count}: use a seed of at most {}", u64::MAX - u64::from(count - 1))]
    #[allow(missing_docs)]
    Seeds { seed: u64, count: u32 },
    /// A control character other than white space.
    #[error("the {which} holds the control character U+{code:04X} at character {position}: remove it")]
    #[allow(missing_docs)]
    ControlCharacter { which: &'static str, code: u32, position: usize },
    /// Longer than any prompt can be.
    #[error("the {which} is {bytes} bytes long, {MAX_PROMPT_BYTES} is the limit: shorten it")]
    #[allow(missing_docs)]
    PromptBytes { which: &'static str, bytes: usize },
}

impl RenderRequest {
    /// Checks every value; the first at fault is named.
    ///
    /// # Errors
    /// If steps, guidance or a prompt is out of range. Sizes are valid by construction.
    pub fn check(&self) -> Result<(), RequestError> {
        if self.steps == 0 || self.steps > MAX_STEPS {
            return Err(RequestError::Steps { steps: self.steps });
        }
        if !(0.0..=100.0).contains(&self.guidance) {
            return Err(RequestError::Guidance { guidance: self.guidance });
        }
        check_prompt("prompt", &self.prompt)?;
        check_prompt("negative prompt", &self.negative)
    }

    /// Checks that `count` pictures, at least one, can have the seeds from this request's on.
    ///
    /// # Errors
    /// If there are not so many seeds.
    pub fn check_seeds(&self, count: u32) -> Result<(), RequestError> {
        match self.seed.checked_add(u64::from(count.saturating_sub(1))) {
            Some(_) => Ok(()),
            None => Err(RequestError::Seeds { seed: self.seed, count }),
        }
    }

    /// True if both branches run and are mixed.
    pub fn is_guided(&self) -> bool {
        self.guidance > 1.0
    }
}

fn check_prompt(which: &'static str, text: &str) -> Result<(), RequestError> {
    if text.len() > MAX_PROMPT_BYTES {
        return Err(RequestError::PromptBytes { which, bytes: text.len() });
    }
    let offender = text.chars().enumerate().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    match offender {
        Some((idx, c)) => Err(RequestError::ControlCharacter { which, code: c.into(), position: idx + 1 }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RenderRequest {
        RenderRequest {
            prompt: "a castle".into(),
            negative: String::new(),
            size: ImageSize { width_px: 64, height_px: 64 },
            steps: 12,
            guidance: 4.5,
            seed: 0,
            clean: Clean::Basic,
        }
    }

    fn check(change: impl FnOnce(&mut RenderRequest), expected: &str) {
        let mut request = request();
        assert_eq!(request.check(), Ok(()));
        change(&mut request);
        assert_eq!(request.check().expect_err("must be refused").to_string(), expected);
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        check(|r| r.steps = 0, "steps 0 is out of range: use 1 to 999; 12 to 20 is usual");
        check(|r| r.steps = 1000, "steps 1000 is out of range: use 1 to 999; 12 to 20 is usual");
        check(|r| r.guidance = f64::NAN, "guidance NaN is out of range: use 0 to 100; 4.5 is usual, 1 turns it off");
        check(|r| r.guidance = -1.0, "guidance -1 is out of range: use 0 to 100; 4.5 is usual, 1 turns it off");
        check(
            |r| r.guidance = f64::INFINITY,
            "guidance inf is out of range: use 0 to 100; 4.5 is usual, 1 turns it off",
        );
        check(
            |r| r.prompt = "a\u{7}b".into(),
            "the prompt holds the control character U+0007 at character 2: remove it",
        );
        check(
            |r| r.negative = "\u{0}".into(),
            "the negative prompt holds the control character U+0000 at character 1: remove it",
        );
        check(|r| r.prompt = "x".repeat(70_000), "the prompt is 70000 bytes long, 65536 is the limit: shorten it");
    }

    #[test]
    fn seeds_that_would_go_beyond_the_largest_are_refused() {
        let check = |seed, count| RenderRequest { seed, ..request() }.check_seeds(count);
        assert_eq!((check(u64::MAX, 1), check(u64::MAX - 1, 2), check(0, 0)), (Ok(()), Ok(()), Ok(())));
        let said = check(u64::MAX, 2).expect_err("there is one seed left").to_string();
        assert!(said.ends_with("a count of 2: use a seed of at most 18446744073709551614"), "{said}");
    }

    #[test]
    fn line_breaks_and_an_empty_prompt_are_fine() {
        assert_eq!(check_prompt("prompt", "a\n\tb\r\n"), Ok(()));
        assert_eq!(check_prompt("prompt", ""), Ok(()));
    }

    #[test]
    fn basic_cleaning_lowers_and_strips() {
        assert_eq!(Clean::Basic.apply("  A Castle\n"), "a castle");
        assert_eq!(Clean::None.apply(" A "), " A ");
    }
}
