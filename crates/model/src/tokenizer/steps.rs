//! What is done to a text before it is cut, in order: the library's steps, with our own charsmap among them.

use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{NormalizedString, Normalizer};

use super::charsmap::Charsmap;

/// One step.
pub(super) enum Step {
    Charsmap(Charsmap),
    Library(NormalizerWrapper),
}

/// All steps, first to last.
#[derive(Default)]
pub(super) struct Steps(pub(super) Vec<Step>);

impl Steps {
    /// The steps that `tokenizer.json` names under `normalizer`.
    ///
    /// # Errors
    /// If one of them is unknown or damaged, as one line.
    pub(super) fn from_json(value: Value) -> Result<Self, String> {
        let mut steps = Self::default();
        steps.push_json(value)?;
        Ok(steps)
    }

    fn push_json(&mut self, mut value: Value) -> Result<(), String> {
        match value["type"].as_str() {
            _ if value.is_null() => {}
            Some("Sequence") => {
                let Some(Value::Array(parts)) = value.get_mut("normalizers").map(Value::take) else {
                    return Err("normalizer: a sequence without its list of normalizers".to_owned());
                };
                parts.into_iter().try_for_each(|part| self.push_json(part))?;
            }
            Some("Precompiled") => {
                let text = value["precompiled_charsmap"].as_str().ok_or("normalizer: no precompiled_charsmap")?;
                let bytes = BASE64_STANDARD.decode(text).map_err(|error| format!("precompiled_charsmap: {error}"))?;
                self.0.push(Step::Charsmap(Charsmap::parse(&bytes)?));
            }
            _ => {
                let step = serde_json::from_value(value).map_err(|error| format!("normalizer: {error}"))?;
                self.0.push(Step::Library(step));
            }
        }
        Ok(())
    }
}

impl Normalizer for Steps {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|step| match step {
            Step::Charsmap(charsmap) => charsmap.normalize(text),
            Step::Library(step) => step.normalize(text),
        })
    }
}
