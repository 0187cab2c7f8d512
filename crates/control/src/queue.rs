//! Images that wait: in order of their jobs, by what they need of a worker; and those that are not to be tried yet.
//!
//! An index only: what is true of an image is in its job. Without it every heartbeat would look at every image.

use std::collections::{BTreeMap, BTreeSet};

use plan::{ImageId, ImageIdx, JobId, Millis};

use crate::job::Image;
use crate::member::Member;

/// What an image needs of a worker.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Need {
    /// Name of the model.
    pub(crate) model: String,
    /// Once it has steps done, it goes on only with what it began with.
    pub(crate) begun: Option<Begun>,
    /// Whether an attempt failed since its last step: it is given to a worker that is known to be well, if there is one.
    pub(crate) is_tried: bool,
}

/// What the steps of an image were made with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Begun {
    pub(crate) numeric_class: String,
    pub(crate) weights_sha256: String,
}

impl Need {
    pub(crate) fn of(model: &str, image: &Image) -> Self {
        let begun = image.numeric_class.clone().zip(image.weights_sha256.clone());
        let begun = begun.filter(|_| image.n_steps_done > 0);
        let begun = begun.map(|(numeric_class, weights_sha256)| Begun { numeric_class, weights_sha256 });
        Self { model: model.to_owned(), begun, is_tried: image.n_tries > 0 }
    }

    /// Whether a member has it.
    pub(crate) fn is_met_by(&self, member: &Member) -> bool {
        member.facts(&self.model).is_some_and(|facts| {
            self.begun.as_ref().is_none_or(|begun| {
                begun.numeric_class == member.hello.numeric_class && begun.weights_sha256 == facts.id.weights_sha256
            })
        })
    }
}

/// An image's place in the queue: its job's number, then itself.
pub(crate) type Turn = (u64, ImageId);

/// Images that wait.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    ready: BTreeMap<Need, BTreeSet<Turn>>,
    delayed: BTreeMap<(Millis, Turn), Need>,
}

impl Queue {
    pub(crate) fn insert(&mut self, need: Need, turn: Turn, not_before: Millis, now: Millis) {
        if not_before > now {
            self.delayed.insert((not_before, turn), need);
        } else {
            self.ready.entry(need).or_default().insert(turn);
        }
    }

    pub(crate) fn remove(&mut self, need: &Need, turn: &Turn, not_before: Millis) {
        self.delayed.remove(&(not_before, turn.clone()));
        if let Some(turns) = self.ready.get_mut(need) {
            turns.remove(turn);
            if turns.is_empty() {
                self.ready.remove(need);
            }
        }
    }

    /// Before every image of the jobs after the one of this number.
    pub(crate) fn after_job(number: u64) -> Turn {
        (number.saturating_add(1), ImageId { job: JobId(String::new()), image: ImageIdx(0) })
    }

    /// Images whose time has come are ready.
    pub(crate) fn wake(&mut self, now: Millis) {
        while let Some(((due, _), _)) = self.delayed.first_key_value()
            && *due <= now
            && let Some(((_, turn), need)) = self.delayed.pop_first()
        {
            self.ready.entry(need).or_default().insert(turn);
        }
    }

    /// When the next image's time comes.
    pub(crate) fn next_due(&self) -> Option<Millis> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// Images that may be tried, by what they need.
    pub(crate) fn ready(&self) -> impl Iterator<Item = (&Need, &BTreeSet<Turn>)> {
        self.ready.iter()
    }

    /// Every need there is, and an image that has it.
    pub(crate) fn needs(&self) -> impl Iterator<Item = (&Need, &ImageId)> {
        let ready = self.ready.iter().filter_map(|(need, turns)| Some((need, &turns.first()?.1)));
        ready.chain(self.delayed.iter().map(|((_, (_, image)), need)| (need, image)))
    }
}
