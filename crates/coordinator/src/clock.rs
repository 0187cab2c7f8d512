//! The time the state machine is told: that of the process, less what it was stopped for.
//!
//! A coordinator that was stopped itself (a signal, a paused machine) longer than a lease has heard nobody, though all
//! have spoken: what they said waits to be read. So that time does not count, and everyone gets a grace on top of it.

use std::time::Duration;

use plan::Millis;
use tokio::time::Instant;

/// Of a lease: how long connections have to be heard after a stop. What was due longer ago than that was missed by the
/// clock, and not by those it is about.
const GRACE_SHARE: u32 = 3;

pub(crate) struct Clock {
    started: Instant,
    lease: Duration,
    /// What does not count.
    stopped: Duration,
    /// What was due when a grace was last given. A process that is slow and not stopped is late for it again, and
    /// would put it off for ever.
    put_off: Option<Millis>,
}

impl Clock {
    pub(crate) fn new(started: Instant, lease_ttl_ms: u64) -> Self {
        Self { started, lease: Duration::from_millis(lease_ttl_ms), stopped: Duration::ZERO, put_off: None }
    }

    /// A moment as the machine is told it.
    pub(crate) fn at(&self, moment: Instant) -> Millis {
        Millis((moment.saturating_duration_since(self.started).saturating_sub(self.stopped)).as_millis() as u64)
    }

    /// When the machine's clock shows `at`, if nothing is stopped until then.
    pub(crate) fn moment(&self, at: Millis) -> Instant {
        self.started + self.stopped + Duration::from_millis(at.0)
    }

    /// Sees whether the process was stopped: whether what is due next should have been done long before `now`, though
    /// nothing was heard in between. Then the clock stands a grace before it.
    pub(crate) fn heed_stop(&mut self, due: Option<Millis>, now: Instant) {
        let Some(due) = due else { return };
        let late = now.saturating_duration_since(self.moment(due));
        let grace = self.lease / GRACE_SHARE;
        if late <= grace || self.put_off == Some(due) {
            return;
        }
        self.put_off = Some(due);
        self.stopped += late + grace;
        tracing::warn!(late_ms = late.as_millis() as u64, "the coordinator was stopped: leases are longer by that");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE_MS: u64 = 3_000;

    fn clock() -> (Clock, impl Fn(u64) -> Instant) {
        let started = Instant::now();
        (Clock::new(started, LEASE_MS), move |ms| started + Duration::from_millis(ms))
    }

    #[test]
    fn a_stop_does_not_count_and_is_followed_by_a_grace() {
        let (mut clock, real) = clock();
        let due = Millis(4_000);
        clock.heed_stop(Some(due), real(60_000));
        assert_eq!(clock.at(real(60_000)), Millis(3_000), "a third of a lease before what is due");
        assert_eq!(clock.moment(due), real(61_000));
        clock.heed_stop(Some(due), clock.moment(due));
        assert_eq!(clock.at(real(61_000)), due, "who said nothing in the grace has had it");
    }

    #[test]
    fn a_clock_that_is_a_little_late_gives_no_grace() {
        let (mut clock, real) = clock();
        clock.heed_stop(None, real(2_000));
        clock.heed_stop(Some(Millis(4_000)), real(3_000));
        clock.heed_stop(Some(Millis(4_000)), real(4_200));
        assert_eq!(clock.at(real(4_200)), Millis(4_200));
    }

    #[test]
    fn a_process_that_is_late_for_one_thing_again_and_again_does_it_nevertheless() {
        let (mut clock, real) = clock();
        let due = Millis(4_000);
        clock.heed_stop(Some(due), real(6_000));
        assert!(clock.at(real(6_000)) < due);
        clock.heed_stop(Some(due), real(8_000));
        assert!(clock.at(real(8_000)) >= due);
        clock.heed_stop(Some(Millis(9_000)), real(20_000));
        assert_eq!(clock.at(real(20_000)), Millis(8_000), "another stop is another grace");
    }
}
