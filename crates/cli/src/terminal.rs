//! Lines to standard output and standard error.
//!
//! In place of `println!`, which panics when the reader has gone away or the disk behind a redirection is full.
//! Leaves out the progress bar.

use std::io::{ErrorKind, Write};

use anyhow::Context;

use crate::exit::Stop;

/// A line of results, to standard output.
pub(crate) fn say(line: &str) -> anyhow::Result<()> {
    say_bytes(format!("{line}\n").as_bytes())
}

/// A JSON value on one line, to standard output.
pub(crate) fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&serde_json::to_string(value).context("write JSON")?)
}

/// Bytes as they are, to standard output.
pub(crate) fn say_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Stop::ReaderGone.into()),
        written => written.context("write to standard output"),
    }
}

/// What went wrong.
pub(crate) fn error(line: &str) {
    note(&format!("error: {}", printable(line)));
}

/// What is odd, though the work goes on.
pub(crate) fn warning(line: &str) {
    note(&format!("warning: {}", printable(line)));
}

/// What may be other than was meant, though nothing is wrong.
pub(crate) fn hint(line: &str) {
    note(&format!("hint: {}", printable(line)));
}

/// A line to standard error.
pub(crate) fn note(line: &str) {
    // When standard error is gone there is no one left to tell.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `text` with control characters spelled out: values of users are quoted in messages, and a terminal would
/// obey them.
pub(crate) fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out() {
        assert_eq!(printable("a\u{1b}[31m\nü"), "a\\u{1b}[31m\\nü");
    }
}
