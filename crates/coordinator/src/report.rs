//! What a worker says of itself and its work, checked: what is kept of it is bounded, and what makes no sense is dropped.

use std::net::{IpAddr, SocketAddr};

use control::{ArtifactRef, Hello, Input, Running, SessionId, Work};
use plan::{Epoch, ModelFacts, Rank, WorkerId};
use tonic::{Code, Status};
use wire::v1::session_request::Message as Report;
use wire::{convert, v1};

use crate::status::status;

const LONGEST_NAME_BYTES: usize = 128;
const LONGEST_TEXT_BYTES: usize = 512;
/// Of what went wrong: the rest is in the worker's log.
const LONGEST_MESSAGE_BYTES: usize = 2048;
const MOST_MODELS: usize = 256;

/// Where a session comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    ip: IpAddr,
    /// It is this machine, by whichever of its addresses.
    is_here: bool,
}

impl Origin {
    /// Of a connection between these two.
    pub(crate) fn new(remote: SocketAddr, local: Option<SocketAddr>) -> Self {
        let ip = remote.ip().to_canonical();
        Self { ip, is_here: ip.is_loopback() || local.is_some_and(|local| local.ip().to_canonical() == ip) }
    }
}

/// A worker that joins from the address `from`.
pub(crate) fn hello(mut join: v1::Join, from: Option<Origin>) -> Result<(WorkerId, Hello), Status> {
    let refused = |reason, message, field| status(Code::InvalidArgument, reason, message, Some(field), None);
    let name = join.worker;
    if !is_name(&name) || name.chars().any(char::is_whitespace) {
        let message = format!("worker name {name:?}: use 1 to {LONGEST_NAME_BYTES} characters without white space");
        return Err(refused("WORKER_NAME", message, "worker"));
    }
    let texts = [
        ("version", &join.version),
        ("incarnation", &join.incarnation),
        ("numeric_class", &join.numeric_class),
        ("address", &join.address),
    ];
    if let Some((field, text)) = texts.into_iter().find(|(_, text)| text.len() > LONGEST_TEXT_BYTES) {
        let message = format!("{field} of {} bytes: use at most {LONGEST_TEXT_BYTES}", text.len());
        return Err(refused("TOO_LONG", message, field));
    }
    join.address = reachable(&join.address, from).map_err(|message| refused("ADDRESS", message, "address"))?;
    if join.models.len() > MOST_MODELS {
        let message = format!("{} models: offer at most {MOST_MODELS}", join.models.len());
        return Err(refused("MODEL", message, "models"));
    }
    let models = join.models.iter().map(wire::model_facts::model_facts).collect::<Result<Vec<_>, _>>();
    let models = models.map_err(|error| refused("MODEL", error.to_string(), "models"))?;
    if let Some(message) = models.iter().find_map(why_no_model) {
        return Err(refused("MODEL", message, "models"));
    }
    let running = join.running.and_then(|running| {
        let (epoch, rank) = (Epoch(running.epoch), Rank(u16::try_from(running.rank).ok()?));
        Some(Running { epoch, rank, is_decoding: running.is_decoding })
    });
    let hello = Hello {
        version: join.version,
        incarnation: join.incarnation,
        numeric_class: join.numeric_class,
        models,
        address: join.address,
        flop_per_s: if join.flop_per_s.is_finite() { join.flop_per_s } else { 0.0 },
        memory_bytes: (join.memory_bytes > 0).then_some(join.memory_bytes),
        value_bytes: join.value_bytes.clamp(1, 8).into(),
        running,
    };
    Ok((WorkerId(name), hello))
}

/// Whether a text can be the name of a worker or a model.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn why_no_model(facts: &ModelFacts) -> Option<String> {
    let (name, sha256) = (&facts.id.name, &facts.id.weights_sha256);
    if !is_name(name) {
        let name = cut(name.clone(), LONGEST_NAME_BYTES);
        let way_out = format!("use 1 to {LONGEST_NAME_BYTES} bytes without control characters");
        return Some(format!("model name {name:?}: {way_out}"));
    }
    if !is_sha256(sha256) {
        let sha256 = cut(sha256.clone(), LONGEST_NAME_BYTES);
        return Some(format!("model `{name}` with the sha256 {sha256:?}: it has 64 hexadecimal digits"));
    }
    None
}

/// Where other workers reach one that announces `address`, as far as can be told from here. One that listens at every
/// address of its machine is reached at the one it comes from. Names are for other workers to resolve.
fn reachable(address: &str, from: Option<Origin>) -> Result<String, String> {
    let (scheme, told) = address.split_once("://").map_or(("http", address), |(scheme, told)| (scheme, told));
    let Ok(at) = told.parse::<SocketAddr>() else { return Ok(address.to_owned()) };
    let ip = at.ip().to_canonical();
    match from {
        Some(from) if ip.is_unspecified() => Ok(format!("{scheme}://{}", SocketAddr::new(from.ip, at.port()))),
        None if ip.is_unspecified() => Err(unreachable(told)),
        Some(from) if ip.is_loopback() && !from.is_here => Err(unreachable(told)),
        _ => Ok(address.to_owned()),
    }
}

fn unreachable(told: &str) -> String {
    format!(
        "other workers cannot reach this one at {told}: have it listen where they can with --listen, or name the address \
         it has for them with --advertise"
    )
}

/// At most so many bytes of a text, and a sign that there was more.
pub(crate) fn cut(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        let end = (0..=most_bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A report as the machine hears it; nothing if it means nothing.
pub(crate) fn input_of(report: Report, worker: &WorkerId, session: SessionId) -> Option<Input> {
    let worker = worker.clone();
    Some(match report {
        Report::Join(_) => return None,
        Report::Heartbeat(heartbeat) => {
            let work = |work: v1::Work| Work { epoch: Epoch(work.epoch), progress: work.progress, waits: work.waits };
            Input::Heartbeat { worker, session, work: heartbeat.work.map(work) }
        }
        Report::Leave(_) => Input::Leave { worker, session },
        Report::Drain(_) => Input::Drain { worker, session },
        Report::StepTaken(taken) => {
            let (epoch, rank) = (Epoch(taken.epoch), Rank(u16::try_from(taken.rank).ok()?));
            Input::StepTaken { worker, session, epoch, rank, compute_ms: taken.compute_ms }
        }
        Report::Stopped(stopped) => Input::Stopped { worker, session, epoch: Epoch(stopped.epoch) },
        Report::Decoding(decoding) => Input::Decoding { worker, session, epoch: Epoch(decoding.epoch) },
        Report::Finished(finished) => {
            let artifact = finished.artifact.filter(|artifact| is_sha256(&artifact.sha256))?;
            let kind = convert::artifact_kind(artifact.kind).ok()?;
            let artifact = ArtifactRef { sha256: artifact.sha256, size_bytes: artifact.size_bytes, kind };
            Input::Finished { worker, session, epoch: Epoch(finished.epoch), artifact }
        }
        Report::Failed(failed) => {
            let (cause, epoch) = (convert::cause(failed.cause()), Epoch(failed.epoch));
            let blamed = failed.blamed.and_then(|rank| u16::try_from(rank).ok()).map(Rank);
            let message = cut(failed.message, LONGEST_MESSAGE_BYTES);
            Input::Failed { worker, session, epoch, cause, message, blamed }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(change: impl FnOnce(&mut v1::Join)) -> v1::Join {
        let spec = Some((&plan::ModelSpec::pixart_sigma_xl2()).into());
        let model = v1::ModelFacts { name: "demo".into(), weights_sha256: "ab".repeat(32), spec, digests: None };
        let mut join = v1::Join {
            worker: "a".into(),
            address: "http://10.0.0.7:7480".into(),
            models: vec![model],
            flop_per_s: 1.0,
            ..v1::Join::default()
        };
        change(&mut join);
        join
    }

    fn refusal(change: impl FnOnce(&mut v1::Join), from: &str) -> Option<String> {
        let from = from.parse().expect("an address");
        hello(join(change), Some(Origin::new(from, None))).err().map(|status| status.message().to_owned())
    }

    #[test]
    fn a_worker_that_listens_everywhere_is_reached_where_it_comes_from() {
        let at = |address: &str, from: &str| {
            let from = Origin::new(from.parse().expect("an address"), None);
            hello(join(|join| join.address = address.into()), Some(from)).expect("is let in").1.address
        };
        assert_eq!(at("http://0.0.0.0:7480", "10.0.0.8:4000"), "http://10.0.0.8:7480");
        assert_eq!(at("http://[::]:7480", "[2001:db8::1]:4000"), "http://[2001:db8::1]:7480");
        assert_eq!(at("http://[::]:7480", "[::ffff:10.0.0.8]:4000"), "http://10.0.0.8:7480");
        assert_eq!(at("http://0.0.0.0:7480", "127.0.0.1:4000"), "http://127.0.0.1:7480");
        assert_eq!(at("0.0.0.0:1", "10.0.0.8:4000"), "http://10.0.0.8:1");
        for address in ["http://worker-3.farm:7480", "http://10.0.0.7:7480"] {
            assert_eq!(at(address, "10.0.0.8:4000"), address, "is its own to say");
        }
        let unknown = hello(join(|join| join.address = "http://0.0.0.0:7480".into()), None);
        assert!(unknown.is_err_and(|status| status.message().ends_with("with --advertise")));
    }

    #[test]
    fn a_worker_that_others_cannot_reach_is_told_the_way_out() {
        let at = |address: &str, from: &str| refusal(|join| join.address = address.into(), from);
        let message = at("http://127.0.0.1:7480", "10.0.0.8:4000").expect("that is another machine");
        assert!(message.contains("127.0.0.1:7480") && message.ends_with("with --advertise"), "{message}");
        assert!(at("http://[::1]:7480", "[2001:db8::1]:4000").is_some());
        for from in ["127.0.0.1:4000", "[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
            assert_eq!(at("http://127.0.0.1:7480", from), None, "all on one machine, seen from {from}");
        }
        let [remote, local] = ["10.0.0.8:4000", "10.0.0.8:7400"].map(|at| at.parse().expect("an address"));
        let own = Origin::new(remote, Some(local));
        assert!(
            hello(join(|join| join.address = "http://127.0.0.1:7480".into()), Some(own)).is_ok(),
            "by its LAN address"
        );
    }

    #[test]
    fn a_model_that_is_refused_is_told_what_is_wrong_with_it() {
        let of = |change: fn(&mut v1::ModelFacts)| refusal(|join| change(&mut join.models[0]), "127.0.0.1:4000");
        let message = of(|facts| facts.weights_sha256 = "beef".into()).expect("is no sha256");
        assert_eq!(message, "model `demo` with the sha256 \"beef\": it has 64 hexadecimal digits");
        let message = of(|facts| facts.name = "de\nmo".into()).expect("is no name");
        assert_eq!(message, "model name \"de\\nmo\": use 1 to 128 bytes without control characters");
    }

    #[test]
    fn what_would_be_too_large_to_keep_is_refused() {
        let long = || "x".repeat(LONGEST_TEXT_BYTES + 1);
        let from = "127.0.0.1:4000";
        assert_eq!(refusal(|_| {}, from), None);
        for change in [
            (|join: &mut v1::Join, text| join.worker = text) as fn(&mut v1::Join, String),
            |join, text| join.version = text,
            |join, text| join.incarnation = text,
            |join, text| join.numeric_class = text,
            |join, text| join.address = text,
            |join, text| join.models[0].name = text,
            |join, text| join.models[0].weights_sha256 = text,
        ] {
            assert!(refusal(|join| change(join, long()), from).is_some());
        }
        let many = |join: &mut v1::Join| join.models = vec![join.models[0].clone(); MOST_MODELS + 1];
        assert!(refusal(many, from).is_some());
    }

    #[test]
    fn a_long_complaint_is_cut_between_letters() {
        assert_eq!(cut("short".into(), 5), "short");
        assert_eq!(cut("aéé".into(), 4), "aé…");
        let report = v1::Failed { message: "é".repeat(1 << 20), ..v1::Failed::default() };
        let input = input_of(Report::Failed(report), &WorkerId("a".into()), SessionId(1));
        let Some(Input::Failed { message, .. }) = input else { panic!("is heard") };
        assert!(message.len() <= LONGEST_MESSAGE_BYTES + '…'.len_utf8());
    }
}
