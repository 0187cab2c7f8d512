//! How fast a rank is, by its last steps.
//!
//! A step may be slow for any reason, so one says little: a pace is the median of several, and a change is believed
//! only as far as all of the last steps bear it out.

use std::collections::VecDeque;

/// Steps that are remembered.
const MOST_STEPS: usize = 16;
/// Steps before a pace is known at all: the first of an attempt also touches its memory for the first time.
const FEWEST_STEPS: usize = 2;

/// What one rank did in its last steps: rows × branches a millisecond, oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Pace(VecDeque<f64>);

impl Pace {
    /// Takes in a step of so many rows × branches. A time that cannot be is passed over.
    pub(crate) fn measured(&mut self, work: f64, compute_ms: f64) {
        const SHORTEST_MS: f64 = 1e-3;
        if !compute_ms.is_finite() || compute_ms < SHORTEST_MS || work <= 0.0 {
            return;
        }
        self.0.push_back(work / compute_ms);
        self.keep_last(MOST_STEPS);
    }

    /// Forgets all but the last `n` steps.
    pub(crate) fn keep_last(&mut self, n: usize) {
        self.0.drain(..self.0.len().saturating_sub(n));
    }

    /// The median; none before there were some steps.
    pub(crate) fn median(&self) -> Option<f64> {
        if self.0.len() < FEWEST_STEPS {
            return None;
        }
        let mut paces: Vec<f64> = self.0.iter().copied().collect();
        paces.sort_by(f64::total_cmp);
        let middle = paces.len() / 2;
        Some(if paces.len().is_multiple_of(2) { (paces[middle - 1] + paces[middle]) / 2.0 } else { paces[middle] })
    }

    /// The slowest and the fastest of the last `n` steps; none if there were not so many.
    pub(crate) fn range(&self, n: usize) -> Option<(f64, f64)> {
        let from = self.0.len().checked_sub(n)?;
        let range = |(least, most): (f64, f64), pace: &f64| (least.min(*pace), most.max(*pace));
        (n > 0).then(|| self.0.range(from..).fold((f64::INFINITY, 0.0), range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(paces: &[f64]) -> Pace {
        let mut pace = Pace::default();
        paces.iter().for_each(|each| pace.measured(*each, 1.0));
        pace
    }

    #[test]
    fn a_pace_is_the_median_of_the_last_steps() {
        assert_eq!(of(&[3.0]).median(), None);
        assert_eq!(of(&[3.0, 1.0]).median(), Some(2.0));
        assert_eq!(of(&[3.0, 1.0, 100.0]).median(), Some(3.0), "one odd step says nothing");
        let mut long = of(&[9.0; 20]);
        assert_eq!((long.range(MOST_STEPS), long.range(MOST_STEPS + 1)), (Some((9.0, 9.0)), None));
        (0..9).for_each(|_| long.measured(1.0, 1.0));
        assert_eq!(long.median(), Some(1.0));
    }

    #[test]
    fn a_range_is_of_the_last_steps_alone() {
        let mut pace = of(&[9.0, 2.0, 4.0, 3.0]);
        assert_eq!((pace.range(3), pace.range(4), pace.range(5)), (Some((2.0, 4.0)), Some((2.0, 9.0)), None));
        pace.keep_last(2);
        assert_eq!((pace.range(2), pace.range(3), pace.median()), (Some((3.0, 4.0)), None, Some(3.5)));
    }

    #[test]
    fn times_that_cannot_be_are_passed_over() {
        let mut pace = Pace::default();
        for ms in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            pace.measured(1.0, ms);
        }
        pace.measured(0.0, 1.0);
        assert_eq!(pace, Pace::default());
    }
}
