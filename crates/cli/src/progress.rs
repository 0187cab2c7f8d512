//! How far a picture is: a bar on a terminal, and the times that are reported at the end.
//!
//! Says nothing where standard error is not a terminal.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use model::Progress;
use plan::request::MAX_TOKENS;

/// Steps of a picture that others make.
pub(crate) struct StepBar(ProgressBar);

impl StepBar {
    /// Starts a bar of so many steps.
    pub(crate) fn start(n_steps: u32) -> Self {
        let bar = bar("{prefix} {pos}/{len} [{wide_bar}] {elapsed}", u64::from(n_steps));
        bar.set_prefix("step");
        Self(bar)
    }

    /// So many steps are done.
    pub(crate) fn show(&mut self, n_steps_done: u32) {
        self.0.set_position(n_steps_done.into());
    }
}

impl Drop for StepBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// One picture's way from prompt to pixels.
pub(crate) struct Meter {
    bar: ProgressBar,
    label: String,
    /// When the part at work began.
    began: Instant,
    n_steps: u32,
    /// When the first step was done.
    first_step: Option<Instant>,
    step_time: Duration,
    decode_time: Duration,
}

impl Meter {
    /// Starts a bar; `label` says which picture it is, if there are several.
    pub(crate) fn start(label: String, n_steps: u32) -> Self {
        let bar = bar("{prefix} {pos}/{len} [{wide_bar}] {msg}", u64::from(n_steps));
        bar.set_prefix(format!("{label}step"));
        bar.set_message("reading the prompt");
        let zero = Duration::ZERO;
        Self { bar, label, began: Instant::now(), n_steps: 0, first_step: None, step_time: zero, decode_time: zero }
    }

    /// Shows what has just been done.
    pub(crate) fn show(&mut self, progress: &Progress<'_>) {
        match *progress {
            Progress::PromptCut { .. } | Progress::Encoding => {}
            Progress::Encoded => self.bar.set_message("denoising"),
            Progress::Step { step, steps, .. } => {
                self.n_steps += 1;
                self.first_step.get_or_insert_with(Instant::now);
                self.step_time += self.began.elapsed();
                let left = self.step_time / self.n_steps * u32::try_from(steps - step - 1).unwrap_or(u32::MAX);
                self.bar.set_position(step as u64 + 1);
                self.bar.set_message(format!("{:.2} s/step, {} left", self.seconds_per_step(), rough(left)));
            }
            Progress::Decode { done, total } => {
                self.decode_time += self.began.elapsed();
                self.bar.set_message("");
                self.bar.set_position(done as u64);
                self.bar.set_length(total as u64);
                self.bar.set_prefix(format!("{}decode", self.label));
            }
        }
        self.began = Instant::now();
    }

    /// Leaves out of the times what has happened since the last part was done.
    pub(crate) fn skip(&mut self) {
        self.began = Instant::now();
    }

    /// Runs `say`, which writes to the terminal, without the bar in its way.
    pub(crate) fn aside(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }

    pub(crate) fn seconds_per_step(&self) -> f64 {
        self.step_time.as_secs_f64() / f64::from(self.n_steps.max(1))
    }

    /// From `start` until the first step was done.
    pub(crate) fn first_step_seconds(&self, start: Instant) -> Option<f64> {
        self.first_step.map(|done| done.duration_since(start).as_secs_f64())
    }

    pub(crate) fn decode_seconds(&self) -> f64 {
        self.decode_time.as_secs_f64()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Says that something takes a while, for as long as the result is kept.
pub(crate) struct Wait(ProgressBar);

impl Wait {
    pub(crate) fn start(what: &'static str) -> Self {
        let bar = bar("{spinner} {msg}", 1);
        bar.set_message(what);
        Self(bar)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A bar that hides itself where standard error is not a terminal. Colourless, so that NO_COLOR needs no care.
fn bar(template: &str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A time nobody will read to the digit.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// What a prompt lost that has more tokens than the model takes.
pub(crate) fn cut_prompt(which: &str, n_tokens: usize, cut_text: &str) -> String {
    const MOST_CHARS: usize = 1000;
    let n_chars = cut_text.chars().count();
    let shown: String = cut_text.chars().take(MOST_CHARS).collect();
    let rest =
        if n_chars > MOST_CHARS { format!(" and {} characters more", n_chars - MOST_CHARS) } else { String::new() };
    let n_cut = n_tokens.saturating_sub(MAX_TOKENS);
    format!(
        "the {which} has {n_tokens} tokens, {MAX_TOKENS} is the limit: its last {n_cut} were left out: \"{shown}\"{rest}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_prompt_is_reported_with_its_counts_and_what_was_lost() {
        let line = cut_prompt("prompt", 312, "in the fog");
        assert_eq!(line, "the prompt has 312 tokens, 300 is the limit: its last 12 were left out: \"in the fog\"");
        assert!(cut_prompt("prompt", 9000, &"x".repeat(1200)).ends_with("x\" and 200 characters more"));
    }

    #[test]
    fn times_are_rough() {
        assert_eq!(rough(Duration::from_millis(8600)), "9 s");
        assert_eq!(rough(Duration::from_secs(125)), "2 min 5 s");
        assert_eq!(rough(Duration::from_secs(7300)), "2 h 1 min");
    }
}
