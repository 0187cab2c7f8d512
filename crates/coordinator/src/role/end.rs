//! The signals that ask a process to end, taken over from the system.
//!
//! Every role and every command listens here. Leaves out what they do then.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, SIGTERM and SIGHUP.
///
/// A SIGHUP that is ignored when the process starts stays ignored: that is what `nohup` is for.
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl EndSignals {
    /// Takes the signals over, for as long as the process lives.
    ///
    /// # Errors
    /// If the system does not hand them over.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn listen() -> io::Result<Self> {
        // By default a write beyond the limit of `ulimit -f` ends the process in the middle of its work. Taken over, the
        // signal does nothing and the write fails, as on a full disk.
        drop(signal(SignalKind::from_raw(libc::SIGXFSZ))?);
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    /// Waits for the next of them.
    pub async fn recv(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

/// Only Linux tells a process which signals it ignores, without unsafe code.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, libc::SIGHUP))
}

/// Whether `status`, the text of `/proc/PID/status`, says that a signal is ignored.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_read_from_the_mask() {
        assert!(ignores("Name:\tfresco\nSigIgn:\t0000000000001001\n", libc::SIGHUP));
        assert!(!ignores("Name:\tfresco\nSigIgn:\t0000000000001000\n", libc::SIGHUP));
        assert!(!ignores("", libc::SIGHUP));
    }
}
