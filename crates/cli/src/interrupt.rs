//! Ctrl-C, SIGTERM and SIGHUP end a command at once, and nothing unfinished stays.
//!
//! A picture at work is lost whether one waits for its step or not, so nobody is made to wait. Leaves out the roles of a
//! farm, which hand their work over first: `farm`.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use coordinator::role::EndSignals;

use crate::exit::INTERRUPTED;
use crate::{scratch, terminal};

static LAST_WORDS: Mutex<Option<String>> = Mutex::new(None);

/// Takes the signals over from the system. The first ends the process with `last_words`, once what is being written is
/// whole; the second does not wait. Called again, it changes the words.
pub(crate) fn listen(last_words: impl Into<String>) -> anyhow::Result<()> {
    let said = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner).replace(last_words.into());
    if said.is_some() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("listen for signals")?;
    let mut signals = runtime.block_on(async { EndSignals::listen() }).context("listen for signals")?;
    let wait = move || {
        runtime.block_on(async {
            signals.recv().await;
            drop(std::thread::spawn(end));
            signals.recv().await;
            std::process::exit(INTERRUPTED.into());
        });
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("listen for signals")?;
    Ok(())
}

fn end() {
    let _nothing_comes = scratch::remove_all();
    if std::io::stderr().is_terminal() {
        // Ends the line of a progress bar.
        terminal::note("");
    }
    let words = LAST_WORDS.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
    terminal::error(&format!("interrupted: {words}"));
    std::process::exit(INTERRUPTED.into());
}
