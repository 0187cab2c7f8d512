//! One line in the log for each thing that happens to a farm: who, which image and attempt, and why.

use control::{Control, ControlError, Expelled, Input, Output, Phase};
use plan::JobId;

/// What a client asks for, as the log names it once it is done.
pub(super) fn wish(input: &Input) -> &'static str {
    match input {
        Input::Submit { .. } => "job submitted",
        Input::Cancel { .. } => "job cancelled",
        Input::Retry { .. } => "job to be rendered again",
        Input::Delete { .. } => "job deleted",
        _ => "done",
    }
}

pub(super) fn answer(wish: &'static str, answer: &Result<JobId, ControlError>) {
    match answer {
        Ok(job) => tracing::info!(%job, "{wish}"),
        Err(error) => tracing::debug!(%error, "a client was refused"),
    }
}

/// What a worker reports and the machine may take as a fault.
pub(super) fn input(control: &Control, input: &Input) {
    let Input::Failed { worker, epoch, cause, message, .. } = input else { return };
    // Of an attempt that is over the end has been told.
    if let Some(attempt) = control.attempt(*epoch) {
        tracing::warn!(image = %attempt.image, attempt = %epoch, %worker, ?cause, message, "attempt failed");
    }
}

pub(super) fn output(output: &Output) {
    match output {
        Output::Welcome { worker, .. } => tracing::info!(%worker, "worker joined"),
        Output::Refuse { worker, reason, .. } => tracing::warn!(%worker, reason, "worker refused"),
        Output::Expel { worker, why: Expelled::LeaseEnded, .. } => {
            tracing::warn!(%worker, "worker lost: its lease ended")
        }
        Output::Expel { worker, why: Expelled::Replaced, .. } => {
            tracing::info!(%worker, "worker opened another session")
        }
        Output::Quarantine { worker, for_ms, message } => {
            tracing::warn!(%worker, for_ms, message, "worker quarantined: it failed again and again");
        }
        Output::Drained { worker, .. } => tracing::info!(%worker, "worker drained"),
        Output::Assign { worker, assignment, .. } => tracing::debug!(
            %worker, image = %assignment.image, attempt = %assignment.epoch, rank = %assignment.rank,
            n_ranks = assignment.mesh.n_ranks(), n_rows = assignment.mesh.band(assignment.rank).n_rows(),
            n_steps_done = assignment.n_steps_done, "assigned"
        ),
        Output::Event(event) => {
            let (image, message) = (&event.image, &event.message);
            match event.phase {
                Phase::Failed => tracing::warn!(%image, message, "image failed"),
                Phase::Done => tracing::info!(%image, "image done"),
                phase => tracing::debug!(%image, ?phase, step = event.n_steps_done, message, "image changed"),
            }
        }
        _ => {}
    }
}
