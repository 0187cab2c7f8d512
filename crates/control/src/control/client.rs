//! What clients ask: new jobs, an end to one, another try, and to forget one.

use plan::{ImageId, JobId};

use super::{Control, release};
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
        let Some(forgotten) = self.jobs.remove(&job) else { return Err(ControlError::NotFound { job }) };
        if self.by_request.get(&forgotten.request_id) == Some(&job) {
            self.by_request.remove(&forgotten.request_id);
        }
        self.by_number.remove(&forgotten.number);
        let pictures = forgotten.images.into_iter().filter_map(|image| Some(image.artifact?.sha256));
        let artifacts = pictures.filter(|sha256| release(&mut self.pictures, sha256)).collect();
        self.put(Output::Forget { job: job.clone(), n_images: forgotten.spec.count, artifacts });
        Ok(job)
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
