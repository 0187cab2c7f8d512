//! A job and its images: what was asked, how far it is.

use std::collections::{BTreeMap, BTreeSet};

use plan::{ArtifactKind, Epoch, ImageId, ImageIdx, JobId, Millis, RenderRequest, WorkerId};

use crate::input::JobSpec;
use serde::{Deserialize, Serialize};

/// Where an image or a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Waits for workers.
    Queued,
    /// Is being made.
    Running,
    /// Is done.
    Done,
    /// Gave up.
    Failed,
    /// Was cancelled.
    Cancelled,
}

/// A finished picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Hash of its bytes, hexadecimal; also its name.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
    /// How it is written.
    pub kind: ArtifactKind,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// The client's own name for it; may be empty.
    pub request_id: String,
    /// Its place in the queue: the lower, the sooner.
    pub number: u64,
    /// What was asked.
    pub spec: JobSpec,
    /// One higher with every event.
    pub revision: u64,
    /// Its images.
    pub images: Vec<Image>,
    /// How many images are in each phase.
    #[serde(skip)]
    counts: BTreeMap<Phase, usize>,
    /// Whether a step of one of its images was kept: then a failure is more likely the worker's than the job's.
    #[serde(skip)]
    pub(crate) has_worked: bool,
}

/// One image of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Where it is.
    pub phase: Phase,
    /// Steps done and kept.
    pub n_steps_done: usize,
    /// The attempt it is in.
    pub epoch: Option<Epoch>,
    /// The numeric class of its last attempt; binding once it has a step done.
    pub numeric_class: Option<String>,
    /// The weights of its last attempt, likewise.
    pub weights_sha256: Option<String>,
    /// The picture.
    pub artifact: Option<ArtifactRef>,
    /// Why it waits or failed.
    pub message: String,
    /// Reported failures since the last step forward.
    pub n_failures: u32,
    /// Members lost since the last step forward.
    pub n_losses: u32,
    /// Values that were not finite, so far.
    pub n_not_finite: u32,
    /// Workers whose program went wrong at it, so far.
    #[serde(default)]
    pub n_bugs: u32,
    /// Attempts that failed since the last step forward, whoever is to blame.
    #[serde(default)]
    pub n_tries: u32,
    /// Stops to split it anew by speed, so far.
    pub n_resplits: u32,
    /// Whom to spare it, if there are others.
    pub avoid: BTreeSet<WorkerId>,
    /// Not to be tried before. Not kept over restarts.
    pub not_before: Millis,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// Whether nothing more will happen unless a client asks for it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl Job {
    pub(crate) fn new(id: JobId, number: u64, request_id: String, spec: JobSpec) -> Self {
        let images = vec![Image::new(); spec.count as usize];
        let counts = BTreeMap::from([(Phase::Queued, images.len())]);
        Self { id, request_id, number, spec, revision: 1, images, counts, has_worked: false }
    }

    /// Changes an image, and keeps count. `None` if there is none of that number.
    pub(crate) fn change(&mut self, image: ImageIdx, change: impl FnOnce(&mut Image)) -> Option<()> {
        let image = self.images.get_mut(image.0 as usize)?;
        let before = image.phase;
        change(image);
        let after = image.phase;
        self.has_worked |= image.n_steps_done > 0;
        if let Some(n) = self.counts.get_mut(&before) {
            *n = n.saturating_sub(1);
        }
        *self.counts.entry(after).or_default() += 1;
        Some(())
    }

    /// How many images are in a phase.
    pub fn n_in(&self, phase: Phase) -> usize {
        self.counts.get(&phase).copied().unwrap_or(0)
    }

    /// Whether an image waits or is being made.
    pub fn is_open(&self) -> bool {
        self.n_in(Phase::Queued) + self.n_in(Phase::Running) > 0
    }

    /// Where the job is: running or queued while an image is, then failed if one failed, cancelled if one was.
    pub fn phase(&self) -> Phase {
        let any = |phase| self.n_in(phase) > 0;
        let begun = self.n_in(Phase::Queued) < self.images.len();
        match () {
            () if any(Phase::Running) || (any(Phase::Queued) && begun) => Phase::Running,
            () if any(Phase::Queued) => Phase::Queued,
            () if any(Phase::Failed) => Phase::Failed,
            () if any(Phase::Cancelled) => Phase::Cancelled,
            () => Phase::Done,
        }
    }

    /// The request of one image, with its own seed.
    pub fn request(&self, image: ImageIdx) -> RenderRequest {
        let seed = self.spec.request.seed.wrapping_add(image.0.into());
        RenderRequest { seed, ..self.spec.request.clone() }
    }

    /// One of its images.
    pub fn image(&self, image: ImageIdx) -> Option<&Image> {
        self.images.get(image.0 as usize)
    }

    pub(crate) fn image_ids(&self) -> impl Iterator<Item = (ImageId, &Image)> {
        let id = |idx: usize| ImageId { job: self.id.clone(), image: ImageIdx(idx as u32) };
        self.images.iter().enumerate().map(move |(idx, image)| (id(idx), image))
    }
}

impl Image {
    pub(crate) fn is_open(&self) -> bool {
        !self.phase.is_over()
    }

    /// As it is submitted.
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Queued,
            n_steps_done: 0,
            epoch: None,
            numeric_class: None,
            weights_sha256: None,
            artifact: None,
            message: String::new(),
            n_failures: 0,
            n_losses: 0,
            n_not_finite: 0,
            n_bugs: 0,
            n_tries: 0,
            n_resplits: 0,
            avoid: BTreeSet::new(),
            not_before: Millis(0),
        }
    }
}
