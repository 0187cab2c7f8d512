//! What somebody meant who wrote a flag of another program, or a prompt without quotes.
//!
//! Leaves out flags that are misspelt: clap knows those that are similar.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of other programs, without dashes and with `-` for `_`, and what says the same here.
const ELSEWHERE: [(&[&str], &str); 12] = [
    (
        &["width", "height", "w", "h", "resolution", "res", "aspect-ratio", "image-size", "dimensions"],
        "use --size WIDTHxHEIGHT",
    ),
    (
        &[
            "n",
            "num",
            "num-images",
            "num-images-per-prompt",
            "n-iter",
            "n-samples",
            "samples",
            "batch-size",
            "batch-count",
        ],
        "use --count N",
    ),
    (&["cfg", "cfg-scale", "guidance-scale", "scale", "g"], "use --guidance G"),
    (&["num-inference-steps", "inference-steps", "num-steps", "sampling-steps", "ddim-steps"], "use --steps N"),
    (&["negative-prompt", "neg-prompt", "neg", "uncond"], "use --negative TEXT"),
    (&["prompt", "p", "text"], "the prompt stands alone: fresco render \"a calm sea at dawn\""),
    (&["prompt-file", "prompts-file", "from-file", "file"], "use --prompts FILE, one prompt a line"),
    (&["output", "o", "outdir", "output-dir", "output-path", "out-dir", "outfile", "save-path"], "use --out PATH"),
    (&["ckpt", "checkpoint", "model-path", "model-id", "model-name", "m"], "use --model DIR or NAME"),
    (&["s"], "use --steps N or --seed S"),
    (
        &["device", "gpu", "cuda", "use-gpu", "cpu"],
        "pictures are rendered on the CPU here: `fresco worker --device cuda:0` uses a GPU",
    ),
    (&["sampler", "sampling-method", "scheduler", "sampler-name"], "there is one sampler, DPM-Solver++ (2M)"),
];

/// What to say about a command line that is not understood, `line` after the program's name, if its author is known to
/// have meant something else.
pub(crate) fn hint(error: &clap::Error, line: &[String]) -> Option<String> {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let given = context(ContextKind::InvalidSubcommand)?;
            if given.contains(char::is_whitespace) {
                return Some(format!("`{given}` is no command: fresco render \"{given}\" draws it"));
            }
            let n_words = line.iter().take_while(|word| !word.starts_with('-')).count();
            (n_words > 2).then(|| format!("`{given}` is no command: a prompt goes in quotes: fresco render \"…\""))
        }
        ErrorKind::UnknownArgument if matches!(line.first().map(String::as_str), Some("render" | "submit")) => {
            of_argument(context(ContextKind::InvalidArg)?, line)
        }
        _ => None,
    }
}

fn of_argument(given: &str, line: &[String]) -> Option<String> {
    let command = line.first()?;
    let Some(name) = given.strip_prefix('-') else {
        return Some(format!("unexpected argument '{given}': put the whole prompt in quotes: fresco {command} \"…\""));
    };
    let prompt = line.iter().find(|word| word.starts_with(given) && word.contains(char::is_whitespace));
    if let Some(prompt) = prompt {
        return Some(format!("the prompt begins with a dash: put -- before it: fresco {command} -- \"{prompt}\""));
    }
    let name = name.trim_start_matches('-').replace('_', "-").to_lowercase();
    let meant = ELSEWHERE.iter().find(|(names, _)| names.contains(&name.as_str()));
    meant.map(|(_, meant)| format!("unexpected argument '{given}': {meant}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a line, without a hint or with one.
    fn said(line: &[&str]) -> Option<String> {
        let line: Vec<String> = line.iter().map(ToString::to_string).collect();
        let whole = ["fresco".to_owned()].into_iter().chain(line.iter().cloned());
        let error = super::super::command().try_get_matches_from(whole).expect_err("it is not understood");
        hint(&error, &line)
    }

    fn check(line: &[&str], expected: &str) {
        let said = said(line).unwrap_or_else(|| panic!("{line:?}: no hint"));
        assert!(said.contains(expected), "{line:?}: {said}");
    }

    #[test]
    fn flags_of_other_programs_are_known() {
        for command in ["render", "submit"] {
            for (flag, expected) in [
                ("--width", "--size"),
                ("--height", "--size"),
                ("-W", "--size"),
                ("-H", "--size"),
                ("--resolution", "--size"),
                ("-n", "--count"),
                ("--num-images", "--count"),
                ("--num_images_per_prompt", "--count"),
                ("--cfg", "--guidance"),
                ("--cfg-scale", "--guidance"),
                ("--guidance_scale", "--guidance"),
                ("--num-inference-steps", "--steps"),
                ("--negative-prompt", "--negative"),
                ("--output", "--out"),
                ("-o", "--out"),
                ("--sampler", "one sampler"),
            ] {
                check(&[command, "x", flag, "4"], expected);
                if flag.starts_with("--") {
                    check(&[command, "x", &format!("{flag}=4")], expected);
                }
            }
            check(&[command, "--prompt", "a castle"], "the prompt stands alone");
            check(&[command, "-p", "a castle"], "the prompt stands alone");
        }
    }

    #[test]
    fn a_prompt_without_quotes_or_with_a_dash_is_known() {
        check(&["render", "a", "castle", "in", "fog"], "put the whole prompt in quotes");
        check(&["submit", "a castle", "in fog", "--count", "2"], "put the whole prompt in quotes");
        check(&["render", "-50 degrees in Yakutsk"], "fresco render -- \"-50 degrees in Yakutsk\"");
        check(&["render", "--a castle--"], "put -- before it");
        check(&["a castle in fog"], "fresco render \"a castle in fog\"");
        check(&["a", "castle", "in", "fog", "--steps", "3"], "a prompt goes in quotes");
    }

    #[test]
    fn what_clap_knows_better_is_left_to_it() {
        assert_eq!(said(&["render", "x", "--stpes", "3"]), None);
        assert_eq!(said(&["rendr", "x"]), None);
        assert_eq!(said(&["worker", "--width", "3"]), None);
    }
}
