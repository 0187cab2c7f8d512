//! Names of pictures: of a prompt's words, and with an end before the ending.

use std::path::{Path, PathBuf};

/// `a/b.png` with the end `-2` is `a/b-2.png`.
pub(super) fn with_stem_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(end);
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// The prompt as a file name.
pub(super) fn slug(prompt: &str) -> String {
    const MOST_BYTES: usize = 60;
    let mut slug = String::new();
    let words = prompt.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    for word in words.map(str::to_lowercase) {
        let room = MOST_BYTES.saturating_sub(slug.len() + 1);
        if word.len() <= room {
            slug = if slug.is_empty() { word } else { format!("{slug}-{word}") };
            continue;
        }
        if slug.is_empty() {
            let end = (0..=room).rev().find(|&end| word.is_char_boundary(end)).unwrap_or(0);
            slug.push_str(&word[..end]);
        }
        break;
    }
    if slug.is_empty() { "picture".into() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_slug(prompt: &str, expected: &str) {
        assert_eq!(slug(prompt), expected);
    }

    #[test]
    fn a_prompt_becomes_a_file_name() {
        check_slug("Snowy mountains, at sunset!", "snowy-mountains-at-sunset");
        check_slug("../../etc/passwd\n", "etc-passwd");
        check_slug("", "picture");
        check_slug("…", "picture");
        check_slug("Übersicht 東京", "übersicht-東京");
        check_slug(&"very ".repeat(40), "very-very-very-very-very-very-very-very-very-very-very-very");
        check_slug(&"東".repeat(40), &"東".repeat(19));
    }

    #[test]
    fn an_end_goes_before_the_ending() {
        assert_eq!(with_stem_end(Path::new("a/b.c.png"), "-2"), Path::new("a/b.c-2.png"));
        assert_eq!(with_stem_end(Path::new("b"), "-2"), Path::new("b-2"));
    }
}
