//! Conversions both sides of a stream need, between messages and the plan's types.
//!
//! What only one side says, that side converts.

use plan::{
    ArtifactKind, Assignment, Cause, Clean, Epoch, ImageId, ImageIdx, ImageSize, JobId, Mesh, MeshError, ModelId, Peer,
    Rank, RenderRequest, RequestError, RowRange, WorkerId,
};

use crate::v1;

/// The guidance weight of a request that names none.
const DEFAULT_GUIDANCE: f64 = 4.5;

/// Why a message means nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConvertError {
    /// A part is missing.
    #[error("`{field}` is missing")]
    #[allow(missing_docs)]
    Missing { field: &'static str },
    /// A value is out of range.
    #[error("`{field}` is {value}: {way_out}")]
    #[allow(missing_docs)]
    Value { field: &'static str, value: String, way_out: &'static str },
    /// A request that cannot be rendered.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Bands that are no mesh.
    #[error(transparent)]
    Mesh(#[from] MeshError),
}

/// A request as it travels, for `count` images of `model`.
pub fn spec_of(request: &RenderRequest, model: &str, count: u32, kind: ArtifactKind) -> v1::RenderSpec {
    v1::RenderSpec {
        model: model.to_owned(),
        prompt: request.prompt.clone(),
        negative: request.negative.clone(),
        width_px: request.size.width_px,
        height_px: request.size.height_px,
        steps: request.steps,
        guidance: Some(request.guidance),
        seed: request.seed,
        count,
        artifact_kind: kind_of(kind).into(),
        cleaning: match request.clean {
            Clean::None => v1::PromptCleaning::None,
            Clean::Basic => v1::PromptCleaning::Basic,
        }
        .into(),
    }
}

/// The request of a message, checked.
///
/// # Errors
/// If a value is out of range.
pub fn request_of(spec: &v1::RenderSpec) -> Result<RenderRequest, ConvertError> {
    let clean = match v1::PromptCleaning::try_from(spec.cleaning) {
        Ok(v1::PromptCleaning::None) => Clean::None,
        Ok(v1::PromptCleaning::Basic | v1::PromptCleaning::Unspecified) => Clean::Basic,
        Err(_) => return Err(unknown("cleaning", spec.cleaning)),
    };
    let request = RenderRequest {
        prompt: spec.prompt.clone(),
        negative: spec.negative.clone(),
        size: ImageSize::new(spec.width_px, spec.height_px)?,
        steps: spec.steps,
        guidance: spec.guidance.unwrap_or(DEFAULT_GUIDANCE),
        seed: spec.seed,
        clean,
    };
    request.check()?;
    Ok(request)
}

/// How a picture is written, as it travels.
pub fn kind_of(kind: ArtifactKind) -> v1::ArtifactKind {
    match kind {
        ArtifactKind::Png8 => v1::ArtifactKind::Png8,
        ArtifactKind::Png16 => v1::ArtifactKind::Png16,
        ArtifactKind::Safetensors => v1::ArtifactKind::Safetensors,
    }
}

/// How a picture is written; a PNG of 8 bits if it is not said.
///
/// # Errors
/// If the kind is not known here.
pub fn artifact_kind(kind: i32) -> Result<ArtifactKind, ConvertError> {
    match v1::ArtifactKind::try_from(kind) {
        Ok(v1::ArtifactKind::Unspecified | v1::ArtifactKind::Png8) => Ok(ArtifactKind::Png8),
        Ok(v1::ArtifactKind::Png16) => Ok(ArtifactKind::Png16),
        Ok(v1::ArtifactKind::Safetensors) => Ok(ArtifactKind::Safetensors),
        Err(_) => Err(unknown("artifact_kind", kind)),
    }
}

/// Why a rank gave up, as it travels.
pub fn cause_of(cause: Cause) -> v1::Cause {
    match cause {
        Cause::Input => v1::Cause::Input,
        Cause::Device => v1::Cause::Device,
        Cause::NotFinite => v1::Cause::NotFinite,
        Cause::Peer => v1::Cause::Peer,
        Cause::Bug => v1::Cause::Bug,
    }
}

/// Why a rank gave up; a defect if it is not said in words known here.
pub fn cause(cause: v1::Cause) -> Cause {
    match cause {
        v1::Cause::Input => Cause::Input,
        v1::Cause::Device => Cause::Device,
        v1::Cause::NotFinite => Cause::NotFinite,
        v1::Cause::Peer => Cause::Peer,
        v1::Cause::Bug | v1::Cause::Unspecified => Cause::Bug,
    }
}

impl From<&Assignment> for v1::Assign {
    fn from(assignment: &Assignment) -> Self {
        Self {
            epoch: assignment.epoch.0,
            job: assignment.image.job.0.clone(),
            image: assignment.image.image.0,
            spec: Some(spec_of(&assignment.request, &assignment.model.name, 1, assignment.artifact)),
            weights_sha256: assignment.model.weights_sha256.clone(),
            n_branch_groups: assignment.mesh.n_branch_groups() as u32,
            band_rows: assignment.mesh.bands().iter().map(|band| band.n_rows() as u32).collect(),
            rank: u32::from(assignment.rank.0),
            peers: assignment
                .peers
                .iter()
                .map(|peer| v1::Peer { worker: peer.worker.0.clone(), address: peer.address.clone() })
                .collect(),
            n_steps_done: assignment.n_steps_done as u32,
            // Whoever sends it makes it.
            secret: Vec::new().into(),
            exchange_secret: Vec::new().into(),
        }
    }
}

/// A rank's part.
///
/// # Errors
/// If a part is missing or the bands are no mesh.
pub fn assignment(assign: &v1::Assign) -> Result<Assignment, ConvertError> {
    let spec = assign.spec.as_ref().ok_or(ConvertError::Missing { field: "spec" })?;
    let mut start = 0_usize;
    let bands = assign.band_rows.iter().map(|n_rows| {
        let end = start.saturating_add(*n_rows as usize);
        let band = RowRange { start, end };
        start = end;
        band
    });
    let bands: Vec<_> = bands.collect();
    let n_rows = bands.last().map_or(0, |band| band.end);
    let mesh = Mesh::new(assign.n_branch_groups as usize, bands, n_rows, 1)?;
    let rank = u16::try_from(assign.rank).ok().map(Rank).filter(|rank| usize::from(rank.0) < mesh.n_ranks());
    let way_out = "it is one of the mesh's seats";
    let rank = rank.ok_or(ConvertError::Value { field: "rank", value: assign.rank.to_string(), way_out })?;
    if assign.peers.len() != mesh.n_ranks() {
        let value = assign.peers.len().to_string();
        return Err(ConvertError::Value { field: "peers", value, way_out: "every seat has one" });
    }
    Ok(Assignment {
        epoch: Epoch(assign.epoch),
        image: ImageId { job: JobId(assign.job.clone()), image: ImageIdx(assign.image) },
        request: request_of(spec)?,
        model: ModelId { name: spec.model.clone(), weights_sha256: assign.weights_sha256.clone() },
        artifact: artifact_kind(spec.artifact_kind)?,
        mesh,
        rank,
        peers: assign
            .peers
            .iter()
            .map(|peer| Peer { worker: WorkerId(peer.worker.clone()), address: peer.address.clone() })
            .collect(),
        n_steps_done: assign.n_steps_done as usize,
    })
}

fn unknown(field: &'static str, value: i32) -> ConvertError {
    ConvertError::Value { field, value: value.to_string(), way_out: "it is not known here: are the versions equal?" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Assignment {
        let bands = vec![RowRange { start: 0, end: 6 }, RowRange { start: 6, end: 8 }];
        let peer = |name: &str| Peer { worker: WorkerId(name.into()), address: format!("http://{name}:1") };
        Assignment {
            epoch: Epoch(7),
            image: ImageId { job: JobId("job".into()), image: ImageIdx(2) },
            request: RenderRequest {
                prompt: "a castle".into(),
                negative: "fog".into(),
                size: ImageSize { width_px: 64, height_px: 128 },
                steps: 12,
                guidance: 0.1 + 0.2,
                seed: u64::MAX,
                clean: Clean::None,
            },
            model: ModelId { name: "demo".into(), weights_sha256: "ab".into() },
            artifact: ArtifactKind::Png16,
            mesh: Mesh::new(2, bands, 8, 2).expect("a mesh"),
            rank: Rank(3),
            peers: ["a", "b", "c", "d"].map(peer).into(),
            n_steps_done: 5,
        }
    }

    #[test]
    fn an_assignment_comes_back_as_it_went() {
        assert_eq!(assignment(&v1::Assign::from(&example())), Ok(example()));
    }

    #[test]
    fn a_guidance_that_is_left_out_is_the_usual_one_and_zero_is_zero() {
        let of = |guidance| {
            request_of(&v1::RenderSpec { guidance, ..spec_of(&example().request, "m", 1, ArtifactKind::Png8) })
        };
        assert_eq!(of(None).expect("is fine").guidance, 4.5);
        assert_eq!(of(Some(0.0)).expect("is fine").guidance, 0.0);
    }

    #[test]
    fn an_assignment_that_makes_no_sense_is_refused_by_field() {
        let refused = |change: fn(&mut v1::Assign)| {
            let mut message = v1::Assign::from(&example());
            change(&mut message);
            assignment(&message).expect_err("refused").to_string()
        };
        assert_eq!(refused(|m| m.spec = None), "`spec` is missing");
        assert_eq!(refused(|m| m.rank = 4), "`rank` is 4: it is one of the mesh's seats");
        assert_eq!(refused(|m| m.peers.clear()), "`peers` is 0: every seat has one");
        assert!(refused(|m| m.band_rows = vec![0, 8]).starts_with("band 0 of a mesh"));
        assert!(refused(|m| m.n_branch_groups = 9).starts_with("a mesh has 1 or 2"));
        let steps = |m: &mut v1::Assign| m.spec = m.spec.take().map(|spec| v1::RenderSpec { steps: 0, ..spec });
        assert!(refused(steps).starts_with("steps 0 is out of range"));
    }
}
