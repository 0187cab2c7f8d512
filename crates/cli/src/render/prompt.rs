//! Prompts: from the command line, standard input or a file, and what in them other programs would understand.
//!
//! Leaves out how a prompt becomes tokens; that is `model`'s.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use anyhow::Context;
use plan::request::MAX_PROMPT_BYTES;
use plan::{ImageSize, RenderRequest};

use crate::args::PictureArgs;
use crate::exit::Stop;

/// Most bytes of a file of prompts.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Most pictures of one command, as of one prompt.
const MAX_PICTURES: u64 = 100_000;

/// What is to be drawn.
pub(crate) struct Prompts {
    pub(crate) texts: Vec<String>,
    /// Lines of a prompt from standard input.
    n_lines: usize,
}

impl Prompts {
    /// The prompts that the flags name, at least one.
    ///
    /// # Errors
    /// If they cannot be read, or there is none.
    pub(crate) fn read(args: &PictureArgs) -> anyhow::Result<Self> {
        if let Some(path) = &args.prompts {
            return Self::of_file(path);
        }
        match args.prompt.as_deref().unwrap_or_default() {
            "-" => Self::of_standard_input(),
            prompt => Ok(Self { texts: vec![prompt.to_owned()], n_lines: 1 }),
        }
    }

    fn of_standard_input() -> anyhow::Result<Self> {
        let most = MAX_PROMPT_BYTES as u64;
        let text = text_of(std::io::stdin(), most).context("read the prompt from standard input")?;
        let Some(text) = text else {
            let fault = format!("the prompt on standard input is longer than {MAX_PROMPT_BYTES} bytes: shorten it");
            return Err(Stop::Usage(fault).into());
        };
        // The line's end belongs to the line, not to the prompt.
        let line = text.strip_suffix('\n').unwrap_or(&text);
        let prompt = line.strip_suffix('\r').unwrap_or(line).to_owned();
        let n_lines = prompt.lines().filter(|line| !line.trim().is_empty()).count();
        Ok(Self { texts: vec![prompt], n_lines })
    }

    /// One prompt a line; lines without any are passed over.
    fn of_file(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = if path == Path::new("-") {
            text_of(std::io::stdin(), MAX_FILE_BYTES)
        } else {
            File::open(path).and_then(|file| text_of(file, MAX_FILE_BYTES))
        };
        let text = text.map_err(|error| {
            let said = format!("--prompts {shown}: {error}");
            if error.kind() == ErrorKind::NotFound { Stop::NotFound(said) } else { Stop::Usage(said) }
        })?;
        let Some(text) = text else {
            let fault = format!("--prompts {shown}: the file is larger than {MAX_FILE_BYTES} bytes: split it");
            return Err(Stop::Usage(fault).into());
        };
        // Editors of some systems begin a file with this mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let texts: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        if texts.is_empty() {
            return Err(Stop::Usage(format!("--prompts {shown}: there is no prompt in it: write one a line")).into());
        }
        Ok(Self { texts, n_lines: 1 })
    }

    /// The request of the first picture of each prompt, of `size`.
    ///
    /// # Errors
    /// If one cannot be rendered.
    pub(crate) fn requests(&self, args: &PictureArgs, size: ImageSize) -> anyhow::Result<Vec<RenderRequest>> {
        let n_pictures = self.texts.len() as u64 * u64::from(args.count);
        if n_pictures > MAX_PICTURES {
            let n_prompts = self.texts.len();
            let fault =
                format!("{n_prompts} prompts with --count {}: draw at most {MAX_PICTURES} at a time", args.count);
            return Err(Stop::Usage(fault).into());
        }
        let seed = args.seed.number()?;
        let request = |prompt: &String| {
            let request = RenderRequest {
                prompt: prompt.clone(),
                negative: args.negative.clone(),
                size,
                steps: args.steps,
                guidance: args.guidance,
                seed,
                clean: args.clean.into(),
            };
            request.check().and_then(|()| request.check_seeds(args.count)).map(|()| request)
        };
        Ok(self.texts.iter().map(request).collect::<Result<_, _>>()?)
    }

    /// What is drawn otherwise than somebody may expect, each in a line.
    pub(crate) fn warnings(&self, negative: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.n_lines > 1 {
            warnings.push(format!(
                "the {} lines of standard input are one prompt: --prompts - draws each of them",
                self.n_lines
            ));
        }
        for (which, text) in
            self.texts.iter().map(|text| ("prompt", text.as_str())).chain([("negative prompt", negative)])
        {
            for (found, meaning) in foreign_syntax(text) {
                let warning = format!("`{found}` in the {which} is read as plain text: there are no {meaning} here");
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        warnings
    }
}

/// All of a text, or nothing if it has more than `most` bytes.
fn text_of(from: impl Read, most: u64) -> std::io::Result<Option<String>> {
    let mut text = String::new();
    from.take(most + 1).read_to_string(&mut text)?;
    Ok((text.len() as u64 <= most).then_some(text))
}

/// Parts of a prompt that other programs do not draw but obey, with what they mean there.
fn foreign_syntax(prompt: &str) -> Vec<(&str, &'static str)> {
    let mut found = Vec::new();
    for (open, close, is_meant, meaning) in SYNTAX {
        let mut rest = prompt;
        while let Some(start) = rest.find(open) {
            let inner = &rest[start + open.len()..];
            let Some(end) = inner.find(close) else { break };
            if is_meant(&inner[..end]) {
                found.push((&rest[start..start + open.len() + end + close.len()], meaning));
                break;
            }
            rest = inner;
        }
    }
    found
}

/// How it opens and closes, whether what is in it makes it one, and what it is.
type Syntax = (&'static str, &'static str, fn(&str) -> bool, &'static str);

const SYNTAX: [Syntax; 5] = [
    ("(", ")", is_weighted, "weights of words"),
    ("<", ">", is_tag, "added networks"),
    ("__", "__", is_name, "wildcards"),
    ("{", "}", |inner| inner.contains('|'), "choices"),
    ("[", "]", is_edit, "edits between steps"),
];

/// `castle:1.3`, but not `at 5:30`
fn is_weighted(inner: &str) -> bool {
    let is_words = |words: &str| words.chars().next_back().is_some_and(|last| !last.is_ascii_digit());
    inner.rsplit_once(':').is_some_and(|(words, weight)| is_words(words) && weight.trim().parse::<f64>().is_ok())
}

/// `lora:style:0.8`
fn is_tag(inner: &str) -> bool {
    inner
        .split_once(':')
        .is_some_and(|(kind, name)| kind.chars().all(char::is_alphanumeric) && !kind.is_empty() && !name.is_empty())
}

/// `season` or `places/city`
fn is_name(inner: &str) -> bool {
    !inner.is_empty() && inner.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '/' | '*' | '.'))
}

/// `fog:snow:0.5` or `fog|snow`
fn is_edit(inner: &str) -> bool {
    is_weighted(inner) || inner.contains('|')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, expected: &[&str]) {
        let found: Vec<&str> = foreign_syntax(prompt).into_iter().map(|(found, _)| found).collect();
        assert_eq!(found, expected, "{prompt}");
    }

    #[test]
    fn what_other_programs_obey_is_found() {
        check("a (castle:1.3) in fog", &["(castle:1.3)"]);
        check("a castle <lora:style:0.8>, <hypernet:x:1>", &["<lora:style:0.8>"]);
        check("a __season__ day", &["__season__"]);
        check("a {red|blue} house", &["{red|blue}"]);
        check("[fog:snow:0.5] and [a|b]", &["[fog:snow:0.5]"]);
        check("((a) b:1.2), (sea: calm) (sky:0.5)", &["(sky:0.5)"]);
    }

    #[test]
    fn plain_text_is_left_alone() {
        for prompt in [
            "a castle (old, ruined) in fog",
            "a poster: \"ratio 16:9\"",
            "a < b > c",
            "a sea (at 5:30)",
            "__",
            "____",
            "snake_case and __ two words __",
            "(",
            "[1] {x}",
            "",
        ] {
            check(prompt, &[]);
        }
    }
}
