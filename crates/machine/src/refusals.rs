//! A listener that cannot accept: mostly because this process, or the machine, has too many files open.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Connections that were not accepted, one after the other.
#[derive(Debug, Default)]
pub struct Refusals {
    n: u32,
    said: Option<Instant>,
}

impl Refusals {
    /// One was accepted.
    pub fn accepted(&mut self) {
        self.n = 0;
    }

    /// One was not, at `now`, because of `error`: how long to wait before the next try, which would fail as well if it came
    /// at once. Logged once a minute at most; `what` says which connections.
    pub fn refused(&mut self, now: Instant, what: &str, error: &dyn Display) -> Duration {
        const FIRST: Duration = Duration::from_millis(50);
        const LONGEST: Duration = Duration::from_secs(2);
        const SAID_ONCE_IN: Duration = Duration::from_secs(60);
        if self.said.is_none_or(|said| now.duration_since(said) >= SAID_ONCE_IN) {
            self.said = Some(now);
            tracing::warn!(%error, "{what} are not accepted at the moment: trying again");
        }
        let pause = FIRST.saturating_mul(1 << self.n.min(8)).min(LONGEST);
        self.n += 1;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_tried_again_more_and_more_slowly_and_said_once_a_minute() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let mut refused = |seconds: u64| {
            let pause = refusals.refused(start + Duration::from_secs(seconds), "connections", &"too many open files");
            (pause.as_millis(), refusals.said.map(|said| said.duration_since(start).as_secs()))
        };
        let told: Vec<_> = [0, 1, 2, 3, 4, 5, 59, 61].map(&mut refused).into();
        assert_eq!(
            told.iter().map(|(pause, _)| *pause).collect::<Vec<_>>(),
            [50, 100, 200, 400, 800, 1600, 2000, 2000]
        );
        assert_eq!(told.iter().map(|(_, said)| *said).collect::<Vec<_>>()[6..], [Some(0), Some(61)]);
        // One that is accepted in between is no reason to say it again.
        refusals.accepted();
        assert_eq!(refusals.refused(start + Duration::from_secs(62), "connections", &"again").as_millis(), 50);
        assert_eq!(refusals.said, Some(start + Duration::from_secs(61)));
    }
}
