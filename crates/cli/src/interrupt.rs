//! Ctrl-C: the first asks the work to end at its next breath, the second ends the process.
//!
//! Leaves out the breaths themselves: whoever watches a render asks here whether to go on.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use crate::exit::Stop;
use crate::terminal;

static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Takes Ctrl-C over from the system. Called once, before the first render.
pub(crate) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if IS_ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        if std::io::stderr().is_terminal() {
            terminal::note("\nending after this step; Ctrl-C again ends at once");
        }
    })
    .context("listen for Ctrl-C")
}

/// Whether the work goes on.
pub(crate) fn flow() -> ControlFlow<()> {
    if IS_ASKED.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Ends the command if Ctrl-C was pressed.
pub(crate) fn check() -> Result<(), Stop> {
    if flow().is_break() { Err(Stop::Interrupted) } else { Ok(()) }
}
