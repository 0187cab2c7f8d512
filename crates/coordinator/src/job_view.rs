//! Jobs, images and events as messages.

use control::{ArtifactRef, Control, Event, Image, Job, Phase};
use plan::JobId;
use wire::{convert, v1};

use crate::report;

/// Of what an image says: the rest is in its worker's log.
const LONGEST_MESSAGE_BYTES: usize = 512;
/// What a page of jobs may come to: half of what a client of gRPC takes unless it is told otherwise.
const LARGEST_PAGE_BYTES: usize = 2 << 20;

pub(crate) fn job(control: &Control, id: &JobId) -> Option<v1::Job> {
    control.job(id).map(|job| of_job(control, job))
}

fn of_job(control: &Control, job: &Job) -> v1::Job {
    let images = job.images.iter().enumerate().map(|(index, image)| of_image(control, index as u32, image));
    v1::Job { images: images.collect(), ..without_images(job) }
}

fn without_images(job: &Job) -> v1::Job {
    v1::Job {
        id: job.id.0.clone(),
        spec: Some(convert::spec_of(&job.spec.request, &job.spec.model, job.spec.count, job.spec.artifact)),
        state: state(job.phase()).into(),
        revision: job.revision,
        images: Vec::new(),
        image_counts: Some(counts(job)),
    }
}

fn counts(job: &Job) -> v1::ImageCounts {
    let n = |phase| job.n_in(phase) as u32;
    v1::ImageCounts {
        total: job.images.len() as u32,
        queued: n(Phase::Queued),
        running: n(Phase::Running),
        done: n(Phase::Done),
        failed: n(Phase::Failed),
        cancelled: n(Phase::Cancelled),
    }
}

/// Up to `most` jobs that were submitted before the one numbered `before`, the newest first, without their images: a
/// page of jobs of thousands would be larger than clients take.
pub(crate) fn page(control: &Control, before: Option<u64>, most: usize) -> v1::ListJobsResponse {
    /// Of a job, what is not text of its client.
    const ROOM_BYTES: usize = 512;
    let (mut jobs, mut bytes, mut last) = (Vec::new(), 0, 0);
    for job in control.jobs_before(before.unwrap_or(u64::MAX)) {
        let request = &job.spec.request;
        bytes += ROOM_BYTES + job.spec.model.len() + request.prompt.len() + request.negative.len();
        if !jobs.is_empty() && (jobs.len() == most || bytes > LARGEST_PAGE_BYTES) {
            return v1::ListJobsResponse { jobs, next_page_token: u64::to_string(&last) };
        }
        jobs.push(without_images(job));
        last = job.number;
    }
    v1::ListJobsResponse { jobs, next_page_token: String::new() }
}

fn of_image(control: &Control, index: u32, image: &Image) -> v1::Image {
    let attempt = image.epoch.and_then(|epoch| control.attempt(epoch));
    v1::Image {
        index,
        state: state(image.phase).into(),
        step: image.n_steps_done as u32,
        artifact: image.artifact.as_ref().map(artifact),
        message: said(&image.message),
        epoch: image.epoch.map_or(0, |epoch| epoch.0),
        workers: attempt.map(|attempt| names(&attempt.seats)).unwrap_or_default(),
    }
}

pub(crate) fn of_event(event: &Event) -> v1::WatchJobResponse {
    v1::WatchJobResponse {
        revision: event.revision,
        job: event.image.job.0.clone(),
        image: Some(v1::Image {
            index: event.image.image.0,
            state: state(event.phase).into(),
            step: event.n_steps_done as u32,
            artifact: event.artifact.as_ref().map(artifact),
            message: said(&event.message),
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

fn said(message: &str) -> String {
    report::cut(message.to_owned(), LONGEST_MESSAGE_BYTES)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_image_says_is_bounded() {
        assert_eq!(said("no worker has the model"), "no worker has the model");
        assert!(said(&"é".repeat(2048)).len() <= LONGEST_MESSAGE_BYTES + '…'.len_utf8());
    }
}
