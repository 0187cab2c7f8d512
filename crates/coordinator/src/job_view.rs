//! Jobs, images and events as messages.

use control::{ArtifactRef, Control, Event, Image, Job, Phase};
use plan::JobId;
use wire::{convert, v1};

pub(crate) fn job(control: &Control, id: &JobId) -> Option<v1::Job> {
    control.job(id).map(|job| of_job(control, job))
}

pub(crate) fn of_job(control: &Control, job: &Job) -> v1::Job {
    let images = job.images.iter().enumerate().map(|(index, image)| of_image(control, index as u32, image));
    v1::Job {
        id: job.id.0.clone(),
        spec: Some(convert::spec_of(&job.spec.request, &job.spec.model, job.spec.count, job.spec.artifact)),
        state: state(job.phase()).into(),
        revision: job.revision,
        images: images.collect(),
    }
}

fn of_image(control: &Control, index: u32, image: &Image) -> v1::Image {
    let attempt = image.epoch.and_then(|epoch| control.attempt(epoch));
    v1::Image {
        index,
        state: state(image.phase).into(),
        step: image.n_steps_done as u32,
        artifact: image.artifact.as_ref().map(artifact),
        message: image.message.clone(),
        epoch: image.epoch.map_or(0, |epoch| epoch.0),
        workers: attempt.map(|attempt| names(&attempt.seats)).unwrap_or_default(),
    }
}

pub(crate) fn of_event(event: &Event, artifact: Option<v1::Artifact>) -> v1::WatchJobResponse {
    v1::WatchJobResponse {
        revision: event.revision,
        job: event.image.job.0.clone(),
        image: Some(v1::Image {
            index: event.image.image.0,
            state: state(event.phase).into(),
            step: event.n_steps_done as u32,
            artifact,
            message: event.message.clone(),
            epoch: event.epoch.map_or(0, |epoch| epoch.0),
            workers: names(&event.workers),
        }),
        steps: event.n_steps as u32,
        job_state: state(event.job_phase).into(),
    }
}

pub(crate) fn artifact(artifact: &ArtifactRef) -> v1::Artifact {
    v1::Artifact {
        sha256: artifact.sha256.clone(),
        size_bytes: artifact.size_bytes,
        kind: convert::kind_of(artifact.kind).into(),
    }
}

fn names(workers: &[plan::WorkerId]) -> Vec<String> {
    workers.iter().map(|worker| worker.0.clone()).collect()
}

pub(crate) fn state(phase: Phase) -> v1::State {
    match phase {
        Phase::Queued => v1::State::Queued,
        Phase::Running => v1::State::Running,
        Phase::Done => v1::State::Done,
        Phase::Failed => v1::State::Failed,
        Phase::Cancelled => v1::State::Cancelled,
    }
}

/// Whether nothing will happen to the job by itself any more.
pub(crate) fn is_over(state: i32) -> bool {
    [v1::State::Done, v1::State::Failed, v1::State::Cancelled].into_iter().any(|over| i32::from(over) == state)
}
