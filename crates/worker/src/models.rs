//! The models a worker offers, and which of them are in memory.
//!
//! Weights are mapped, and shared by all workers of a process. A model's networks are laid out at its first use
//! and stay; its text encoder stays too where there is memory for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use machine::Memory;
use model::place::RoomError;
use model::weights::OnRead;
use model::{ModelFolder, Place, RenderError, Renderer};
use plan::{HostMemory, ModelDigests, ModelFacts, ModelId, TextHome};

/// Models by name.
pub struct Models {
    place: Place,
    all: BTreeMap<String, Offered>,
    picture_bytes: u64,
}

struct Offered {
    facts: ModelFacts,
    folder: Arc<ModelFolder>,
    text_home: TextHome,
    renderer: Mutex<Option<Arc<Renderer>>>,
    /// Weights that were read to lay the networks out.
    n_read: AtomicU64,
}

impl Models {
    /// Opens folders, each with the folder that gives the parts it lacks, and tells what models they are. Their networks will
    /// compute on `place`, for `n_workers` at once; `memory` is the host's. Other processes that read their weights at the
    /// same time see the same memory free.
    ///
    /// # Errors
    /// If a folder is at fault, every fault a line, or if the networks need more memory than there is.
    pub fn open(
        folders: &[(PathBuf, Option<PathBuf>)],
        place: &Place,
        memory: &Memory,
        n_workers: u16,
    ) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        let mut free_bytes = memory.available_bytes;
        for (dir, base) in folders {
            let folder = ModelFolder::open(dir, base.as_deref()).map_err(|error| {
                let lines: Vec<String> =
                    error.faults.iter().map(|fault| format!("model {}: {fault}", dir.display())).collect();
                anyhow!(lines.join("\n"))
            })?;
            let folder = folder.on(place);
            let name = folder.name().to_owned();
            let hash = || format!("model {}: read the weights to hash them", dir.display());
            for note in folder.notes() {
                tracing::warn!("model {}: {note}", dir.display());
            }
            let identity = folder.identity().with_context(hash)?;
            let facts = ModelFacts {
                id: ModelId { name: name.clone(), weights_sha256: identity.sha256 },
                digests: identity.digests,
                spec: folder.spec().clone(),
            };
            let text_home = text_home(&folder, &mut free_bytes, n_workers);
            let offered = Offered {
                facts,
                folder: Arc::new(folder),
                text_home,
                renderer: Mutex::default(),
                n_read: AtomicU64::new(0),
            };
            if all.insert(name.clone(), offered).is_some() {
                return Err(anyhow!("two models are called `{name}`: give each folder a name of its own"));
            }
        }
        let needed = all.values().map(|offered: &Offered| offered.folder.placed_bytes()).sum();
        let told = |error: RoomError| error.told("models: their networks do not fit", "stop what else uses the GPU");
        place.check_room(needed).map_err(|error| anyhow!(told(error)))?;
        if place.device().is_cpu() {
            let told = |shortage| anyhow!("models: their networks need {shortage}: offer fewer models or free memory");
            memory.check(needed.into()).map_err(told)?;
        }
        let is_told = memory.total_bytes > 0 && place.device().is_cpu();
        let picture_bytes = if is_told { (free_bytes / u64::from(n_workers.max(1))).max(1) } else { 0 };
        Ok(Self { place: place.clone(), all, picture_bytes })
    }

    /// Where the networks compute.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Memory that one picture of a worker may take beside the weights; 0 if that is not known.
    pub(crate) fn picture_bytes(&self) -> u64 {
        self.picture_bytes
    }

    /// What placing needs to know of each.
    pub fn facts(&self) -> impl Iterator<Item = &ModelFacts> {
        self.all.values().map(|offered| &offered.facts)
    }

    /// The model's folder.
    pub fn folder(&self, name: &str) -> Option<&Arc<ModelFolder>> {
        self.all.get(name).map(|offered| &offered.folder)
    }

    /// What its sha256 is made of.
    pub fn digests(&self, name: &str) -> Option<&ModelDigests> {
        self.all.get(name).map(|offered| &offered.facts.digests)
    }

    /// The networks of `id`, laid out if this is their first use. `read` is told of each weight, here or by another rank
    /// of this process that lays them out meanwhile, and may break off.
    ///
    /// # Errors
    /// If there is no such model, a weight is not finite, or `read` breaks off.
    pub(crate) fn renderer(&self, id: &ModelId, read: &OnRead<'_>) -> Result<Arc<Renderer>, ModelError> {
        let unknown = || ModelError::Unknown(id.name.clone());
        let offered = self.all.get(&id.name).filter(|offered| offered.facts.id == *id).ok_or_else(unknown)?;
        let mut loaded = offered.renderer_when_free(read)?;
        if let Some(renderer) = &*loaded {
            return Ok(Arc::clone(renderer));
        }
        let read = || {
            offered.n_read.fetch_add(1, Ordering::Relaxed);
            read()
        };
        let renderer = Renderer::load_watched(Arc::clone(&offered.folder), &read)?;
        let renderer = Arc::new(renderer.with_text_at(offered.text_home));
        *loaded = Some(Arc::clone(&renderer));
        Ok(renderer)
    }
}

/// Why a model's networks are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModelError {
    /// Whoever placed the image took this worker for another.
    #[error("this worker has no model `{0}` of that sha256")]
    Unknown(String),
    /// Its weights are at fault, or memory is short.
    #[error(transparent)]
    Load(#[from] RenderError),
}

impl Offered {
    /// Waits while another rank lays the networks out, and passes its signs of life on.
    fn renderer_when_free(&self, read: &OnRead<'_>) -> Result<MutexGuard<'_, Option<Arc<Renderer>>>, RenderError> {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        let mut n_seen = self.n_read.load(Ordering::Relaxed);
        loop {
            match self.renderer.try_lock() {
                Ok(renderer) => return Ok(renderer),
                Err(TryLockError::Poisoned(renderer)) => return Ok(renderer.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
            let n_read = self.n_read.load(Ordering::Relaxed);
            if std::mem::replace(&mut n_seen, n_read) != n_read && read().is_break() {
                return Err(RenderError::Cancelled);
            }
        }
    }
}

/// Where the model's text encoder will be; what the model takes of the host's memory is taken off `free_bytes`.
fn text_home(folder: &ModelFolder, free_bytes: &mut u64, n_workers: u16) -> TextHome {
    let (text_bytes, is_computed_in) = (folder.text_bytes(), folder.place().device().is_cpu());
    let placed_bytes = if is_computed_in { folder.placed_bytes() } else { 0 };
    let memory = HostMemory { free_bytes: *free_bytes, placed_bytes, is_computed_in, n_pictures: n_workers };
    let home = TextHome::choose(folder.spec(), folder.natural_size(), text_bytes, memory);
    let stays_bytes = if home == TextHome::Memory { text_bytes } else { 0 };
    *free_bytes = free_bytes.saturating_sub(placed_bytes + stays_bytes);
    tracing::info!(model = folder.name(), text_mib = text_bytes >> 20, ?home, "text encoder");
    home
}
