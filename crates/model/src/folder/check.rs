//! Tensors compared with what the configs call for. Faults that many tensors share become one line.

use crate::listed::{counted, listed};
use crate::weights::{Header, Manifest, Weights, is_readable, squeezed};

/// Faults of one kind that get a line each; more are summed up.
const MOST_LINES: usize = 4;

/// Names every tensor of `wanted` that is missing, of a type that cannot be read, or has another shape.
pub(super) fn check(part: &str, weights: &Weights, wanted: &Manifest, faults: &mut Vec<String>) {
    let mut missing = Vec::new();
    let (mut types, mut shapes) = (Vec::new(), Vec::new());
    for (names, shape) in wanted {
        let name = &names[0];
        match weights.header(name) {
            None => missing.push((name, shape)),
            Some(Header { dtype, .. }) if !is_readable(dtype) => types.push((name, format!("{dtype:?}"))),
            Some(Header { shape: found, .. }) => {
                if squeezed(&found) != squeezed(shape) {
                    shapes.push((name, found, shape));
                }
            }
        }
    }
    let of_all = |n: usize| format!("{n} of {}", counted(wanted.len(), "tensor"));
    if missing.len() > MOST_LINES {
        let names: Vec<&String> = missing.iter().map(|(name, _)| *name).collect();
        let hint = hint(&names, &weights.unused().tensors);
        faults.push(format!("{part}: {} are missing ({}){hint}", of_all(names.len()), listed(&names)));
    } else {
        faults.extend(missing.iter().map(|(name, shape)| missing_one(part, name, shape)));
    }
    types.sort_by(|a, b| (&a.1, a.0).cmp(&(&b.1, b.0)));
    for alike in types.chunk_by(|a, b| a.1 == b.1) {
        let (names, dtype) = (alike.iter().map(|(name, _)| *name), &alike[0].1);
        let needed = "f32, f16 or bf16 is needed";
        if alike.len() > MOST_LINES {
            let of_all = of_all(alike.len());
            faults.push(format!("{part}: {of_all} are of type {dtype}: {needed} ({})", listed(names)));
        } else {
            faults.extend(names.map(|name| format!("{part}: tensor `{name}` is of type {dtype}: {needed}")));
        }
    }
    if shapes.len() > MOST_LINES {
        let first = &shapes[0];
        faults.push(format!(
            "{part}: {} have another shape than the config calls for: `{}` has {:?}, {:?} is needed; so have {}",
            of_all(shapes.len()),
            first.0,
            first.1,
            first.2,
            listed(shapes[1..].iter().map(|(name, ..)| name))
        ));
    } else {
        faults.extend(shapes.iter().map(|(name, found, shape)| other_shape(part, name, found, shape)));
    }
}

pub(super) fn missing_one(part: &str, name: &str, shape: &[usize]) -> String {
    format!("{part}: tensor `{name}` is missing, shape {shape:?}")
}

pub(super) fn other_shape(part: &str, name: &str, found: &[usize], shape: &[usize]) -> String {
    format!("{part}: tensor `{name}` has shape {found:?}, {shape:?} is needed")
}

/// What the names in a file look like, if not like those that are missing.
fn hint(missing: &[&String], unused: &[String]) -> String {
    let pairs = unused.iter().flat_map(|name| missing.iter().map(move |missing| (name, missing)));
    let prefixes = pairs.filter_map(|(name, missing)| name.strip_suffix(missing.as_str()));
    // The end of a name may be another tensor's whole name.
    if let Some(prefix) = prefixes.filter(|prefix| prefix.ends_with('.')).min_by_key(|prefix| prefix.len()) {
        return format!(": the file has them under names that begin with `{prefix}`; take that off");
    }
    if unused.iter().any(|name| name.contains("y_embedder.") || name.contains(".attn.qkv.")) {
        return ": the file has the names of the original repository; use `fresco model convert`".into();
    }
    match unused.first() {
        Some(name) => format!(": the file has others, such as `{name}`"),
        None => String::new(),
    }
}
