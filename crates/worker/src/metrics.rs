//! What Prometheus sees of a process's workers: steps, waits, bytes between ranks.
//!
//! Leaves out what jobs come to; that is the coordinator's.

use std::sync::Arc;

use fabric::grpc::{Counters, Port};
use plan::ImageSize;
use prometheus::core::Collector;
use prometheus::{Counter, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::watch;
use wire::v1::session_request::Message as Report;

/// Metrics of all workers of a process; clones share them.
#[derive(Clone)]
pub struct Metrics {
    step_duration: HistogramVec,
    compute: Counter,
    wait: Counter,
    strange: IntCounter,
    corrupt: IntCounter,
    resent: IntCounter,
    fenced: IntCounter,
    transfer: IntCounterVec,
    stuck: IntGauge,
    n_joined: Arc<watch::Sender<usize>>,
}

impl Metrics {
    /// Metrics of `registry`.
    ///
    /// # Errors
    /// If two metrics have one name, which is a defect.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let steps = HistogramOpts::new(
            "fresco_step_duration_seconds",
            "How long a rank took over a step, by the side of a square picture that is as large or larger.",
        );
        let steps = steps.buckets(vec![0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]);
        let transfer = Opts::new("fresco_transfer_bytes_total", "Bytes of tensors between ranks of two processes.");
        let metrics = Self {
            step_duration: put(registry, HistogramVec::new(steps, &["resolution"]))?,
            compute: put(registry, Counter::new("fresco_compute_seconds_total", "Time that ranks computed steps."))?,
            wait: put(
                registry,
                Counter::new("fresco_exchange_wait_seconds_total", "Time that ranks waited for each other's tensors."),
            )?,
            strange: put(
                registry,
                IntCounter::new(
                    "fresco_transfer_strange_total",
                    "Messages dropped because their stream had not shown the secret of the attempt.",
                ),
            )?,
            corrupt: put(
                registry,
                IntCounter::new("fresco_transfer_corrupt_total", "Messages that did not match their checksum."),
            )?,
            resent: put(registry, IntCounter::new("fresco_transfer_resent_total", "Messages sent once more."))?,
            fenced: put(
                registry,
                IntCounter::new("fresco_transfer_fenced_total", "Tensors of an epoch that is over, dropped."),
            )?,
            transfer: put(registry, IntCounterVec::new(transfer, &["direction"]))?,
            stuck: put(
                registry,
                IntGauge::new(
                    "fresco_stuck_ranks",
                    "Ranks whose threads have not ended though their parts were dropped: their workers take no work.",
                ),
            )?,
            n_joined: Arc::new(watch::Sender::new(0)),
        };
        for direction in ["sent", "received"] {
            metrics.transfer.with_label_values(&[direction]);
        }
        Ok(metrics)
    }

    /// How many workers of this process are in a farm: ready are those.
    pub fn n_joined(&self) -> watch::Receiver<usize> {
        self.n_joined.subscribe()
    }

    /// Brings up to date what `port` counts.
    pub fn refresh(&self, port: &Port) {
        let Counters { old_epoch, strange, corrupt, resent, sent_bytes, received_bytes, .. } = port.counters();
        let level = |counter: &IntCounter, now: u64| counter.inc_by(now.saturating_sub(counter.get()));
        level(&self.fenced, old_epoch);
        level(&self.strange, strange);
        level(&self.corrupt, corrupt);
        level(&self.resent, resent);
        level(&self.transfer.with_label_values(&["sent"]), sent_bytes);
        level(&self.transfer.with_label_values(&["received"]), received_bytes);
    }

    pub(crate) fn joined(&self) {
        self.n_joined.send_modify(|n| *n += 1);
    }

    pub(crate) fn left(&self) {
        self.n_joined.send_modify(|n| *n = n.saturating_sub(1));
    }

    /// So many more ranks than before are stuck.
    pub(crate) fn stuck(&self, n_more: i64) {
        self.stuck.add(n_more);
    }

    /// Counts what a worker reports of an image of this size.
    pub(crate) fn reported(&self, report: &Report, size: Option<ImageSize>) {
        let (Report::StepTaken(taken), Some(size)) = (report, size) else { return };
        let (compute_s, wait_s) = (taken.compute_ms.max(0.0) / 1e3, taken.wait_ms.max(0.0) / 1e3);
        self.compute.inc_by(compute_s);
        self.wait.inc_by(wait_s);
        self.step_duration.with_label_values(&[&side(size)]).observe(compute_s + wait_s);
    }
}

fn put<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> prometheus::Result<M> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// A few classes of size: a label must not have as many values as users have ideas.
fn side(size: ImageSize) -> String {
    let n_pixels = u64::from(size.width_px) * u64::from(size.height_px);
    let side = [256u64, 512, 1024, 2048].into_iter().find(|side| side * side >= n_pixels);
    side.unwrap_or(4096).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_size_is_of_one_of_five_classes() {
        let class = |width, height| side(ImageSize::new(width, height).expect("multiples of 16"));
        assert_eq!(class(256, 256), "256");
        assert_eq!(class(272, 256), "512");
        assert_eq!(class(1280, 720), "1024");
        assert_eq!(class(4096, 4096), "4096");
    }
}
