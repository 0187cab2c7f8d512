//! A model folder opened and the cores to run it on: what `render` and `verify` share.
//!
//! Leaves out what to render and where the picture goes.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow};
use candle_core::Tensor;
use machine::Memory;
use model::{FolderError, Identity, ModelFolder, Progress, RenderError, Rendered, Renderer};
use plan::{ImageSize, LatentSize, RenderRequest};

use crate::args::Threads;
use crate::memory;
use crate::models;
use crate::progress::Wait;
use crate::terminal;
use worker::metadata::ModelId;

/// A model folder, its parts checked, its weights not read yet.
pub(crate) struct Engine {
    dir: PathBuf,
    folder: Arc<ModelFolder>,
    pool: rayon::ThreadPool,
}

impl Engine {
    /// Opens the model `model`, a folder or a name; parts it lacks come from `base`.
    pub(crate) fn open(model: &str, base: Option<&str>, threads: &Threads) -> anyhow::Result<Self> {
        let (dir, folder) = open_folder(model, base)?;
        tell(&dir, &folder);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads(threads)).build().context("start threads")?;
        Ok(Self { dir, folder: Arc::new(folder), pool })
    }

    /// The size the model is at its best with.
    pub(crate) fn natural_size(&self) -> ImageSize {
        self.folder.natural_size()
    }

    /// The latent of a picture of `size`.
    pub(crate) fn latent(&self, size: ImageSize) -> LatentSize {
        size.latent(self.folder.spec().vae.factor())
    }

    /// Refuses a picture the model cannot make, or that does not fit in memory.
    pub(crate) fn check_size(&self, size: ImageSize) -> anyhow::Result<()> {
        self.folder.spec().check_size(size)?;
        memory::check(&Memory::measure(), &self.folder, size).map_err(|fault| anyhow!(fault))
    }

    /// Reads the weights.
    pub(crate) fn load(self) -> anyhow::Result<Loaded> {
        let folder = Arc::clone(&self.folder);
        // Beside the render, on a core of its own.
        let hashing = std::thread::spawn(move || {
            let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build();
            alone.map_err(candle_core::Error::wrap)?.install(|| folder.identity())
        });
        let _wait = Wait::start("reading the weights");
        let renderer = self.pool.install(|| Renderer::load(Arc::clone(&self.folder))).map_err(|error| match error {
            RenderError::Folder(error) => named(&self.dir, &error),
            error => error.into(),
        })?;
        Ok(Loaded { renderer, hash: Hash::Running(hashing), name: self.folder.name().to_owned(), pool: self.pool })
    }
}

/// Opens a model folder, and tells where it was found.
pub(crate) fn open_folder(model: &str, base: Option<&str>) -> anyhow::Result<(PathBuf, ModelFolder)> {
    let dir = models::find(model)?;
    let base = base.map(models::find).transpose()?;
    let folder = ModelFolder::open(&dir, base.as_deref()).map_err(|error| named(&dir, &error))?;
    Ok((dir, folder))
}

/// Says what the folder holds and nobody reads.
pub(crate) fn tell(dir: &Path, folder: &ModelFolder) {
    for note in folder.notes() {
        terminal::warning(&format!("model {}: {note}", dir.display()));
    }
}

/// The faults of a model folder, each with the folder's path, because each becomes a line of its own.
fn named(dir: &Path, error: &FolderError) -> anyhow::Error {
    let lines: Vec<String> = error.faults.iter().map(|fault| format!("model {}: {fault}", dir.display())).collect();
    anyhow!(lines.join("\n"))
}

/// How many cores work.
pub(crate) fn n_threads(threads: &Threads) -> usize {
    threads.threads.map_or_else(machine::n_processors, |threads| threads as usize)
}

/// A model ready to render.
pub(crate) struct Loaded {
    renderer: Renderer,
    pool: rayon::ThreadPool,
    name: String,
    hash: Hash,
}

/// What the model is: reading all files takes a while, so it is worked out beside the first picture.
enum Hash {
    Running(JoinHandle<candle_core::Result<Identity>>),
    Known(Identity),
    Failed,
}

impl Loaded {
    /// Renders one picture; `watch` is called with each part that is done and may break off.
    pub(crate) fn render(
        &self,
        request: &RenderRequest,
        noise: Option<&Tensor>,
        watch: &mut (dyn FnMut(Progress<'_>) -> ControlFlow<()> + Send),
    ) -> anyhow::Result<Rendered> {
        Ok(self.pool.install(|| self.renderer.render(request, noise, &mut |progress| watch(progress)))?)
    }

    /// Decodes latents that are still noisy; called from within [`Self::render`]'s watch.
    pub(crate) fn decode(
        &self,
        latents: &Tensor,
        watch: &mut (dyn FnMut(Progress<'_>) -> ControlFlow<()> + Send),
    ) -> anyhow::Result<Tensor> {
        Ok(self.renderer.decode(latents, watch)?)
    }

    /// Name and hash of the model.
    pub(crate) fn model_id(&mut self) -> anyhow::Result<ModelId> {
        self.hash = match std::mem::replace(&mut self.hash, Hash::Failed) {
            Hash::Running(hashing) => {
                let hash = hashing.join().map_err(|_| anyhow!("the thread that hashes the weights has died"))?;
                Hash::Known(hash.context("read the weights to hash them")?)
            }
            other => other,
        };
        match &self.hash {
            Hash::Known(Identity { sha256, digests }) => {
                Ok(ModelId { name: self.name.clone(), sha256: sha256.clone(), digests: Some(digests.clone()) })
            }
            Hash::Running(_) | Hash::Failed => Err(anyhow!("the weights could not be hashed")),
        }
    }
}
