//! What a model's identity is made of, so that two that are not the same can be told apart by what differs.

use serde::{Deserialize, Serialize};

/// sha256 of each part of a model that decides pixels, in hexadecimal. Where two agree in all, pictures are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelDigests {
    /// Names, shapes and values of all tensors that are used.
    pub weights: String,
    /// The settings of the networks.
    pub configuration: String,
    /// The noise levels of training.
    pub noise_schedule: String,
    /// What decides a prompt's token ids.
    pub tokenizer: String,
}

impl ModelDigests {
    /// Each part's name and digest.
    pub fn parts(&self) -> [(&'static str, &str); 4] {
        [
            ("weights", &self.weights),
            ("configuration", &self.configuration),
            ("noise schedule", &self.noise_schedule),
            ("tokenizer", &self.tokenizer),
        ]
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.parts().iter().all(|(_, digest)| digest.is_empty())
    }

    /// Names of the parts that differ, such as `weights and tokenizer`; nothing if none does or one side is not known.
    pub fn differences(&self, other: &Self) -> Option<String> {
        if self.is_empty() || other.is_empty() {
            return None;
        }
        let pairs = self.parts().into_iter().zip(other.parts());
        let names: Vec<&str> = pairs.filter(|(a, b)| a != b).map(|((name, _), _)| name).collect();
        (!names.is_empty()).then(|| names.join(" and "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_named() {
        let one = ModelDigests { weights: "1".into(), ..ModelDigests::default() };
        let other = ModelDigests { weights: "2".into(), tokenizer: "3".into(), ..ModelDigests::default() };
        assert_eq!(one.differences(&other).as_deref(), Some("weights and tokenizer"));
        assert_eq!(one.differences(&one), None);
        assert_eq!(one.differences(&ModelDigests::default()), None);
    }
}
