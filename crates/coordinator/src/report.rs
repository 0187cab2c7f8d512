//! What a worker says of itself and its work, checked: what is kept of it is bounded, and what makes no sense is dropped.

use std::net::{IpAddr, SocketAddr};

use control::{ArtifactRef, Hello, Input, Running, SessionId};
use plan::{Epoch, Rank, WorkerId};
use tonic::{Code, Status};
use wire::v1::session_request::Message as Report;
use wire::{convert, v1};

use crate::status::status;

const LONGEST_NAME_BYTES: usize = 128;
const LONGEST_TEXT_BYTES: usize = 512;
/// Of what went wrong: the rest is in the worker's log.
const LONGEST_MESSAGE_BYTES: usize = 2048;
const MOST_MODELS: usize = 256;

/// A worker that joins from the address `from`.
pub(crate) fn hello(join: v1::Join, from: Option<SocketAddr>) -> Result<(WorkerId, Hello), Status> {
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
    if let Some(message) = why_unreachable(&join.address, from) {
        return Err(refused("ADDRESS", message, "address"));
    }
    if join.models.len() > MOST_MODELS {
        let message = format!("{} models: offer at most {MOST_MODELS}", join.models.len());
        return Err(refused("MODEL", message, "models"));
    }
    let models = join.models.iter().map(convert::model_facts).collect::<Result<Vec<_>, _>>();
    let models = models.map_err(|error| refused("MODEL", error.to_string(), "models"))?;
    if let Some(facts) = models.iter().find(|facts| !is_name(&facts.id.name) || !is_sha256(&facts.id.weights_sha256)) {
        let message = format!("model {:?}: give it a name of 1 to {LONGEST_NAME_BYTES} bytes", facts.id.name);
        return Err(refused("MODEL", message, "models"));
    }
    let running = join.running.and_then(|running| {
        Some(Running { epoch: Epoch(running.epoch), rank: Rank(u16::try_from(running.rank).ok()?) })
    });
    let hello = Hello {
        version: join.version,
        incarnation: join.incarnation,
        numeric_class: join.numeric_class,
        models,
        address: join.address,
        flop_per_s: if join.flop_per_s.is_finite() { join.flop_per_s } else { 0.0 },
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

/// Why other workers cannot reach one at `address`, as far as can be told from here. Names are for them to resolve.
fn why_unreachable(address: &str, from: Option<SocketAddr>) -> Option<String> {
    let told = address.rsplit_once("://").map_or(address, |(_, rest)| rest);
    let at = told.parse::<SocketAddr>().ok()?.ip().to_canonical();
    let is_elsewhere = |from: SocketAddr| !from.ip().to_canonical().is_loopback();
    match at {
        IpAddr::V4(ip) if ip.is_unspecified() => {}
        IpAddr::V6(ip) if ip.is_unspecified() => {}
        _ if at.is_loopback() && from.is_some_and(is_elsewhere) => {}
        _ => return None,
    }
    Some(format!("other workers cannot reach this one at {told}: give the address it has for them with --advertise"))
}

/// At most so many bytes of a text.
fn cut(mut text: String, most_bytes: usize) -> String {
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
        Report::Heartbeat(_) => Input::Heartbeat { worker, session },
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
        let model = v1::ModelFacts { name: "demo".into(), weights_sha256: "ab".repeat(32), kv_ratio: 1, vae_factor: 8 };
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
        hello(join(change), Some(from)).err().map(|status| status.message().to_owned())
    }

    #[test]
    fn a_worker_that_others_cannot_reach_is_told_the_way_out() {
        let at = |address: &str, from: &str| refusal(|join| join.address = address.into(), from);
        for address in ["http://0.0.0.0:7480", "http://[::]:7480", "0.0.0.0:1"] {
            let message = at(address, "127.0.0.1:4000").expect("everywhere is nowhere");
            assert!(message.ends_with("with --advertise"), "{message}");
        }
        assert!(at("http://127.0.0.1:7480", "10.0.0.8:4000").is_some_and(|text| text.contains("127.0.0.1:7480")));
        assert!(at("http://[::1]:7480", "[2001:db8::1]:4000").is_some());
        for from in ["127.0.0.1:4000", "[::1]:4000", "[::ffff:127.0.0.1]:4000"] {
            assert_eq!(at("http://127.0.0.1:7480", from), None, "all on one machine, seen from {from}");
        }
        assert_eq!(at("http://worker-3.farm:7480", "10.0.0.8:4000"), None);
        assert_eq!(at("http://10.0.0.7:7480", "10.0.0.8:4000"), None);
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
