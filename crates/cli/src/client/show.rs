//! Jobs, images and events as lines for people and as JSON.

use serde_json::{Value, json};
use wire::v1;

use crate::terminal::printable;

/// The name of a state, as people and scripts read it.
fn name(state: v1::State) -> &'static str {
    match state {
        v1::State::Unspecified => "UNKNOWN",
        v1::State::Queued => "QUEUED",
        v1::State::Running => "RUNNING",
        v1::State::Done => "DONE",
        v1::State::Failed => "FAILED",
        v1::State::Cancelled => "CANCELLED",
    }
}

/// A job with its images.
pub(super) fn job(job: &v1::Job) -> Value {
    let mut value = job_of_many(job);
    value["images"] = job.images.iter().map(image).collect();
    value
}

/// A job as one of a list: its images are counted.
pub(super) fn job_of_many(job: &v1::Job) -> Value {
    let spec = job.spec.clone().unwrap_or_default();
    let counts = counts(job);
    json!({
        "job": job.id,
        "state": name(job.state()),
        "revision": job.revision,
        "model": spec.model,
        "prompt": spec.prompt,
        "negative": spec.negative,
        "size": format!("{}x{}", spec.width_px, spec.height_px),
        "steps": spec.steps,
        "guidance": spec.guidance,
        "seed": spec.seed,
        "count": spec.count,
        "images_total": counts.total,
        "images_done": counts.done,
        "images_failed": counts.failed,
    })
}

fn counts(job: &v1::Job) -> v1::ImageCounts {
    job.image_counts.unwrap_or_default()
}

fn image(image: &v1::Image) -> Value {
    json!({
        "image": image.index,
        "state": name(image.state()),
        "step": image.step,
        "epoch": image.epoch,
        "workers": image.workers,
        "sha256": image.artifact.as_ref().map(|artifact| &artifact.sha256),
        "message": image.message,
    })
}

pub(super) fn event(event: &v1::WatchJobResponse) -> Value {
    let of = event.image.clone().unwrap_or_default();
    json!({
        "revision": event.revision,
        "job": event.job,
        "job_state": name(event.job_state()),
        "image": of.index,
        "state": name(of.state()),
        "step": of.step,
        "steps": event.steps,
        "epoch": of.epoch,
        "workers": of.workers,
        "sha256": of.artifact.as_ref().map(|artifact| &artifact.sha256),
        "message": of.message,
    })
}

pub(super) fn event_line(event: &v1::WatchJobResponse) -> String {
    let of = event.image.clone().unwrap_or_default();
    let mut line =
        format!("{} image {} {} step {}/{}", event.revision, of.index, name(of.state()), of.step, event.steps);
    if !of.workers.is_empty() {
        line += &format!(" epoch {} on {}", of.epoch, of.workers.join(", "));
    }
    if !of.message.is_empty() {
        line += &format!(": {}", of.message);
    }
    printable(&line)
}

/// One line for a job.
pub(super) fn line(job: &v1::Job) -> String {
    let spec = job.spec.clone().unwrap_or_default();
    let prompt: String = spec.prompt.chars().take(60).collect();
    let (state, v1::ImageCounts { done, total, .. }) = (name(job.state()), counts(job));
    printable(&format!("{} {state} {done}/{total} {}x{} {prompt}", job.id, spec.width_px, spec.height_px))
}

/// What is said of an image while one waits for its job.
pub(super) fn image_note(image: &v1::Image) -> String {
    printable(&format!("image {}: {}", image.index, image.message))
}

/// One line for an image of a job.
pub(super) fn image_line(job: &v1::Job, image: &v1::Image) -> String {
    let steps = job.spec.as_ref().map_or(0, |spec| spec.steps);
    event_line(&v1::WatchJobResponse {
        revision: job.revision,
        job: job.id.clone(),
        image: Some(image.clone()),
        steps,
        job_state: job.state,
    })
}
