//! How well a worker is: failures in a row make it rest, longer each time, and are no fault of its images.
//!
//! A worker whose device or driver is broken fails in milliseconds and is free again at once: without a rest it would be
//! the free worker nearly always, and fail image after image while the others are busy.

use std::collections::{BTreeMap, BTreeSet};

use plan::{Cause, ImageId, Millis, WorkerId};

/// Failures in a row after which a worker is in quarantine.
pub(crate) const MOST_IN_A_ROW: usize = 3;
/// Most times a quarantine is doubled.
const MOST_DOUBLINGS: u32 = 6;
/// Jobs that are remembered.
const MOST_JOBS: usize = 8;
/// The pause after a single failure, four times as long after the second.
const PAUSE_MS: u64 = 100;

/// How long after its rest a worker that is gone is remembered.
pub(crate) const REMEMBERED_MS: u64 = 10 * 60_000;

/// A failure that is charged to an image as long as its worker may be well.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Charge {
    pub(crate) image: ImageId,
    pub(crate) cause: Cause,
}

/// One worker's record. It outlives its sessions: a process that starts anew under a name is no better for it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Health {
    /// Failures and deaths since the last step that was kept with its help; `None` for a death.
    in_a_row: Vec<Option<Charge>>,
    n_quarantines: u32,
    last_failed_at: Millis,
    /// Not to be given work before.
    pub(crate) rests_until: Millis,
    /// Numbers of the jobs it failed at since then, of a few of them.
    failed_jobs: BTreeSet<u64>,
    /// Whether a step was kept with its help since it last failed.
    is_proven: bool,
    /// What it said last.
    pub(crate) message: String,
}

/// What a failure led to.
pub(crate) struct Quarantined {
    pub(crate) for_ms: u64,
    /// Failures that are no fault of their images.
    pub(crate) charges: Vec<Charge>,
}

impl Health {
    /// Takes in a failure at `now`, or with no `charge` a death. A worker that was in quarantine and has done nothing well since needs no second one.
    pub(crate) fn failed(
        &mut self,
        charge: Option<Charge>,
        job: u64,
        message: &str,
        now: Millis,
        base_ms: u64,
    ) -> Option<Quarantined> {
        self.is_proven = false;
        self.last_failed_at = now;
        if self.failed_jobs.len() < MOST_JOBS {
            self.failed_jobs.insert(job);
        }
        message.clone_into(&mut self.message);
        // Starting a process anew is pause enough.
        let pauses = charge.is_some();
        self.in_a_row.push(charge);
        let n = self.in_a_row.len();
        if n < MOST_IN_A_ROW && self.n_quarantines == 0 {
            if !pauses {
                return None;
            }
            let pause_ms = PAUSE_MS << (2 * (n as u32 - 1));
            self.rests_until = now + pause_ms;
            return None;
        }
        let for_ms = base_ms << self.n_quarantines.min(MOST_DOUBLINGS);
        self.n_quarantines = self.n_quarantines.saturating_add(1);
        self.rests_until = now + for_ms;
        Some(Quarantined { for_ms, charges: std::mem::take(&mut self.in_a_row).into_iter().flatten().collect() })
    }

    /// A step was kept with its help.
    pub(crate) fn proved(&mut self) {
        *self = Self { is_proven: true, ..Self::default() };
    }

    /// What it failed at is to blame for that: it is as if it had not failed.
    pub(crate) fn acquit(&mut self) {
        self.in_a_row.clear();
        self.failed_jobs.clear();
        self.n_quarantines = 0;
    }

    /// Whether it has done something well since it last failed.
    pub(crate) fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Whether it is in quarantine, and not only in a short pause.
    pub(crate) fn is_quarantined(&self, now: Millis) -> bool {
        self.n_quarantines > 0 && self.rests_until > now
    }

    /// Whether the record of a worker that is gone is kept: for a while, since one that died may be started again.
    pub(crate) fn is_remembered(&self, now: Millis) -> bool {
        let has_failed = self.n_quarantines > 0 || !self.in_a_row.is_empty();
        has_failed && self.rests_until.max(self.last_failed_at) + REMEMBERED_MS > now
    }

    /// Whether it has failed and not done anything well since. One death or two are no suspicion: machines are restarted.
    pub(crate) fn is_suspect(&self) -> bool {
        self.n_quarantines > 0 || self.in_a_row.iter().any(Option::is_some)
    }

    /// Jobs it failed at since it last did something well: another job tells whether it is the worker.
    pub(crate) fn failed_jobs(&self) -> &BTreeSet<u64> {
        &self.failed_jobs
    }

    /// It took part in something that failed, perhaps by its fault.
    pub(crate) fn doubt(&mut self) {
        self.is_proven = false;
    }
}

/// A worker that was lost at work.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Silent {
    pub(crate) incarnation: String,
    pub(crate) image: ImageId,
    pub(crate) since: Millis,
}

/// Every worker that failed or did something well, by name.
pub(crate) type Healths = BTreeMap<WorkerId, Health>;

#[cfg(test)]
mod tests {
    use plan::{ImageIdx, JobId};

    use super::*;

    const BASE_MS: u64 = 15_000;

    fn charge(image: u32) -> Charge {
        Charge { image: ImageId { job: JobId("j".into()), image: ImageIdx(image) }, cause: Cause::Device }
    }

    #[test]
    fn the_third_failure_in_a_row_is_a_quarantine_and_gives_back_all_three() {
        let mut health = Health::default();
        for (image, pause_ms) in [(0, 100), (1, 400)] {
            assert!(health.failed(Some(charge(image)), 7, "it broke", Millis(50), BASE_MS).is_none());
            assert_eq!((health.rests_until, health.is_quarantined(Millis(50))), (Millis(50) + pause_ms, false));
        }
        let quarantined = health.failed(Some(charge(2)), 7, "it broke", Millis(50), BASE_MS).expect("the third");
        assert_eq!((quarantined.for_ms, quarantined.charges), (BASE_MS, vec![charge(0), charge(1), charge(2)]));
        assert!(health.is_quarantined(Millis(50)) && !health.is_quarantined(Millis(50) + BASE_MS));
    }

    #[test]
    fn each_failure_after_a_quarantine_doubles_it_until_a_step_is_kept() {
        let mut health = Health::default();
        let fail = |health: &mut Health| health.failed(Some(charge(0)), 7, "", Millis(0), BASE_MS).map(|q| q.for_ms);
        assert_eq!([fail(&mut health), fail(&mut health), fail(&mut health)], [None, None, Some(BASE_MS)]);
        assert_eq!([fail(&mut health), fail(&mut health)], [Some(2 * BASE_MS), Some(4 * BASE_MS)]);
        for _ in 0..100 {
            fail(&mut health);
        }
        assert_eq!(fail(&mut health), Some(BASE_MS << MOST_DOUBLINGS), "at most");
        health.proved();
        assert!(health.is_proven() && !health.is_suspect());
        assert_eq!(fail(&mut health), None);
    }
}
