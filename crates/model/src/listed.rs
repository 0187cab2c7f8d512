//! Long lists and long values in messages, cut to what a line can hold.

/// Names that are shown of a list.
const MOST_NAMES: usize = 3;
/// Characters that are shown of a value.
const MOST_CHARS: usize = 60;

/// The first names of a list, and how many more there are.
pub(crate) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(MOST_NAMES).map(|name| format!("`{}`", name.as_ref())).collect();
    match names.count() {
        0 => shown.join(", "),
        n_more => format!("{} and {n_more} more", shown.join(", ")),
    }
}

/// The beginning of a value.
pub(crate) fn cut(value: &str) -> String {
    match value.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}… ({} characters)", &value[..end], value.chars().count()),
        None => value.to_owned(),
    }
}

/// `1 tensor`, `2 tensors`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
