//! Configs of a model folder, read into facts.
//!
//! Every fault is collected, none is fatal alone, so that a user sees all of them at once. Keys that mean
//! nothing to us are listed, not refused; values that would change the picture in a way we cannot compute are.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::listed::cut;

mod dit;
pub mod json;
mod sampler;
mod text;
mod vae;

pub use dit::DIT_KEYS;
pub use sampler::SAMPLER_KEYS;
pub use text::TEXT_KEYS;
pub use vae::VAE_KEYS;

/// One `config.json`, and the faults found in it so far.
pub struct Config<'a> {
    part: &'a str,
    values: serde_json::Map<String, Value>,
    faults: &'a mut Vec<String>,
}

impl<'a> Config<'a> {
    /// The config of part `part`, which is the start of every fault's text.
    pub fn new(part: &'a str, values: serde_json::Map<String, Value>, faults: &'a mut Vec<String>) -> Self {
        Self { part, values, faults }
    }

    /// How many faults there are so far, in this config and before it.
    pub fn n_faults(&self) -> usize {
        self.faults.len()
    }

    fn fault(&mut self, key: &str, what: &str) {
        let found = self.values.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string);
        self.faults.push(format!("{}: `{key}` is {}, {what}", self.part, cut(&found)));
    }

    fn present(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A whole number from 1 to a bound no real model comes near, which keeps later products in range.
    fn count(&mut self, key: &str, default: Option<usize>) -> usize {
        self.count_in(1..=1 << 20, key, default)
    }

    /// How many layers: each is a dozen names to look for, so the bound is closer.
    fn layers(&mut self, key: &str, default: Option<usize>) -> usize {
        self.count_in(1..=1 << 10, key, default)
    }

    fn count_in(&mut self, range: RangeInclusive<u64>, key: &str, default: Option<usize>) -> usize {
        let value = match (self.present(key), default) {
            (None, Some(default)) => return default,
            (value, _) => value.and_then(Value::as_u64),
        };
        match value {
            Some(value) if range.contains(&value) => value as usize,
            _ => {
                let (least, most) = (range.start(), range.end());
                self.fault(key, &format!("a whole number from {least} to {most} is needed"));
                *least as usize
            }
        }
    }

    fn number(&mut self, key: &str, default: f64) -> f64 {
        match self.present(key).map(Value::as_f64) {
            None => default,
            Some(Some(value)) if value.is_finite() => value,
            Some(_) => {
                self.fault(key, "a number is needed");
                default
            }
        }
    }

    fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.present(key).map(Value::as_bool) {
            None => default,
            Some(Some(value)) => value,
            Some(None) => {
                self.fault(key, "true or false is needed");
                default
            }
        }
    }

    /// Refuses any value of `key` but the allowed ones; absent is allowed.
    fn only(&mut self, key: &str, allowed: &[Value]) {
        if self.present(key).is_some_and(|value| !allowed.iter().any(|allowed| same(allowed, value))) {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            self.fault(key, &format!("only {} is supported", allowed.join(" or ")));
        }
    }

    /// Refuses weights that mean nothing without a library that quantised them.
    fn plain_weights(&mut self) {
        if self.present("quantization_config").is_some() {
            self.fault("quantization_config", "quantised weights are not supported: use those they were made from");
        }
    }

    /// Keys with a value that are none of `known`.
    pub fn unknown_keys(&self, known: &[&str]) -> Vec<String> {
        let is_known = |key: &str| key.starts_with('_') || known.contains(&key) || self.present(key).is_none();
        self.values.keys().filter(|key| !is_known(key)).cloned().collect()
    }
}

/// Numbers are equal by value, whether written `1` or `1.0`.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests;
