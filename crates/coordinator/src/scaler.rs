//! KEDA's external scaler: how many workers the open work is worth.
//!
//! The metric is open work in seconds of one worker; the target is how much of it one worker is to have. The answers
//! come from the state machine alone, so every client gets the same. Leaves out who is scaled: a trigger names the
//! models its workers offer, and gets the work on these.

use std::pin::Pin;
use std::time::Duration;

use control::Demand;
use futures_util::{Stream, StreamExt, stream};
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::wrappers::IntervalStream;
use tonic::{Request, Response, Status};
use wire::externalscaler::external_scaler_server::ExternalScaler;
use wire::externalscaler::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};

use crate::driver::{Desk, Unanswered};

/// The metric's name.
pub(crate) const METRIC: &str = "fresco_outstanding_seconds";
/// Open work one worker is to have, unless the trigger says otherwise.
const TARGET_S: f64 = 60.0;
/// How soon new work is noticed.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Serves KEDA.
pub(crate) struct Scaler {
    desk: Desk,
}

impl Scaler {
    pub(crate) fn new(desk: Desk) -> Self {
        Self { desk }
    }
}

/// What a trigger's metadata asks for.
struct Wish {
    /// Names of models; all if there are none.
    models: Vec<String>,
    /// Of one worker.
    target_s: f64,
    /// What KEDA adds and takes away is so many workers.
    workers_per_replica: f64,
}

impl Wish {
    /// What makes no sense is answered as if it were not there: an error here would keep KEDA from scaling at all.
    fn of(asking: &ScaledObjectRef) -> Self {
        let text =
            |name: &str| asking.scaler_metadata.get(name).map(|text| text.trim()).filter(|text| !text.is_empty());
        let names = text("models").unwrap_or_default().split(',').map(str::trim).filter(|name| !name.is_empty());
        let target = text("targetSeconds").map(|text| (text, text.parse().ok()));
        let target_s = match target {
            Some((_, Some(seconds))) if f64::is_finite(seconds) && seconds > 0.0 => seconds,
            Some((text, _)) => {
                let (name, namespace) = (&asking.name, &asking.namespace);
                tracing::warn!(
                    name,
                    namespace,
                    text,
                    "targetSeconds of a trigger is no number above 0: {TARGET_S} it is"
                );
                TARGET_S
            }
            None => TARGET_S,
        };
        let workers = text("workersPerReplica").and_then(|text| text.parse::<u16>().ok()).unwrap_or(1).max(1);
        Self { models: names.map(str::to_owned).collect(), target_s, workers_per_replica: workers.into() }
    }

    fn spec(&self) -> GetMetricSpecResponse {
        let target_s = self.target_s * self.workers_per_replica;
        let whole = target_s.ceil() as i64;
        let spec = MetricSpec { metric_name: METRIC.into(), target_size: whole, target_size_float: target_s };
        GetMetricSpecResponse { metric_specs: vec![spec] }
    }

    async fn demand(self, desk: &Desk) -> Result<Demand, Unanswered> {
        desk.ask(move |control| {
            control.demand(|model| self.models.is_empty() || self.models.iter().any(|name| name == model))
        })
        .await
    }
}

fn is_active(demand: &Demand) -> bool {
    demand.n_queued + demand.n_running > 0
}

#[tonic::async_trait]
impl ExternalScaler for Scaler {
    type StreamIsActiveStream = Answers<IsActiveResponse>;
    type StreamMetricSpecStream = Answers<GetMetricSpecResponse>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let demand = Wish::of(request.get_ref()).demand(&self.desk).await?;
        Ok(Response::new(IsActiveResponse { result: is_active(&demand) }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let (desk, asking) = (self.desk.clone(), request.into_inner());
        let mut ticks = interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let looked = IntervalStream::new(ticks).then(move |_| {
            let (desk, wish) = (desk.clone(), Wish::of(&asking));
            async move { Ok(is_active(&wish.demand(&desk).await?)) }
        });
        // Only changes are told, the first look included.
        let changes = looked.scan(None, |last: &mut Option<bool>, looked: Result<bool, Unanswered>| {
            let told = match &looked {
                Ok(now) if *last == Some(*now) => None,
                Ok(now) => {
                    *last = Some(*now);
                    Some(Ok(IsActiveResponse { result: *now }))
                }
                Err(_) => Some(looked.map(|result| IsActiveResponse { result }).map_err(Status::from)),
            };
            std::future::ready(Some(told))
        });
        Ok(Response::new(Box::pin(changes.filter_map(std::future::ready))))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        Ok(Response::new(Wish::of(request.get_ref()).spec()))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let request = request.into_inner();
        if request.metric_name != METRIC {
            let message = format!("metric `{}` is not known: it is {METRIC}", request.metric_name);
            return Err(Status::invalid_argument(message));
        }
        let wish = Wish::of(&request.scaled_object_ref.unwrap_or_default());
        let target_s = wish.target_s;
        let value_s = wish.demand(&self.desk).await?.value_s(target_s);
        let value = MetricValue {
            metric_name: METRIC.into(),
            metric_value: value_s.ceil() as i64,
            metric_value_float: value_s,
        };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }

    async fn stream_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamMetricSpecStream>, Status> {
        // It never changes: a trigger that does is another stream.
        let spec = Wish::of(request.get_ref()).spec();
        Ok(Response::new(Box::pin(stream::once(async { Ok(spec) }).chain(stream::pending()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(entries: &[(&str, &str)]) -> Wish {
        let scaler_metadata = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Wish::of(&ScaledObjectRef { name: "gpu".into(), namespace: "farm".into(), scaler_metadata })
    }

    #[test]
    fn a_trigger_names_its_target_and_models() {
        let wish = wish(&[("targetSeconds", "30"), ("models", "xl, demo,")]);
        assert_eq!((wish.target_s, wish.models.as_slice()), (30.0, ["xl".to_owned(), "demo".to_owned()].as_slice()));
        assert_eq!(wish.spec().metric_specs[0].target_size_float, 30.0);
    }

    #[test]
    fn a_group_of_workers_is_to_have_the_work_of_them_all() {
        let group = wish(&[("targetSeconds", "30"), ("workersPerReplica", "4")]);
        assert_eq!((group.target_s, group.spec().metric_specs[0].target_size_float), (30.0, 120.0));
        for text in ["0", "-1", "many", ""] {
            let lone = wish(&[("targetSeconds", "30"), ("workersPerReplica", text)]);
            assert_eq!(lone.spec().metric_specs[0].target_size_float, 30.0, "{text}");
        }
    }

    #[test]
    fn a_target_that_makes_no_sense_does_not_keep_keda_from_scaling() {
        for text in ["", "soon", "0", "-5", "NaN", "inf"] {
            assert_eq!(wish(&[("targetSeconds", text)]).target_s, TARGET_S, "{text}");
        }
        assert_eq!(wish(&[]).spec().metric_specs[0].target_size, 60);
    }
}
