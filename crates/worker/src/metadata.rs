//! What a picture says about itself: enough to render it again.
//!
//! Invariant: nothing here depends on the time, the machine's name or the number of threads, so that equal
//! requests give equal files.

use plan::{Clean, ModelDigests, RenderRequest};
use serde::{Deserialize, Serialize};

/// Name of the chunk or header entry that holds the metadata.
pub const KEYWORD: &str = "fresco";
/// Nothing was approximated.
pub const EXACT_PLAN: &str = "exact";

/// The metadata of one picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metadata {
    /// The prompt as typed.
    pub prompt: String,
    /// The negative prompt as typed.
    pub negative: String,
    /// Seed of the noise.
    pub seed: u64,
    /// `WIDTHxHEIGHT`.
    pub size: String,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance weight.
    pub guidance: f64,
    /// `none` or `basic`.
    pub clean: String,
    /// Of a PNG.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bit_depth: Option<u8>,
    /// Which model.
    pub model: ModelId,
    /// Of the program.
    pub version: String,
    /// Machines whose bytes are equal.
    pub numeric_class: String,
    /// How it was made; `exact`, or a name.
    pub plan: String,
    /// What was approximated.
    pub approximations: Vec<String>,
    /// Of the initial noise, if it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latents_sha256: Option<String>,
}

/// Which model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// Name of the model.
    pub name: String,
    /// Over all of it that decides pixels; in pictures without `digests`, which are older, over the weights alone.
    pub sha256: String,
    /// What that is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digests: Option<ModelDigests>,
}

impl Metadata {
    /// The metadata of `request`, rendered by this program on this machine.
    pub fn of(request: &RenderRequest, bit_depth: Option<u8>, model: ModelId, latents: Option<String>) -> Self {
        Self {
            prompt: request.prompt.clone(),
            negative: request.negative.clone(),
            seed: request.seed,
            size: request.size.to_string(),
            steps: request.steps,
            guidance: request.guidance,
            clean: match request.clean {
                Clean::None => "none".into(),
                Clean::Basic => "basic".into(),
            },
            bit_depth,
            model,
            version: env!("CARGO_PKG_VERSION").into(),
            numeric_class: model::numeric_class().to_string(),
            plan: EXACT_PLAN.into(),
            approximations: Vec::new(),
            latents_sha256: latents,
        }
    }

    /// The request to render the picture again.
    ///
    /// # Errors
    /// If this program cannot repeat it.
    pub fn request(&self) -> Result<RenderRequest, String> {
        if self.plan != EXACT_PLAN || !self.approximations.is_empty() {
            return Err(format!("it was rendered by the plan `{}`, which cannot be repeated here", self.plan));
        }
        let clean = match self.clean.as_str() {
            "none" => Clean::None,
            "basic" => Clean::Basic,
            other => return Err(format!("its prompt was prepared by `{other}`, which is not known here")),
        };
        let request = RenderRequest {
            prompt: self.prompt.clone(),
            negative: self.negative.clone(),
            size: self.size.parse().map_err(|error: plan::RequestError| error.to_string())?,
            steps: self.steps,
            guidance: self.guidance,
            seed: self.seed,
            clean,
        };
        request.check().map_err(|error| error.to_string())?;
        Ok(request)
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// If a value has no JSON.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The text that image tools read from a chunk named `parameters`.
    pub fn parameters(&self) -> String {
        let mut text = format!("{}\n", self.prompt);
        if !self.negative.is_empty() {
            text += &format!("Negative prompt: {}\n", self.negative);
        }
        text + &format!(
            "Steps: {}, Sampler: DPM++ 2M, CFG scale: {}, Seed: {}, Size: {}, Model: {}, Model hash: {}",
            self.steps,
            self.guidance,
            self.seed,
            self.size,
            quoted(&self.model.name),
            self.model.sha256.get(..10).unwrap_or(&self.model.sha256)
        )
    }
}

/// A value as those tools expect it where it holds their separators.
fn quoted(value: &str) -> String {
    if value.contains([',', ':', '\n', '"']) { serde_json::Value::from(value).to_string() } else { value.to_owned() }
}

#[cfg(test)]
mod tests {
    use plan::ImageSize;

    use super::*;

    fn metadata(guidance: f64) -> Metadata {
        let request = RenderRequest {
            prompt: "a \"castle\",\nat noon".into(),
            negative: "fog".into(),
            size: ImageSize { width_px: 64, height_px: 32 },
            steps: 12,
            guidance,
            seed: u64::MAX,
            clean: Clean::Basic,
        };
        let model = ModelId { name: "demo".into(), sha256: "0123456789abcdef".into(), digests: None };
        Metadata::of(&request, Some(8), model, None)
    }

    #[test]
    fn what_is_written_is_read_back_to_the_bit() {
        for guidance in [4.5, 0.1 + 0.2, 1.0 / 3.0, 7.123_456_789_012_345, 5e-324] {
            let json = metadata(guidance).json().expect("is JSON");
            let read: Metadata = serde_json::from_str(&json).expect("is metadata");
            assert_eq!(read, metadata(guidance));
            assert_eq!(read.request().expect("can be repeated").guidance.to_bits(), guidance.to_bits());
        }
    }

    #[test]
    fn other_tools_find_the_parameters() {
        let expected = "a \"castle\",\nat noon\nNegative prompt: fog\nSteps: 12, Sampler: DPM++ 2M, CFG scale: 4.5, \
                        Seed: 18446744073709551615, Size: 64x32, Model: demo, Model hash: 0123456789";
        assert_eq!(metadata(4.5).parameters(), expected);
        assert_eq!(quoted("a, b"), "\"a, b\"");
    }

    #[test]
    fn what_cannot_be_repeated_is_said() {
        let check = |change: fn(&mut Metadata), expected: &str| {
            let mut metadata = metadata(4.5);
            change(&mut metadata);
            assert_eq!(metadata.request().expect_err("cannot be repeated"), expected);
        };
        check(|m| m.plan = "fast".into(), "it was rendered by the plan `fast`, which cannot be repeated here");
        check(|m| m.clean = "deep".into(), "its prompt was prepared by `deep`, which is not known here");
        check(|m| m.steps = 0, "steps 0 is out of range: use 1 to 999; 12 to 20 is usual");
    }
}
