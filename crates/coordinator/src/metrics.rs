//! What Prometheus sees of a farm: jobs and images as they change, members and open work as they are when it asks.
//!
//! Leaves out what only workers know: steps' lengths and bytes are theirs.

use std::collections::BTreeMap;
use std::time::Duration;

use control::{Control, Counters, Demand, Event, MemberState, Output, Phase, Record};
use plan::{ImageId, ImageIdx, WorkerId};
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use tokio::time::Instant;

/// Seconds of waits and pictures: from a demo's to a 4096² one on few cores.
const SECONDS: [f64; 14] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 7200.0, 21600.0];

/// The metrics of a coordinator; clones share them.
#[derive(Clone)]
pub(crate) struct Metrics {
    jobs: IntGaugeVec,
    jobs_over: IntCounterVec,
    images: IntGaugeVec,
    images_over: IntCounterVec,
    queue_wait: Histogram,
    image_duration: HistogramVec,
    steps: IntCounter,
    steps_repeated: IntCounterVec,
    workers: IntGaugeVec,
    heartbeat_age: GaugeVec,
    outstanding: GaugeVec,
    leases_ended: IntCounter,
    quarantines: IntCounter,
    stalled: IntCounter,
    fenced: IntCounter,
    refused: IntCounter,
    strangers: IntCounter,
    nonfinite: IntCounter,
    checkpoint_bytes: IntCounter,
    artifact_put: Histogram,
    artifact_refused: IntCounter,
    leads: IntGauge,
}

/// Registers a metric and gives it.
fn put<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    /// Metrics of `registry`.
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name, help| put(registry, IntCounter::new(name, help));
        let counters = |name, help, label| put(registry, IntCounterVec::new(Opts::new(name, help), &[label]));
        let gauges = |name, help, label| put(registry, IntGaugeVec::new(Opts::new(name, help), &[label]));
        let seconds = |name, help| HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let metrics = Self {
            jobs: gauges("fresco_jobs", "Jobs by state.", "state")?,
            jobs_over: counters("fresco_jobs_total", "Jobs that are over, by outcome.", "outcome")?,
            images: gauges("fresco_images", "Images by state.", "state")?,
            images_over: counters("fresco_images_total", "Images that are over, by outcome.", "outcome")?,
            queue_wait: put(
                registry,
                Histogram::with_opts(seconds(
                    "fresco_queue_wait_seconds",
                    "How long images waited for their first worker.",
                )),
            )?,
            image_duration: put(
                registry,
                HistogramVec::new(
                    seconds(
                        "fresco_image_duration_seconds",
                        "How long images took, by stage; whole is from submit to picture.",
                    ),
                    &["stage"],
                ),
            )?,
            steps: counter("fresco_steps_total", "Denoising steps done and kept.")?,
            steps_repeated: counters(
                "fresco_steps_repeated_total",
                "Denoising steps that were under way when their attempt ended, by cause.",
                "cause",
            )?,
            workers: gauges("fresco_workers", "Workers by state.", "state")?,
            heartbeat_age: put(
                registry,
                GaugeVec::new(
                    Opts::new("fresco_worker_heartbeat_age_seconds", "Seconds since a worker last said something."),
                    &["worker"],
                ),
            )?,
            outstanding: put(
                registry,
                GaugeVec::new(
                    Opts::new(super::scaler::METRIC, "Open work in seconds of one worker, by model."),
                    &["model"],
                ),
            )?,
            leases_ended: counter("fresco_lease_lost_total", "Leases that ended without a word.")?,
            quarantines: counter(
                "fresco_worker_quarantines_total",
                "Times a worker was given no work for a while after failures in a row.",
            )?,
            stalled: counter("fresco_stalled_total", "Attempts given up because a rank made no progress.")?,
            fenced: counter("fresco_worker_fenced_total", "Messages of an epoch or session that is over, dropped.")?,
            refused: counter("fresco_worker_refused_total", "Workers that were not let in.")?,
            strangers: counter(
                "fresco_wrong_secret_total",
                "Transfers refused because their sender does not have the seat.",
            )?,
            nonfinite: counter("fresco_nonfinite_total", "Attempts that ended with a value that is not finite.")?,
            checkpoint_bytes: counter("fresco_checkpoint_bytes_total", "Bytes of rows taken in behind steps.")?,
            artifact_put: put(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("fresco_artifact_put_seconds", "How long pictures took to be kept.")
                        .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
                ),
            )?,
            artifact_refused: counter("fresco_artifact_retries_total", "Pictures that could not be kept at once.")?,
            leads: put(registry, IntGauge::new("fresco_leader", "1 if this coordinator leads the farm."))?,
        };
        for outcome in Phase::ALL.into_iter().filter(|phase| phase.is_over()).map(name) {
            metrics.jobs_over.with_label_values(&[outcome]);
            metrics.images_over.with_label_values(&[outcome]);
        }
        for cause in ["lost", "failed"] {
            metrics.steps_repeated.with_label_values(&[cause]);
        }
        metrics.leads.set(1);
        Ok(metrics)
    }

    /// Rows of a checkpoint came in.
    pub(crate) fn rows_kept(&self, n_bytes: u64) {
        self.checkpoint_bytes.inc_by(n_bytes);
    }

    /// Somebody who does not have the seat it speaks for was refused.
    pub(crate) fn stranger_refused(&self) {
        self.strangers.inc();
    }

    #[cfg(test)]
    pub(crate) fn strangers_refused(&self) -> u64 {
        self.strangers.get()
    }

    /// A picture was kept, or not.
    pub(crate) fn picture_kept(&self, took: Duration, is_kept: bool) {
        if is_kept {
            self.artifact_put.observe(took.as_secs_f64());
        } else {
            self.artifact_refused.inc();
        }
    }

    /// Brings up to date what is not counted as it happens.
    pub(crate) fn refresh(&self, seen: &Glance) {
        for (metric, counts) in [(&self.jobs, &seen.jobs), (&self.images, &seen.images)] {
            for phase in Phase::ALL {
                let n = counts.get(&phase).copied().unwrap_or_default();
                metric.with_label_values(&[name(phase)]).set(n as i64);
            }
        }
        for (state, n) in ["idle", "busy", "draining", "quarantined"].into_iter().zip(seen.members) {
            self.workers.with_label_values(&[state]).set(n as i64);
        }
        self.heartbeat_age.reset();
        for (worker, age) in &seen.ages {
            self.heartbeat_age.with_label_values(&[&worker.0]).set(age.as_secs_f64());
        }
        self.outstanding.reset();
        for (model, demand) in &seen.demands {
            let gauge: Gauge = self.outstanding.with_label_values(&[model]);
            gauge.set(demand.outstanding_s);
        }
        let level = |counter: &IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
        let counted = &seen.counters;
        level(&self.fenced, counted.old_epoch + counted.old_session);
        level(&self.refused, counted.refused);
        level(&self.leases_ended, counted.leases_ended);
        level(&self.quarantines, counted.quarantines);
        level(&self.stalled, counted.stalled);
        level(&self.nonfinite, counted.not_finite);
        level(&self.steps_repeated.with_label_values(&["lost"]), counted.cut_by_loss);
        level(&self.steps_repeated.with_label_values(&["failed"]), counted.cut_by_failure);
    }
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Queued => "queued",
        Phase::Running => "running",
        Phase::Done => "done",
        Phase::Failed => "failed",
        Phase::Cancelled => "cancelled",
    }
}

/// A farm at one moment.
pub(crate) struct Glance {
    jobs: BTreeMap<Phase, usize>,
    images: BTreeMap<Phase, usize>,
    /// Idle, busy, draining, in quarantine.
    members: [usize; 4],
    ages: Vec<(WorkerId, Duration)>,
    demands: BTreeMap<String, Demand>,
    counters: Counters,
}

impl Glance {
    pub(crate) fn at(control: &Control) -> Self {
        let (mut jobs, mut images) = (BTreeMap::new(), BTreeMap::new());
        for job in control.jobs() {
            *jobs.entry(job.phase()).or_default() += 1;
            for phase in Phase::ALL {
                *images.entry(phase).or_default() += job.n_in(phase);
            }
        }
        // Clients choose names of models; a label is made of those only that a worker offers.
        let offered = control.models_offered();
        let mut demands: BTreeMap<String, Demand> =
            offered.into_iter().map(|m| (m.to_owned(), Demand::default())).collect();
        for (model, demand) in control.demands() {
            demands.entry(model.to_owned()).and_modify(|of_model| *of_model = demand);
        }
        let views: Vec<_> = control.members().collect();
        let n = |state| views.iter().filter(|view| view.state == state).count();
        let states = [MemberState::Idle, MemberState::Busy, MemberState::Draining, MemberState::Quarantined];
        let members = states.map(n);
        let ages = views.iter().map(|view| (view.worker.clone(), Duration::from_millis(view.silent_ms))).collect();
        Self { jobs, images, members, ages, demands, counters: control.counters() }
    }
}

/// How far each open image has come, and when; for durations.
pub(crate) struct Courses {
    metrics: Metrics,
    courses: BTreeMap<ImageId, Course>,
}

/// Times of one image; those before a restart are not known.
#[derive(Default)]
struct Course {
    submitted: Option<Instant>,
    began: Option<Instant>,
    denoised: Option<Instant>,
    n_steps_done: Option<usize>,
}

impl Courses {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, courses: BTreeMap::new() }
    }

    /// Counts what the state machine said.
    pub(crate) fn heard(&mut self, now: Instant, output: &Output) {
        match output {
            Output::Persist(record) => {
                if let Record::Job { id, spec, .. } = &**record {
                    let images = (0..spec.count).map(|idx| ImageId { job: id.clone(), image: ImageIdx(idx) });
                    let new = || Course { submitted: Some(now), n_steps_done: Some(0), ..Course::default() };
                    self.courses.extend(images.map(|image| (image, new())));
                }
            }
            Output::Event(event) => self.changed(now, event),
            _ => {}
        }
    }

    fn changed(&mut self, now: Instant, event: &Event) {
        let metrics = &self.metrics;
        let seconds = |since: Option<Instant>| since.map(|since| (now - since).as_secs_f64());
        let course = self.courses.entry(event.image.clone()).or_default();
        let before = course.n_steps_done.replace(event.n_steps_done).unwrap_or(event.n_steps_done);
        metrics.steps.inc_by(event.n_steps_done.saturating_sub(before) as u64);
        if event.phase == Phase::Running && course.began.is_none() {
            course.began = Some(now);
            seconds(course.submitted).into_iter().for_each(|waited| metrics.queue_wait.observe(waited));
        }
        let took = |stage: &str, since: Option<Instant>| {
            if let Some(seconds) = seconds(since) {
                metrics.image_duration.with_label_values(&[stage]).observe(seconds);
            }
        };
        if event.n_steps_done >= event.n_steps && course.denoised.is_none() {
            course.denoised = Some(now);
            took("denoise", course.began);
        }
        if event.phase == Phase::Done {
            took("decode", course.denoised);
            took("whole", course.submitted);
        }
        if event.phase.is_over() {
            metrics.images_over.with_label_values(&[name(event.phase)]).inc();
            self.courses.remove(&event.image);
            // The last image's end is the job's.
            if event.job_phase.is_over() {
                metrics.jobs_over.with_label_values(&[name(event.job_phase)]).inc();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use plan::{Epoch, JobId};

    use super::*;

    fn event(phase: Phase, job_phase: Phase, n_steps_done: usize) -> Output {
        Output::Event(Box::new(Event {
            image: ImageId { job: JobId("a".into()), image: ImageIdx(0) },
            revision: 1,
            phase,
            job_phase,
            n_steps_done,
            n_steps: 4,
            epoch: Some(Epoch(1)),
            workers: Vec::new(),
            message: String::new(),
            artifact: None,
        }))
    }

    fn metrics() -> Metrics {
        Metrics::register(&Registry::new()).expect("no name twice")
    }

    #[test]
    fn an_image_is_counted_once_and_its_steps_as_they_are_kept() {
        let metrics = metrics();
        let mut courses = Courses::new(metrics.clone());
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        courses.heard(at(0), &event(Phase::Queued, Phase::Queued, 0));
        courses.heard(at(1), &event(Phase::Running, Phase::Running, 0));
        courses.heard(at(2), &event(Phase::Running, Phase::Running, 1));
        // A worker is lost and the image goes on.
        courses.heard(at(3), &event(Phase::Queued, Phase::Running, 1));
        courses.heard(at(4), &event(Phase::Running, Phase::Running, 1));
        courses.heard(at(5), &event(Phase::Running, Phase::Running, 4));
        courses.heard(at(7), &event(Phase::Done, Phase::Done, 4));
        assert_eq!(metrics.steps.get(), 4);
        assert_eq!(metrics.images_over.with_label_values(&["done"]).get(), 1);
        assert_eq!(metrics.jobs_over.with_label_values(&["done"]).get(), 1);
        assert_eq!(metrics.image_duration.with_label_values(&["denoise"]).get_sample_sum(), 4.0);
        assert_eq!(metrics.image_duration.with_label_values(&["decode"]).get_sample_sum(), 2.0);
        assert!(courses.courses.is_empty(), "nothing is kept of what is over");
    }

    #[test]
    fn steps_from_before_a_restart_are_not_counted_again() {
        let metrics = metrics();
        let mut courses = Courses::new(metrics.clone());
        let now = Instant::now();
        courses.heard(now, &event(Phase::Running, Phase::Running, 2));
        courses.heard(now, &event(Phase::Running, Phase::Running, 3));
        assert_eq!(metrics.steps.get(), 1);
        assert_eq!(metrics.queue_wait.get_sample_count(), 0);
    }
}
