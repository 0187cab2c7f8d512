//! What goes wrong with ranks, and what an attempt that ends has lost.

use std::collections::BTreeMap;

use control::Input;
use plan::{Cause, Epoch, ImageId, WorkerId};

use crate::scene::FAULTS_END_MS;
use crate::world::{Happening, World};

impl World {
    /// The thread of a worker's rank stops where it is.
    pub(crate) fn hang(&mut self, worker: usize, for_ms: u64) {
        let process = &mut self.workers[worker];
        if !process.is_alive || process.part.is_none() {
            return;
        }
        process.hangs_until = process.hangs_until.max(self.now + for_ms);
        let (at, life) = (process.hangs_until, process.life);
        self.at(at, Happening::GoesOn { worker, life });
    }

    pub(crate) fn what_breaks(&mut self, epoch: Epoch, peers: &[usize]) -> Option<(usize, Cause, String)> {
        let broken = peers.iter().copied().find(|peer| std::mem::take(&mut self.workers[*peer].device_breaks));
        if let Some(worker) = broken {
            return Some((worker, Cause::Device, "the device broke".into()));
        }
        let now = self.now;
        let is_sick = |peer: &usize| Some((*peer, self.workers[*peer].is_sick.filter(|(_, until)| *until > now)?.0));
        if let Some((worker, cause)) = peers.iter().find_map(is_sick) {
            return Some((worker, cause, "it is sick".into()));
        }
        let team = self.teams.get(&epoch)?;
        let wrong = self.scene.not_finite?;
        let is_its_job = self.clients[wrong.client].job.as_ref() == Some(&team.assignment.image.job);
        let worker = peers.iter().copied().find(|peer| wrong.worker.is_none_or(|worker| worker == *peer))?;
        let rank = self.rank(worker)?;
        let message = format!("step {}, rank {rank}: a value is not finite", wrong.step + 1);
        (is_its_job && team.n_steps_done == wrong.step).then_some((worker, Cause::NotFinite, message))
    }

    /// Attempts that ended unfinished: how much of what was taken is not kept.
    pub(crate) fn look_at_ends(&mut self, before: &BTreeMap<Epoch, (ImageId, Vec<WorkerId>)>, input: Option<&Input>) {
        let Some(control) = &self.shell.control else { return };
        let mut faults = Vec::new();
        for (epoch, (id, _)) in before {
            let Some(team) = self.teams.get_mut(epoch) else { continue };
            let Some(image) = control.job(&id.job).and_then(|job| job.image(id.image)) else { continue };
            if image.n_steps_done >= team.n_steps_done {
                team.is_loose = false;
            }
            let is_wanted = matches!(image.phase, control::Phase::Queued | control::Phase::Running);
            if control.attempt(*epoch).is_some() || !is_wanted {
                continue;
            }
            let lost = team.n_steps_done.saturating_sub(image.n_steps_done);
            let most = usize::from(!matches!(input, Some(Input::Stopped { .. })));
            if lost > most && !team.is_loose {
                faults.push(format!("epoch {epoch} of {id} ended by {input:?} and {lost} steps are lost"));
            }
        }
        self.oracle.faults.append(&mut faults);
        if self.now > FAULTS_END_MS {
            self.scene.duplicates_percent = 0;
        }
    }
}
