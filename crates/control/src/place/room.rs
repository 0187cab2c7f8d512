//! Whether an image fits into workers' memory: alone, or cut among several.
//!
//! What a worker does not say of its memory counts as enough; it looks again before it begins.

use plan::{Footprint, ImageId, Mesh, Share, WorkerId};

use crate::control::Control;
use crate::member::Member;

/// What an image takes on a worker and what the worker has for it, in bytes beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) needed: u128,
    pub(crate) offered: u128,
}

impl Control {
    /// What the whole image takes on a member; `None` if the member does not say what it has.
    pub(crate) fn room_alone(&self, id: &ImageId, member: &Member) -> Option<Room> {
        let facts = self.facts(id, member)?;
        let share = Share::whole(&facts.spec, self.jobs.get(&id.job)?.spec.request.size);
        self.room(id, member, share)
    }

    fn room(&self, id: &ImageId, member: &Member, share: Share) -> Option<Room> {
        let offered = member.hello.memory_bytes?;
        let (facts, size) = (self.facts(id, member)?, self.jobs.get(&id.job)?.spec.request.size);
        let footprint = Footprint::of(&facts.spec, size, share, member.hello.value_bytes);
        Some(Room { needed: footprint.beside_weights_bytes(member.hello.value_bytes), offered: offered.into() })
    }

    /// Whether a member has room for the whole image.
    pub(crate) fn fits_alone(&self, id: &ImageId, worker: &WorkerId) -> bool {
        let room = self.members.get(worker).and_then(|member| self.room_alone(id, member));
        room.is_none_or(|room| room.needed <= room.offered)
    }

    /// Whether each of a team has room for its share, cut as it would be.
    pub(crate) fn fits_cut(&self, id: &ImageId, team: &[WorkerId]) -> bool {
        // A share of two branches takes at most twice as much as a whole image, one branch after the other.
        let has_plenty = |worker: &WorkerId| {
            let room = self.members.get(worker).and_then(|member| self.room_alone(id, member));
            room.is_none_or(|room| 2 * room.needed <= room.offered)
        };
        if team.iter().all(has_plenty) {
            return true;
        }
        self.shares(id, team).is_some_and(|shares| {
            shares.iter().all(|(worker, share)| {
                let room = self.members.get(worker).and_then(|member| self.room(id, member, *share));
                room.is_none_or(|room| room.needed <= room.offered)
            })
        })
    }

    fn shares(&self, id: &ImageId, team: &[WorkerId]) -> Option<Vec<(WorkerId, Share)>> {
        let request = &self.jobs.get(&id.job)?.spec.request;
        let facts = self.facts(id, self.members.get(team.first()?)?)?;
        let mut team: Vec<(f64, &WorkerId)> = team.iter().map(|worker| (self.speed(worker), worker)).collect();
        team.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let speeds: Vec<f64> = team.iter().map(|(speed, _)| *speed).collect();
        let grid = request.size.latent(facts.vae_factor()).tokens();
        let choice = Mesh::choose(grid, facts.kv_ratio(), request.is_guided(), &speeds);
        let seats = choice.seats.iter().zip(choice.mesh.ranks());
        let share = |rank| Share::of(&choice.mesh, rank, request.is_guided());
        Some(seats.map(|(seat, rank)| (team[*seat].1.clone(), share(rank))).collect())
    }

    /// The fewest of the `free`, fastest first, that have room for an image no member has room for alone. All of them must
    /// be able to work with the first.
    pub(crate) fn team_with_room(&self, id: &ImageId, free: &[WorkerId]) -> Option<Vec<WorkerId>> {
        let model = &self.jobs.get(&id.job)?.spec.model;
        let first = self.members.get(free.first()?)?;
        let equals = |worker: &&WorkerId| self.members.get(*worker).is_some_and(|other| first.equals(other, model));
        let mut team: Vec<WorkerId> = Vec::new();
        for worker in free.iter().filter(equals) {
            if self.rifts.part(worker, &team, self.now) {
                continue;
            }
            team.push(worker.clone());
            if self.fits_cut(id, &team) {
                return Some(team);
            }
        }
        None
    }

    /// Why an image cannot be placed, if no member has room for it, alone or with all the others.
    pub(crate) fn says_too_large(&self, id: &ImageId) -> Option<String> {
        let need = self.need(id)?;
        let able: Vec<&WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| !member.is_draining && !member.is_stuck && need.is_met_by(member))
            .map(|(worker, _)| worker)
            .collect();
        if able.is_empty() || able.iter().any(|worker| self.fits_alone(id, worker)) {
            return None;
        }
        let all: Vec<WorkerId> = able.iter().copied().cloned().collect();
        if self.team_with_room(id, &all).is_some() {
            return None;
        }
        let rooms = able.iter().filter_map(|worker| Some((worker, self.room_alone(id, self.members.get(*worker)?)?)));
        let (largest, room) = rooms.max_by_key(|(_, room)| room.offered)?;
        let gib = |bytes: u128| bytes as f64 / f64::from(1 << 30);
        Some(format!(
            "needs {:.1} GiB of memory beside the model, the largest worker {largest} offers {:.1} GiB: add a larger one, \
             or ask for a smaller size",
            gib(room.needed),
            gib(room.offered)
        ))
    }
}
