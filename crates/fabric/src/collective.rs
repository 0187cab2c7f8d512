//! Exchanges among several ranks, made of sends and receives.

use plan::Rank;

use crate::{Fabric, FabricError, Payload, Tag};

/// Gives every rank of `group` everyone's payload, in the group's order.
///
/// Every rank of the group calls this with the same group and tag. Own payloads leave in rotated order, the next
/// rank first, so that no rank is everybody's first receiver.
///
/// # Errors
/// If a rank of the group is gone or silent, the epoch was aborted, or this rank is not of the group.
pub fn all_gather(fabric: &dyn Fabric, tag: Tag, group: &[Rank], own: Payload) -> Result<Vec<Payload>, FabricError> {
    let me = fabric.rank();
    let Some(my_idx) = group.iter().position(|&rank| rank == me) else {
        return Err(FabricError::PeerGone {
            peer: me,
            reason: format!("it is not one of the {} it gathers with", group.len()),
        });
    };
    for offset in 1..group.len() {
        fabric.send(group[(my_idx + offset) % group.len()], tag, own.clone())?;
    }
    let gathered = group.iter().map(|&rank| if rank == me { Ok(own.clone()) } else { fabric.recv(rank, tag) });
    gathered.collect()
}
