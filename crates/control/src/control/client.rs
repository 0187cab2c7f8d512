//! What clients ask: new jobs, an end to one, another try, and to forget one.

use std::collections::BTreeSet;

use plan::{ImageId, JobId};

use super::Control;
use crate::input::JobSpec;
use crate::job::{Image, Job, Phase};
use crate::output::{ControlError, Output, Record};

impl Control {
    pub(super) fn submit(&mut self, id: JobId, request_id: String, spec: JobSpec) -> Result<JobId, ControlError> {
        // An id that is known came twice; it must not take the place of an accepted job.
        let by_id = self.jobs.get(&id).map(|job| &job.id);
        if let Some(known) = self.by_request.get(&request_id).or(by_id) {
            let same = self.jobs.get(known).is_some_and(|job| job.spec == spec);
            let job = known.clone();
            return if same { Ok(job) } else { Err(ControlError::AlreadyExists { request_id, job }) };
        }
        let limit = self.config.most_images_per_job;
        if spec.count == 0 || spec.count > limit {
            return Err(ControlError::Count { count: spec.count, limit });
        }
        self.room_for(spec.count as usize)?;
        let number = self.next_number;
        self.next_number += 1;
        let record = Record::Job { id: id.clone(), request_id: request_id.clone(), number, spec: spec.clone() };
        self.put(Output::Persist(Box::new(record)));
        self.take_in(Job::new(id.clone(), number, request_id, spec));
        self.say_what_job_waits_for(&id);
        Ok(id)
    }

    pub(super) fn cancel(&mut self, job: JobId) -> Result<JobId, ControlError> {
        let open = self.images_of(&job, Image::is_open)?;
        if open.is_empty() {
            return Err(ControlError::IsOver { job });
        }
        for image in open {
            if let Some(epoch) = self.image(&image).and_then(|image| image.epoch) {
                self.end(epoch, None);
            }
            self.change(&image, |image| {
                (image.phase, image.epoch) = (Phase::Cancelled, None);
                image.message.clear();
            });
            self.put(Output::DropCheckpoint { image });
        }
        Ok(job)
    }

    pub(super) fn retry(&mut self, job: JobId) -> Result<JobId, ControlError> {
        let over = self.images_of(&job, |image| matches!(image.phase, Phase::Failed | Phase::Cancelled))?;
        if over.is_empty() {
            return Err(ControlError::NothingToRetry { job });
        }
        self.room_for(over.len())?;
        for image in over {
            self.change(&image, |image| *image = Image::new());
        }
        Ok(job)
    }

    pub(super) fn delete(&mut self, job: JobId) -> Result<JobId, ControlError> {
        if !self.images_of(&job, Image::is_open)?.is_empty() {
            return Err(ControlError::NotOver { job });
        }
        self.forget(&job);
        Ok(job)
    }

    /// Forgets the oldest jobs that are over, if there are more than are to be kept.
    pub(super) fn forget_oldest(&mut self) {
        let Some(most) = self.config.most_jobs_over else { return };
        while self.over.len() > most {
            let Some((_, job)) = self.over.first().cloned() else { return };
            self.forget(&job);
        }
    }

    /// Forgets a job that is over. A picture goes with it unless it is another job's, too: equal wishes give equal bytes.
    fn forget(&mut self, id: &JobId) {
        let Some(job) = self.jobs.remove(id) else { return };
        self.over.remove(&(job.number, id.clone()));
        if self.by_request.get(&job.request_id) == Some(id) {
            self.by_request.remove(&job.request_id);
        }
        for (image, _) in job.image_ids().filter(|(_, image)| image.artifact.is_none()) {
            self.put(Output::DropCheckpoint { image });
        }
        let sha256_of = |image: &Image| image.artifact.as_ref().map(|artifact| artifact.sha256.clone());
        let mut artifacts: BTreeSet<String> = job.images.iter().filter_map(sha256_of).collect();
        if !artifacts.is_empty() {
            for sha256 in self.jobs.values().flat_map(|job| &job.images).filter_map(sha256_of) {
                artifacts.remove(&sha256);
            }
        }
        let artifacts = artifacts.into_iter().collect();
        self.put(Output::Forget { job: job.id, n_images: job.spec.count, artifacts });
    }

    fn room_for(&self, n_images: usize) -> Result<(), ControlError> {
        let (queued, limit) = (self.n_open, self.config.most_images);
        if queued + n_images > limit { Err(ControlError::QueueFull { queued, limit }) } else { Ok(()) }
    }

    fn images_of(&self, job: &JobId, is_wanted: impl Fn(&Image) -> bool) -> Result<Vec<ImageId>, ControlError> {
        let known = self.jobs.get(job).ok_or_else(|| ControlError::NotFound { job: job.clone() })?;
        Ok(known.image_ids().filter(|(_, image)| is_wanted(image)).map(|(id, _)| id).collect())
    }
}
