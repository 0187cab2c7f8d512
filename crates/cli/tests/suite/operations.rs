//! A farm as Kubernetes sees it: scaled by KEDA's calls, scraped by Prometheus, probed, drained by a hook.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::externalscaler::external_scaler_client::ExternalScalerClient;
use wire::externalscaler::{GetMetricsRequest, ScaledObjectRef};

use crate::desk::{Desk, FRESCO, Run};

const PICTURE: [&str; 5] = ["a calm sea at dawn", "--size", "192x256", "--steps", "8"];

/// A role that runs until the test is over.
struct Role {
    process: Child,
    /// What it said at its start: where it listens.
    addresses: Vec<String>,
}

impl Role {
    /// Starts a role and reads its first `n_addresses` lines, each of which has an address.
    fn start(mut command: Command, n_addresses: usize) -> Self {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
        let mut said = BufReader::new(process.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
        let mut starts = said.by_ref().filter(|line| !line.contains(" INFO "));
        let address = |line: String| {
            let from = line.find("127.0.0.1:").unwrap_or_else(|| panic!("no address: {line}"));
            line[from..].split(['/', ',', ' ']).next().unwrap_or_default().to_owned()
        };
        let addresses: Vec<String> = starts.by_ref().take(n_addresses).map(address).collect();
        assert_eq!(addresses.len(), n_addresses, "it ended early");
        std::thread::spawn(move || said.for_each(drop));
        Self { process, addresses }
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.process.id().to_string()]).status();
        assert!(sent.expect("kill is there").success());
    }

    fn wait(mut self) -> Option<i32> {
        self.process.wait().expect("it was started here").code()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

struct Farm {
    desk: Desk,
    coordinator: Role,
}

impl Farm {
    fn start() -> Self {
        let desk = Desk::new();
        let coordinator = Self::coordinator(&desk, "127.0.0.1:0");
        Self { desk, coordinator }
    }

    fn coordinator(desk: &Desk, listen: &str) -> Role {
        let args = ["coordinator", "--listen", listen, "--status", "127.0.0.1:0", "--lease-ttl-ms", "1000"];
        Role::start(desk.command(FRESCO, &args), 2)
    }

    fn url(&self) -> String {
        format!("http://{}", self.coordinator.addresses[0])
    }

    fn worker(&self, name: &str) -> Role {
        let args = ["worker", "--coordinator", &self.url(), "--name", name, "--threads", "1"];
        Role::start(self.desk.command(FRESCO, &[&args[..], &["--status", "127.0.0.1:0"]].concat()), 1)
    }

    fn call(&self, args: &[&str]) -> Run {
        self.desk.fresco(&[args, &["--coordinator", &self.url()]].concat())
    }

    fn submit(&self, seed: u64, count: &str) -> String {
        let seed = seed.to_string();
        let run = self.call(&[&["submit"], &PICTURE[..], &["--seed", &seed, "--count", count]].concat()).quiet();
        run.stdout.trim().to_owned()
    }

    /// Waits for an event of a job that `wanted` accepts.
    fn until(&self, job: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let mut command = self.desk.command(FRESCO, &["watch", job, "--json", "--coordinator", &self.url()]);
        let mut watch = command.stdout(Stdio::piped()).spawn().expect("it can be started");
        let lines = BufReader::new(watch.stdout.take().expect("it is piped")).lines();
        let found = lines.map_while(Result::ok).any(|line| wanted(&serde_json::from_str(&line).expect("it is JSON")));
        drop(watch.kill());
        drop(watch.wait());
        assert!(found, "job {job} was over before");
    }

    fn metrics(&self) -> Scrape {
        Scrape::of(&self.coordinator.addresses[1])
    }
}

/// The code that a probe over HTTP is answered with.
fn code_of(address: &str, path: &str) -> u16 {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{path}: {text}"))
}

/// What Prometheus reads.
struct Scrape(String);

impl Scrape {
    fn of(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        Self(text)
    }

    /// The value of a series, named with its labels.
    fn value(&self, series: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {series} in:\n{}", self.0))
    }
}

/// KEDA's side: what it asks, and what the autoscaler makes of the answers.
struct Keda {
    calls: ExternalScalerClient<Channel>,
    asking: ScaledObjectRef,
    n_replicas: u64,
}

impl Keda {
    async fn connect(url: &str) -> Self {
        let calls = ExternalScalerClient::connect(url.to_owned()).await.expect("it listens");
        let metadata = [("targetSeconds", "60"), ("models", "demo")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let asking = ScaledObjectRef {
            name: "workers".into(),
            namespace: "farm".into(),
            scaler_metadata: metadata.into_iter().collect(),
        };
        Self { calls, asking, n_replicas: 0 }
    }

    /// One poll: whether there is work, and the share of the autoscaler: the sum over the target, rounded up. An
    /// outage leaves things as they are (`fallback: currentReplicasIfHigher`).
    async fn poll(&mut self) -> u64 {
        if let Ok(wanted) = self.wanted().await {
            self.n_replicas = wanted;
        }
        self.n_replicas
    }

    async fn wanted(&mut self) -> Result<u64, tonic::Status> {
        let spec = self.calls.get_metric_spec(self.asking.clone()).await?.into_inner().metric_specs.remove(0);
        let question =
            GetMetricsRequest { scaled_object_ref: Some(self.asking.clone()), metric_name: spec.metric_name };
        let value = self.calls.get_metrics(question).await?.into_inner().metric_values.remove(0);
        let is_active = self.calls.is_active(self.asking.clone()).await?.into_inner().result;
        assert_eq!(value.metric_value, value.metric_value_float.ceil() as i64, "old versions of KEDA read this one");
        Ok(if is_active { (value.metric_value_float / spec.target_size_float).ceil().max(1.0) as u64 } else { 0 })
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can be started")
}

#[test]
fn keda_scales_from_zero_to_what_the_queue_is_worth_and_back_and_an_outage_changes_nothing() {
    let mut farm = Farm::start();
    let runtime = runtime();
    let mut keda = runtime.block_on(Keda::connect(&farm.url()));
    let mut other = runtime.block_on(Keda::connect(&farm.url()));
    assert_eq!(runtime.block_on(keda.poll()), 0);

    let mut pushed =
        runtime.block_on(keda.calls.stream_is_active(keda.asking.clone())).expect("it is served").into_inner();
    let first = runtime.block_on(pushed.message()).expect("it is told").expect("at once");
    assert!(!first.result);
    let job = farm.submit(1, "5");
    let second = runtime.block_on(pushed.message()).expect("it is told").expect("when work arrives");
    assert!(second.result);
    // Nothing was measured yet: a minute an image is assumed.
    assert_eq!((runtime.block_on(keda.poll()), runtime.block_on(other.poll())), (5, 5));

    let told = runtime.block_on(keda.calls.get_metric_spec(keda.asking.clone())).expect("it is served").into_inner();
    let mut streamed =
        runtime.block_on(keda.calls.stream_metric_spec(keda.asking.clone())).expect("is served").into_inner();
    assert_eq!(runtime.block_on(streamed.message()).expect("it is told").expect("at once"), told);

    // Another model's pool has nothing to do.
    other.asking.scaler_metadata.insert("models".into(), "another".into());
    assert_eq!(runtime.block_on(other.poll()), 0);

    drop((pushed, streamed));
    let (address, listen) = (farm.url(), farm.coordinator.addresses[0].clone());
    drop(std::mem::replace(&mut farm.coordinator, Role::start(Command::new("true"), 0)));
    assert_eq!(runtime.block_on(keda.poll()), 5, "an outage scales nothing in");
    farm.coordinator = Farm::coordinator(&farm.desk, &listen);
    let mut keda = runtime.block_on(Keda::connect(&address));
    assert_eq!(runtime.block_on(keda.poll()), 5, "a coordinator that comes back says the same");

    let _worker = farm.worker("a");
    farm.until(&job, |event| event["image"] == 1 && event["step"].as_u64() >= Some(2));
    let busy = runtime.block_on(keda.poll());
    assert!((1..=4).contains(&busy), "{busy}: measured, and never less than what is being made");
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    assert_eq!(runtime.block_on(keda.poll()), 0);
}

#[test]
fn prometheus_and_probes_see_a_picture_being_made() {
    let farm = Farm::start();
    let worker = farm.worker("a");
    let job = farm.submit(2, "2");
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    let seen = farm.metrics();
    assert_eq!(seen.value(r#"fresco_images_total{outcome="done"}"#), 2.0);
    assert_eq!(seen.value(r#"fresco_jobs_total{outcome="done"}"#), 1.0);
    assert_eq!(seen.value("fresco_steps_total"), 16.0);
    assert_eq!(seen.value(r#"fresco_workers{state="idle"}"#), 1.0);
    assert_eq!(seen.value(r#"fresco_outstanding_seconds{model="demo"}"#), 0.0);
    assert_eq!(seen.value(r#"fresco_image_duration_seconds_count{stage="whole"}"#), 2.0);
    assert!(seen.value("fresco_checkpoint_bytes_total") > 0.0);
    let of_worker = Scrape::of(&worker.addresses[0]);
    assert_eq!(of_worker.value(r#"fresco_step_duration_seconds_count{resolution="256"}"#), 16.0);
    assert!(of_worker.value("fresco_compute_seconds_total") > 0.0);

    let check = async |address: &str, service: &str| {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let mut health = HealthClient::new(endpoint.connect().await.expect("it listens"));
        let answer = health.check(HealthCheckRequest { service: service.into() }).await;
        answer.expect("the service is known").into_inner().status().as_str_name()
    };
    runtime().block_on(async {
        for address in farm.coordinator.addresses.iter().chain(&worker.addresses) {
            assert_eq!(check(address, "liveness").await, "SERVING", "{address}");
            assert_eq!(check(address, "").await, "SERVING", "{address}");
        }
        let lonely = ["worker", "--coordinator", "http://127.0.0.1:9", "--status", "127.0.0.1:0"];
        let lonely = Role::start(farm.desk.command(FRESCO, &lonely), 1);
        for (address, ready) in
            [(&farm.coordinator.addresses[1], 200), (&worker.addresses[0], 200), (&lonely.addresses[0], 503)]
        {
            let codes = ["/livez", "/healthz", "/readyz", "/", "/ready"].map(|path| code_of(address, path));
            assert_eq!(codes, [200, 200, ready, 404, 404], "{address}");
        }
        assert_eq!(check(&lonely.addresses[0], "liveness").await, "SERVING");
        assert_eq!(check(&lonely.addresses[0], "").await, "NOT_SERVING", "it has no farm yet");
    });
}

#[test]
fn workers_told_to_end_one_after_the_other_cost_a_batch_no_step() {
    let farm = Farm::start();
    let mut workers = vec![farm.worker("w0"), farm.worker("w1")];
    let job = farm.submit(3, "3");
    for (image, name) in [(0, "w2"), (1, "w3")] {
        farm.until(&job, |event| event["image"] == image && event["step"].as_u64() >= Some(2));
        // The new one first, as a Deployment's rolling update does it.
        workers.push(farm.worker(name));
        let leaving = workers.remove(0);
        leaving.signal("-TERM");
        assert_eq!(leaving.wait(), Some(0));
    }
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    let seen = farm.metrics();
    for cause in ["lost", "failed"] {
        assert_eq!(seen.value(&format!(r#"fresco_steps_repeated_total{{cause="{cause}"}}"#)), 0.0);
    }
    assert_eq!(seen.value("fresco_steps_total"), 24.0);
    farm.call(&["download", &job, "--out", "farm.png"]).quiet();
    for seed in ["3", "4", "5"] {
        let alone = [&["render"], &PICTURE[..], &["--seed", seed, "--out", "alone.png", "--force"]].concat();
        farm.desk.fresco(&alone).quiet();
        let shared = farm.desk.read(&format!("farm-{seed}.png"));
        assert!(shared == farm.desk.read("alone.png"), "seed {seed}: other bytes");
    }
}

#[test]
fn a_worker_is_drained_from_outside_and_asking_again_is_no_error() {
    let farm = Farm::start();
    let leaving = farm.worker("leaving");
    let _staying = farm.worker("staying");
    let job = farm.submit(4, "1");
    farm.until(&job, |event| event["step"].as_u64() >= Some(2));
    let drained = farm.call(&["worker", "drain", "leaving", "--wait"]);
    assert_eq!(drained.code, Some(0), "{}", drained.stderr);
    assert!(drained.stderr.contains("has handed over and left"), "{}", drained.stderr);
    assert_eq!(leaving.wait(), Some(0));
    let again = farm.call(&["worker", "drain", "leaving", "--wait"]);
    assert!(again.code == Some(0) && again.stderr.contains("is not in this farm"), "{}", again.stderr);
    assert_eq!(farm.call(&["wait", &job]).code, Some(0));
    assert_eq!(farm.metrics().value("fresco_steps_total"), 8.0);
}

#[test]
fn a_farm_in_one_process_says_when_its_own_workers_have_left() {
    let desk = Desk::new();
    let args = ["serve", "--listen", "127.0.0.1:0", "--workers", "2", "--threads", "1"];
    let mut serve = desk.command(FRESCO, &args).stderr(Stdio::piped()).spawn().expect("it can be started");
    let mut said = BufReader::new(serve.stderr.take().expect("it is piped")).lines().map_while(Result::ok);
    let line = said.find(|line| line.contains("serving on")).expect("it says where");
    let url = line.split(',').next().and_then(|line| line.split(' ').next_back()).expect("an address");
    for worker in ["local-1", "local-2"] {
        // It may not have joined yet.
        while !desk
            .fresco(&["worker", "drain", worker, "--wait", "--coordinator", url])
            .stderr
            .contains("has handed over")
        {
            std::thread::yield_now();
        }
        assert!(said.by_ref().any(|line| line.contains(worker) && line.contains("left")));
    }
    assert!(said.by_ref().any(|line| line.contains("no worker of this process is left")));
    desk.fresco(&["list", "--coordinator", url, "--json"]).quiet();
    drop(serve.kill());
    drop(serve.wait());
}

#[test]
fn a_model_that_is_not_the_one_expected_is_said_before_a_worker_starts() {
    let desk = Desk::new();
    let sound = desk.fresco(&["model", "verify", "demo"]).quiet();
    let sha256 = sound.stdout.lines().last().and_then(|line| line.strip_prefix("sha256 ")).expect("it is printed");
    desk.fresco(&["model", "verify", "demo", "--sha256", sha256]).quiet();
    let other = "0".repeat(64);
    desk.fresco(&["model", "verify", "demo", "--sha256", &other]).refused(1, &[&other, "fetch it again"]);
}
