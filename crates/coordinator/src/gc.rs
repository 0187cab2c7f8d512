//! Files that no record of this store names: told on request, and deleted if asked to.
//!
//! Such files are left by crashes, by attempts that ended between a picture and its record, and by stores that were lost
//! or restored from a backup. Only whoever runs the farm knows which, so nothing else deletes them. What is not named as a
//! picture, a checkpoint or a half-written file of fresco's is not looked at.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control::Control;
use tokio::sync::mpsc;
use tonic::{Code, Status};
use wire::v1;

use crate::artifact::{self, Artifacts};
use crate::checkpoint::{self, Checkpoints};
use crate::driver::Desk;
use crate::folder::Folder;
use crate::status::status;

/// Files that are looked up at a time, so that nobody waits long for the state machine.
const GROUP: usize = 256;

type Answers = mpsc::Sender<Result<v1::CollectGarbageResponse, Status>>;

/// Finds and deletes such files.
#[derive(Clone)]
pub(crate) struct Collector {
    desk: Desk,
    artifacts: Arc<Artifacts>,
    checkpoints: Arc<Checkpoints>,
}

/// A file that may be nobody's.
#[derive(Clone)]
struct Candidate {
    name: String,
    path: PathBuf,
    kind: v1::GarbageKind,
    n_bytes: u64,
    age: Duration,
}

impl Collector {
    pub(crate) fn new(desk: Desk, artifacts: Arc<Artifacts>, checkpoints: Arc<Checkpoints>) -> Self {
        Self { desk, artifacts, checkpoints }
    }

    /// Tells every file that no record names and that has not changed for `older_than`; with `delete`, after deleting it.
    pub(crate) async fn collect(self, older_than: Duration, delete: bool, answers: Answers) {
        // Whoever asked may have gone.
        if let Err(error) = self.walk(older_than, delete, &answers).await {
            drop(answers.send(Err(error)).await);
        }
    }

    async fn walk(&self, older_than: Duration, delete: bool, answers: &Answers) -> Result<(), Status> {
        let (artifacts, checkpoints) = (Arc::clone(&self.artifacts), Arc::clone(&self.checkpoints));
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = candidates(artifacts.folder(), older_than, |name| {
                artifact::is_name(name).then_some(v1::GarbageKind::Picture)
            })?;
            found.extend(candidates(checkpoints.folder(), older_than, |name| {
                checkpoint::step_of(name).map(|_| v1::GarbageKind::Checkpoint)
            })?);
            io::Result::Ok(found)
        });
        let listed = listed.await.map_err(|_| Status::internal("the listing's thread died"))?;
        let listed = listed.map_err(|error| {
            let message = format!("the folders cannot be listed: {error}");
            status(Code::Unavailable, "FOLDER", message, None, None)
        })?;
        for group in listed.chunks(GROUP) {
            let unnamed = self.unnamed(group.to_vec()).await?;
            let deleted = if delete { self.delete(unnamed.clone()).await? } else { BTreeSet::new() };
            for file in unnamed {
                let is_deleted = deleted.contains(&file.path);
                if delete && !is_deleted {
                    continue;
                }
                let response = v1::CollectGarbageResponse {
                    path: file.path.display().to_string(),
                    kind: file.kind.into(),
                    size_bytes: file.n_bytes,
                    age_ms: file.age.as_millis() as u64,
                    is_deleted,
                };
                if answers.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Those that no record names.
    async fn unnamed(&self, files: Vec<Candidate>) -> Result<Vec<Candidate>, Status> {
        let asked = move |control: &Control| files.into_iter().filter(|file| !is_named(control, file)).collect();
        Ok(self.desk.ask_for_member(asked).await?)
    }

    /// Deletes those that still nobody names. What was deleted.
    async fn delete(&self, files: Vec<Candidate>) -> Result<BTreeSet<PathBuf>, Status> {
        if self.artifacts.keeps_all() {
            let reason = "some records of this store are not understood and may name these files: nothing is deleted; \
                          start the version that wrote them";
            return Err(Status::failed_precondition(reason));
        }
        let pictures = |files: &[Candidate]| -> BTreeSet<String> {
            let pictures = files.iter().filter(|file| file.kind == v1::GarbageKind::Picture);
            pictures.map(|file| file.name.clone()).collect()
        };
        // From here on no image comes to have one of them, and those that had one before are seen.
        let condemned = pictures(&files);
        self.artifacts.condemn(condemned.iter().map(String::as_str));
        let unnamed = self.unnamed(files).await?;
        let still = pictures(&unnamed);
        self.artifacts.pardon(condemned.difference(&still).map(String::as_str));
        let (artifacts, checkpoints) = (Arc::clone(&self.artifacts), Arc::clone(&self.checkpoints));
        let deleted = tokio::task::spawn_blocking(move || {
            let is_gone = |file: &Candidate| match file.kind {
                v1::GarbageKind::Picture => artifacts.remove_now(&file.name),
                v1::GarbageKind::Checkpoint => checkpoint::step_of(&file.name)
                    .is_some_and(|(image, n_steps_done)| checkpoints.remove_unknown(&image, n_steps_done)),
                _ => fs::remove_file(&file.path).is_ok(),
            };
            unnamed.into_iter().filter(is_gone).map(|file| file.path).collect()
        });
        deleted.await.map_err(|_| Status::internal("the thread that deletes died"))
    }
}

fn is_named(control: &Control, file: &Candidate) -> bool {
    match file.kind {
        v1::GarbageKind::Picture => control.has_picture(&file.name),
        v1::GarbageKind::Checkpoint => checkpoint::step_of(&file.name)
            .is_some_and(|(image, _)| control.image(&image).is_some_and(|image| !image.phase.is_over())),
        _ => false,
    }
}

/// Files of `folder` that are old enough and of a kind, in the order of their names.
fn candidates(
    folder: &Folder,
    older_than: Duration,
    kind: impl Fn(&str) -> Option<v1::GarbageKind>,
) -> io::Result<Vec<Candidate>> {
    let now = SystemTime::now();
    let mut found = Vec::new();
    for entry in fs::read_dir(folder.path())? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let partial = || folder.is_left_over(&name).then_some(v1::GarbageKind::Partial);
        let Some(kind) = kind(&name).or_else(partial) else { continue };
        // One that is gone meanwhile is nobody's business.
        let Some(about) = entry.metadata().ok().filter(Metadata::is_file) else { continue };
        // A time in the future is that of a file just written, by a clock that is ahead.
        let age = about.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
        if age >= older_than {
            found.push(Candidate { path: entry.path(), name, kind, n_bytes: about.len(), age });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
