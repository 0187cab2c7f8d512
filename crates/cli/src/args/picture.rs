//! Flags of `render`, and those of them that `submit` shares.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::BoolishValueParser;
use plan::request::MAX_STEPS;
use plan::{ImageSize, RequestError};

use super::{BitDepth, CleanName, Threads};

const RENDER_EXAMPLES: &str = "\
Examples:
  fresco render \"desert dunes at night\" --size 256x256 --steps 12
  fresco render \"a calm sea at dawn\" --count 4 --out sea.png    # sea-0.png … sea-3.png
  fresco render --prompts shots.txt --seed random --out shots   # one prompt a line, into a folder
  echo \"a pine forest in thick fog\" | fresco render - --json
  fresco render \"an astronaut riding a horse\" --model ./PixArt-Sigma --size 1024x576";

/// What to draw: flags that `render` and `submit` share.
#[derive(Debug, Args)]
pub(crate) struct PictureArgs {
    /// What to draw, in quotes; `-` reads it from standard input
    #[arg(value_name = "PROMPT", required_unless_present = "prompts")]
    pub(crate) prompt: Option<String>,

    /// Draw every line of a text file as a prompt of its own; `-` is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompts: Option<PathBuf>,

    /// Model: a folder in the diffusers layout, or the name of one in $FRESCO_MODELS or models/
    #[arg(long, env = "FRESCO_MODEL", value_name = "DIR|NAME", default_value = "demo")]
    pub(crate) model: String,

    /// Width and height in pixels, multiples of 16 up to 8192; memory and time grow with their product [default: the
    /// model's native size]
    #[arg(long, env = "FRESCO_SIZE", value_name = "WxH")]
    pub(crate) size: Option<ImageSize>,

    /// Denoising steps; time grows with them, and more than 20 change little
    #[arg(long, env = "FRESCO_STEPS", value_name = "N", default_value = "20", allow_negative_numbers = true)]
    #[arg(value_parser = steps)]
    pub(crate) steps: u32,

    /// How closely the prompt is followed; 1 turns guidance off and halves the time
    #[arg(long, env = "FRESCO_GUIDANCE", value_name = "G", default_value = "4.5", allow_negative_numbers = true)]
    #[arg(value_parser = guidance)]
    pub(crate) guidance: f64,

    /// Seed of the initial noise, or `random`; equal seeds and settings give equal bytes
    #[arg(long, env = "FRESCO_SEED", value_name = "S", default_value = "0", allow_negative_numbers = true)]
    pub(crate) seed: Seed,

    /// What to steer away from
    #[arg(long, env = "FRESCO_NEGATIVE", value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) negative: String,

    /// Number of pictures, with the seeds S, S+1, …; each file has its seed in its name
    #[arg(long, env = "FRESCO_COUNT", value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) count: u32,

    /// How prompts are prepared: `basic` lower-cases and trims them, as diffusers does by default
    #[arg(long, env = "FRESCO_CLEAN", value_name = "HOW", default_value = "basic")]
    pub(crate) clean: CleanName,

    /// Bits per channel of a .png
    #[arg(long, env = "FRESCO_BIT_DEPTH", value_name = "BITS", default_value = "8")]
    pub(crate) bit_depth: BitDepth,
}

/// Flags of `render`.
#[derive(Debug, Args)]
#[command(before_help = RENDER_EXAMPLES)]
pub(crate) struct RenderArgs {
    #[command(flatten)]
    pub(crate) picture: PictureArgs,

    /// Model folder that supplies the parts --model lacks, for folders that hold a transformer alone
    #[arg(long, env = "FRESCO_BASE", value_name = "DIR|NAME")]
    pub(crate) base: Option<String>,

    /// Where the picture goes: a .png, a .safetensors (latents, image, embeds), or a folder that exists [default: a name made
    /// of the prompt and the seed]
    #[arg(long, env = "FRESCO_OUT", value_name = "PATH")]
    pub(crate) out: Option<PathBuf>,

    /// Replace files that exist
    #[arg(long, env = "FRESCO_FORCE", value_parser = BoolishValueParser::new())]
    pub(crate) force: bool,

    /// Initial noise from a safetensors file, tensor `latents` [1, 4, H/8, W/8] in f32, in place of the seed's
    #[arg(long, env = "FRESCO_LATENTS", value_name = "FILE")]
    pub(crate) latents: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) threads: Threads,

    /// Split each picture over N workers in this process; the bytes are the same for any number
    #[arg(long, env = "FRESCO_WORKERS", value_name = "N", default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,

    /// Write NAME.preview.png every N steps until the picture is done; 0 never does
    #[arg(long, env = "FRESCO_PREVIEW_EVERY", value_name = "N", default_value = "0")]
    pub(crate) preview_every: u32,

    /// Print one JSON object per picture, and nothing else, on standard output
    #[arg(long, env = "FRESCO_JSON", value_parser = BoolishValueParser::new())]
    pub(crate) json: bool,
}

/// Seed of the first picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seed {
    Given(u64),
    Random,
}

impl Seed {
    /// The seed, drawn if it is to be random: from 32 bits, which every other tool takes as well.
    pub(crate) fn number(self) -> anyhow::Result<u64> {
        match self {
            Self::Given(seed) => Ok(seed),
            Self::Random => Ok(getrandom::u32()?.into()),
        }
    }
}

impl FromStr for Seed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "random" {
            return Ok(Self::Random);
        }
        text.parse().map(Self::Given).map_err(|_| {
            format!("a whole number from 0 to {} is needed, or `random`, which draws one and says it", u64::MAX)
        })
    }
}

fn steps(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(steps @ 1..=MAX_STEPS) => Ok(steps),
        _ => Err(format!("a whole number from 1 to {MAX_STEPS} is needed; 12 to 20 is usual")),
    }
}

fn guidance(text: &str) -> Result<f64, String> {
    let guidance = text.parse().map_err(|_| "a number from 0 to 100 is needed; 4.5 is usual, 1 turns it off")?;
    if (0.0..=100.0).contains(&guidance) { Ok(guidance) } else { Err(RequestError::Guidance { guidance }.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_number_or_drawn() {
        assert_eq!("18446744073709551615".parse(), Ok(Seed::Given(u64::MAX)));
        assert_eq!("random".parse(), Ok(Seed::Random));
        for wrong in ["-1", "", "18446744073709551616", "1.5", "Random number"] {
            assert!(wrong.parse::<Seed>().expect_err(wrong).contains("`random`"), "{wrong}");
        }
        let drawn = || Seed::Random.number().expect("the system has randomness");
        let first = drawn();
        assert!(first <= u32::MAX.into());
        assert!((0..8).any(|_| drawn() != first), "nine equal numbers were drawn");
    }
}
