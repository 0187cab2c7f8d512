//! Who is in: joining, leases, leaving.

use plan::{Epoch, ImageId, ModelFacts, Rank, WorkerId};

use super::Control;
use crate::attempt::Suspicion;
use crate::health::{REMEMBERED_MS, Silent};
use crate::input::{Hello, Running, SessionId};
use crate::member::{Member, Progress};
use crate::output::{Expelled, Output};
use crate::queue::Need;

impl Control {
    /// A worker wants in. Whether it is.
    pub(super) fn join(&mut self, worker: WorkerId, session: SessionId, hello: Hello) -> bool {
        let known = self.members.get(&worker);
        // A session is younger the higher its number: one that arrives behind its successor is over.
        if known.is_some_and(|member| member.session >= session && member.hello.incarnation == hello.incarnation) {
            self.counters.old_session += 1;
            return false;
        }
        if let Some(reason) = self.why_not(&worker, &hello) {
            self.counters.refused += 1;
            self.put(Output::Refuse { worker, session, reason });
            return false;
        }
        let lease_ttl_ms = self.config.lease_ttl_ms;
        let (lease_until, running) = (self.now + lease_ttl_ms, hello.running);
        let is_other = |member: &Member| member.hello.incarnation != hello.incarnation;
        if self.members.get(&worker).is_some_and(is_other) {
            self.lose_silent(&worker);
        }
        self.back(&worker, &hello.incarnation);
        let before = self.members.remove(&worker);
        if let Some(before) = &before {
            let (worker, session) = (worker.clone(), before.session);
            self.put(Output::Expel { worker, session, why: Expelled::Replaced });
        }
        let speed = before.as_ref().map_or(hello.flop_per_s, |before| before.speed);
        let mut member = Member {
            session,
            lease_until,
            is_draining: before.as_ref().is_some_and(|before| before.is_draining),
            is_stuck: before.as_ref().is_some_and(|before| before.is_stuck),
            is_connected: true,
            progress: Progress::new(self.now),
            epoch: None,
            speed: Member::usable(speed),
            hello,
        };
        self.put(Output::Welcome { worker: worker.clone(), session, lease_ttl_ms });
        let seat = running.and_then(|running| self.take_seat(&worker, session, running));
        let seat = seat.or_else(|| self.seat_left(&worker, &member.hello));
        member.epoch = seat;
        if let Some(Running { epoch, .. }) = running.filter(|running| Some(running.epoch) != seat) {
            self.put(Output::Abort { worker: worker.clone(), session, epoch });
        }
        self.members.insert(worker.clone(), member);
        if let Some(epoch) = seat {
            self.set_patience(epoch);
        }
        // A seat it holds and knows nothing of: its process is another one, or is at something else.
        let held = self.attempts.values().filter(|attempt| attempt.rank_of(&worker).is_some());
        let forgotten: Vec<Epoch> = held.map(|attempt| attempt.epoch).filter(|epoch| Some(*epoch) != seat).collect();
        for epoch in forgotten {
            self.requeue_after_loss(epoch, None, format!("worker {worker} began anew"));
        }
        true
    }

    /// The seat a worker says it holds, if it is its own still.
    fn take_seat(&mut self, worker: &WorkerId, session: SessionId, running: Running) -> Option<Epoch> {
        let attempt = self.attempts.get_mut(&running.epoch)?;
        if attempt.rank_of(worker) != Some(running.rank) {
            return None;
        }
        attempt.reattach(running.rank);
        attempt.is_decoding |= running.is_decoding;
        // The session before may have broken off before the order came through.
        if attempt.stopped.is_some() && running.rank == Rank(0) {
            let (worker, epoch) = (worker.clone(), running.epoch);
            self.put(Output::Stop { worker, session, epoch });
        }
        Some(running.epoch)
    }

    /// The seat of a process that has nothing at work any more: its part has ended while the session was broken. What
    /// it ended with follows behind the join, or was lost with the session before.
    fn seat_left(&mut self, worker: &WorkerId, hello: &Hello) -> Option<Epoch> {
        if hello.running.is_some() {
            return None;
        }
        let until = self.now + self.config.lease_ttl_ms / 3;
        let attempt = self.attempts.values_mut().find(|a| a.seats_process(worker, &hello.incarnation))?;
        let rank = attempt.rank_of(worker)?;
        attempt.reattach(rank);
        let has_stopped = attempt.stopped.as_ref().is_some_and(|stopped| stopped.contains(&rank));
        // In a decode, ranks but the first may be done and have nothing to say.
        let owes_nothing = has_stopped || (attempt.is_decoding && rank != Rank(0));
        if !owes_nothing {
            let message = format!("worker {worker} ended its part and did not say how");
            let lost = Some(worker.clone());
            attempt.suspicion.get_or_insert(Suspicion { due: until, message, lost, rifts: Vec::new() });
        }
        Some(attempt.epoch)
    }

    /// Why a worker is not wanted, and the way out.
    fn why_not(&self, worker: &WorkerId, hello: &Hello) -> Option<String> {
        if hello.version != self.config.version {
            let (found, expected) = (&hello.version, &self.config.version);
            return Some(format!("it runs version {found}, this farm {expected}: install {expected} there"));
        }
        // One whose session is broken may have been started anew; if it is another, the two take the name from each other.
        let known = self.members.get(worker).filter(|member| member.is_connected);
        if known.is_some_and(|member| member.hello.incarnation != hello.incarnation) {
            return Some(format!("a worker named `{worker}` is here already: give this one another name with --name"));
        }
        hello.models.iter().enumerate().find_map(|(idx, facts)| {
            let name = &facts.id.name;
            if hello.models[..idx].iter().any(|other| other.id.name == *name) {
                return Some(format!("it has two models named `{name}`: give one of them another name"));
            }
            self.other_weights(worker, facts)
        })
    }

    /// Who holds a model's name with other weights: a member, or an image that began with them.
    fn other_weights(&self, worker: &WorkerId, facts: &ModelFacts) -> Option<String> {
        let short = |sha256: &str| sha256.chars().take(12).collect::<String>();
        let (name, sha256) = (&facts.id.name, &facts.id.weights_sha256);
        let others = self.members.iter().filter(|(other, _)| *other != worker);
        let mut others = others.filter_map(|(other, member)| Some((other, member.facts(name)?)));
        if let Some((other, found)) = others.find(|(_, found)| found.id.weights_sha256 != *sha256) {
            let what =
                facts.digests.differences(&found.digests).map_or(String::new(), |what| format!(" (other {what})"));
            return Some(format!(
                "its model `{name}` has the sha256 {}, that of worker `{other}` {}{what}: copy that model's folder, or \
                 give one of them another name",
                short(sha256),
                short(&found.id.weights_sha256)
            ));
        }
        let at_work = self.attempts.values().filter_map(|attempt| Some((self.need(&attempt.image)?, &attempt.image)));
        let waiting = self.queue.needs().map(|(need, image)| (need.clone(), image));
        let differs = |(need, image): (Need, &ImageId)| {
            let begun = need.begun.filter(|begun| need.model == *name && begun.weights_sha256 != *sha256)?;
            Some((begun.weights_sha256, image.job.clone()))
        };
        let (found, job) = waiting.chain(at_work).find_map(differs)?;
        Some(format!(
            "its model `{name}` has the sha256 {}, job `{job}` began with {}: copy that model's folder, \
             give this one another name, or cancel that job",
            short(sha256),
            short(&found)
        ))
    }

    /// The member of a session that still is one; its lease begins anew.
    pub(super) fn renew(&mut self, worker: &WorkerId, session: SessionId) -> Option<&mut Member> {
        let until = self.now + self.config.lease_ttl_ms;
        match self.members.get_mut(worker).filter(|member| member.session == session) {
            Some(member) => {
                member.lease_until = until;
                Some(member)
            }
            None => {
                self.counters.old_session += 1;
                None
            }
        }
    }

    /// Whether a message is of a living session and of the attempt its sender has a seat in.
    pub(super) fn is_seated(&mut self, worker: &WorkerId, session: SessionId, epoch: Epoch) -> bool {
        let Some(member) = self.renew(worker, session) else { return false };
        let is_seated = member.epoch == Some(epoch) && self.attempts.contains_key(&epoch);
        if !is_seated {
            self.counters.old_epoch += 1;
        }
        is_seated
    }

    /// A session broke. Its worker may open another within a moment, at which it goes on as if nothing had been.
    pub(super) fn disconnected(&mut self, worker: &WorkerId, session: SessionId) {
        let until = self.now + self.config.reconnect_ms;
        if let Some(member) = self.members.get_mut(worker).filter(|member| member.session == session) {
            member.is_connected = false;
            member.lease_until = member.lease_until.min(until);
        }
    }

    /// Ends the leases that are over.
    pub(super) fn expire(&mut self) {
        let expired = self.members.iter().filter(|(_, member)| member.lease_until <= self.now);
        let lost: Vec<(WorkerId, SessionId)> =
            expired.map(|(worker, member)| (worker.clone(), member.session)).collect();
        for (worker, session) in lost {
            self.counters.leases_ended += 1;
            self.put(Output::Expel { worker: worker.clone(), session, why: Expelled::LeaseEnded });
            self.lose_silent(&worker);
        }
    }

    /// Loses a member that did not say that it leaves: its process died or cannot be reached, which is known when one
    /// comes back under its name.
    fn lose_silent(&mut self, worker: &WorkerId) {
        let now = self.now;
        self.silent.retain(|_, silent| silent.since + REMEMBERED_MS > now);
        let at_work = self.members.get(worker).and_then(|member| {
            let attempt = self.attempts.get(&member.epoch?)?;
            Some(Silent { incarnation: member.hello.incarnation.clone(), image: attempt.image.clone(), since: now })
        });
        self.silent.extend(at_work.map(|silent| (worker.clone(), silent)));
        self.lose(worker);
    }

    /// A worker that was lost at work is back. If it is another process, the one before died: one that does so again and
    /// again, out of memory for instance, is as sick as one that reports failures.
    fn back(&mut self, worker: &WorkerId, incarnation: &str) {
        if let Some(silent) = self.silent.remove(worker)
            && silent.incarnation != incarnation
        {
            self.note_death(worker, &silent.image);
        }
    }

    pub(super) fn lose(&mut self, worker: &WorkerId) {
        let Some(member) = self.members.remove(worker) else { return };
        self.rifts.forget(worker);
        let (members, now) = (&self.members, self.now);
        self.healths.retain(|worker, health| members.contains_key(worker) || health.is_remembered(now));
        if let Some(epoch) = member.epoch {
            self.requeue_after_loss(epoch, Some(worker), format!("worker {worker} was lost"));
        }
    }
}
