//! The whole walk of one picture on one rank: captions, noise, steps, decode.
//!
//! This is the oracle every split render is compared with. Leaves out files, progress bars and threads: work
//! runs on rayon's current pool, and the caller watches through a closure.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use plan::{RenderRequest, RowRange, TextHome};

use crate::dit::Dit;
use crate::dit::block::CaptionKeys;
use crate::finite::ForwardError;
use crate::folder::{FolderError, ModelFolder};
use crate::noise;
use crate::sampler::Sampler;
use crate::seam::{WholePicture, WholeSequence};
use crate::text::TextEncoder;
use crate::tokenizer::Tokens;
use crate::vae::{self, Decoder};
use crate::weights::OnRead;

/// The networks of a model folder, ready to run.
pub struct Renderer {
    folder: Arc<ModelFolder>,
    dit: Dit,
    decoder: Decoder,
    text_home: TextHome,
    text: Mutex<Text>,
    /// Pieces of work that whoever holds the text encoder has done.
    n_encoded: AtomicU64,
}

/// What is left of encoding prompts.
#[derive(Default)]
struct Text {
    /// Prompts encoded last, the latest at the end.
    known: Vec<(String, Tensor)>,
    /// Only where it stays in memory.
    encoder: Option<TextEncoder>,
}

/// Encoded prompts that are kept, 5 MB each at most.
const MOST_CAPTIONS: usize = 16;

/// What has just been done. The watcher may break off, which ends in [`RenderError::Cancelled`].
pub enum Progress<'a> {
    /// A prompt had more tokens than the model takes.
    PromptCut {
        /// Which of the two prompts.
        which: &'static str,
        /// Tokens it has, the end mark included.
        n_tokens: usize,
        /// What was left out.
        cut_text: String,
    },
    /// A weight of the text encoder was read, or another picture's prompt is being encoded meanwhile.
    Encoding,
    /// Captions are encoded, denoising starts.
    Encoded,
    /// A step is done.
    Step {
        /// Counted from 0.
        step: usize,
        /// How many there are.
        steps: usize,
        /// The latent after the step, `[1, 4, rows, cols]`.
        latents: &'a Tensor,
        /// The clean latent as predicted at this step, `[1, 4, rows, cols]`.
        clean: &'a Tensor,
    },
    /// A part of the decode is done.
    Decode {
        /// Parts done.
        done: usize,
        /// Parts there are.
        total: usize,
    },
}

/// Why a render ended without a picture.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The model's weights are at fault.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A value of the request is out of range.
    #[error(transparent)]
    Request(#[from] plan::RequestError),
    /// The given initial latents do not fit.
    #[error("latents: {0}")]
    Latents(String),
    /// A prompt cannot be encoded.
    #[error("{0}")]
    Prompt(String),
    /// A step gave a value that is no number.
    #[error("step {step} of {steps}: the output of `{tensor}` holds a value that is not finite")]
    #[allow(missing_docs)]
    NotFinite { step: usize, steps: usize, tensor: String },
    /// The decode gave a value that is no number.
    #[error("decode: the output of `{tensor}` holds a value that is not finite")]
    #[allow(missing_docs)]
    DecodeNotFinite { tensor: String },
    /// The watcher broke off.
    #[error("cancelled")]
    Cancelled,
    /// Shapes did not fit.
    #[error("{}", crate::finite::first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

/// A finished picture.
pub struct Rendered {
    /// `[1, 4, rows, cols]` f32, before the VAE's scaling is undone.
    pub latents: Tensor,
    /// `[1, 3, height, width]` f32 in 0..1.
    pub image: Tensor,
    /// The encoded prompt, `[1, tokens, width]` f32.
    pub embeds: Tensor,
}

/// A watcher of [`Renderer::render`].
pub type Watch<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + Send + 'a;

impl Renderer {
    /// Loads transformer and decoder.
    ///
    /// # Errors
    /// If a weight is not finite: all tensors at fault are named at once.
    pub fn load(folder: Arc<ModelFolder>) -> Result<Self, RenderError> {
        Self::load_watched(folder, &|| ControlFlow::Continue(()))
    }

    /// The same; `read` is told of each weight and may break off.
    ///
    /// # Errors
    /// As above, or [`RenderError::Cancelled`].
    pub fn load_watched(folder: Arc<ModelFolder>, read: &OnRead<'_>) -> Result<Self, RenderError> {
        let is_off = AtomicBool::new(false);
        let read = || {
            let flow = read();
            is_off.fetch_or(flow.is_break(), Ordering::Relaxed);
            flow
        };
        Self::load_all(folder, &read).map_err(|error| {
            // What was broken off has failed, too; why is known here.
            if is_off.load(Ordering::Relaxed) { RenderError::Cancelled } else { error }
        })
    }

    fn load_all(folder: Arc<ModelFolder>, read: &OnRead<'_>) -> Result<Self, RenderError> {
        folder.check_finite(read)?;
        Ok(Self {
            dit: Dit::load(&folder.spec().dit, &folder.dit, read)?,
            decoder: Decoder::load(&folder.spec().vae, &folder.vae)?,
            text_home: TextHome::default(),
            text: Mutex::default(),
            n_encoded: AtomicU64::new(0),
            folder,
        })
    }

    /// The same with the text encoder, by far the largest network, at `home` between prompts.
    #[must_use]
    pub fn with_text_at(self, home: TextHome) -> Self {
        Self { text_home: home, ..self }
    }

    /// Renders `request`, from `noise` `[1, 4, rows, cols]` f32 in place of the seed's if it is given.
    ///
    /// # Errors
    /// If the request is out of range, a value stops being finite, or `watch` breaks off.
    pub fn render(
        &self,
        request: &RenderRequest,
        noise: Option<&Tensor>,
        watch: &mut Watch<'_>,
    ) -> Result<Rendered, RenderError> {
        request.check()?;
        self.folder.spec().check_size(request.size)?;
        let latent = request.size.latent(self.folder.spec().vae.factor());
        let dims = (1, 4, latent.rows, latent.cols);
        let start = match noise {
            Some(noise) => check_latents(noise, dims)?,
            None => noise::initial(request.seed, latent)?,
        };
        let embeds = self.embeds(request, watch)?;
        let captions: Vec<_> = embeds.iter().map(|embeds| self.dit.caption(embeds)).collect::<Result<_, _>>()?;
        go_on(watch(Progress::Encoded))?;
        let latents = self.denoise(request, start.squeeze(0)?, &captions, watch)?.unsqueeze(0)?;
        let image = self.decode(&latents, watch)?;
        Ok(Rendered { latents, image, embeds: embeds[0].unsqueeze(0)? })
    }

    /// The prompt of `request` encoded, `[tokens, width]` f32, and behind it the negative prompt if it is guided.
    ///
    /// # Errors
    /// If a prompt cannot be encoded or `watch` breaks off.
    pub fn embeds(&self, request: &RenderRequest, watch: &mut Watch<'_>) -> Result<Vec<Tensor>, RenderError> {
        let mut prompts = vec![("prompt", &request.prompt)];
        if request.is_guided() {
            prompts.push(("negative prompt", &request.negative));
        }
        self.encode(&prompts, request, watch)
    }

    /// The transformer.
    pub fn dit(&self) -> &Dit {
        &self.dit
    }

    /// The picture decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The folder the networks come from.
    pub fn folder(&self) -> &ModelFolder {
        &self.folder
    }

    /// Tokens of `text`, cleaned as `request` says.
    fn tokens(&self, text: &str, request: &RenderRequest) -> Result<Tokens, RenderError> {
        self.folder.tokenizer.encode(&request.clean.apply(text)).map_err(RenderError::Prompt)
    }

    /// Encodes prompts, `[tokens, width]` each.
    fn encode(
        &self,
        prompts: &[(&'static str, &String)],
        request: &RenderRequest,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Tensor>, RenderError> {
        let mut text = self.text_when_free(watch)?;
        // Let go of where an error ends this.
        let mut encoder = text.encoder.take();
        let known = &mut text.known;
        let mut all = Vec::new();
        for (which, prompt) in prompts {
            let tokens = self.tokens(prompt, request)?;
            if tokens.n_uncut > tokens.ids.len() {
                let (n_tokens, cut_text) = (tokens.n_uncut, tokens.cut_text);
                go_on(watch(Progress::PromptCut { which, n_tokens, cut_text }))?;
            }
            let key = request.clean.apply(prompt);
            let embeds = match known.iter().position(|(prompt, _)| *prompt == key) {
                Some(at) => known.remove(at).1,
                None => {
                    let encoder = match &mut encoder {
                        Some(encoder) => encoder,
                        none => none.insert(self.text_encoder(watch)?),
                    };
                    let embeds = encoder.encode(&tokens.ids)?;
                    self.n_encoded.fetch_add(1, Ordering::Relaxed);
                    go_on(watch(Progress::Encoding))?;
                    crate::finite::check(std::slice::from_ref(&embeds), || "text_encoder".into())
                        .map_err(|error| at_step(error, 0, request))?;
                    embeds
                }
            };
            known.push((key, embeds.clone()));
            all.push(embeds);
        }
        let n_old = known.len().saturating_sub(MOST_CAPTIONS);
        known.drain(..n_old);
        if self.text_home == TextHome::Memory {
            text.encoder = encoder;
        }
        Ok(all)
    }

    /// Waits while another picture's prompts are encoded, and passes its signs of life on as this one's.
    fn text_when_free(&self, watch: &mut Watch<'_>) -> Result<MutexGuard<'_, Text>, RenderError> {
        const LOOK_AGAIN: Duration = Duration::from_millis(10);
        let mut n_seen = self.n_encoded.load(Ordering::Relaxed);
        loop {
            match self.text.try_lock() {
                Ok(text) => return Ok(text),
                // What a thread that died had taken out is read again.
                Err(TryLockError::Poisoned(text)) => return Ok(text.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
            }
            let n_encoded = self.n_encoded.load(Ordering::Relaxed);
            if std::mem::replace(&mut n_seen, n_encoded) != n_encoded {
                go_on(watch(Progress::Encoding))?;
            }
        }
    }

    /// The text encoder, read from its files.
    fn text_encoder(&self, watch: &mut Watch<'_>) -> Result<TextEncoder, RenderError> {
        let (watch, is_off) = (Mutex::new(watch), AtomicBool::new(false));
        let read = || {
            self.n_encoded.fetch_add(1, Ordering::Relaxed);
            let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
            let flow = watch(Progress::Encoding);
            is_off.fetch_or(flow.is_break(), Ordering::Relaxed);
            flow
        };
        let encoder = TextEncoder::load(&self.folder.text_config, &self.folder.text, &read);
        if is_off.load(Ordering::Relaxed) { Err(RenderError::Cancelled) } else { Ok(encoder?) }
    }

    /// From noise `[4, rows, cols]` to a clean latent of that shape. `captions`: the prompt's, then the negative's.
    fn denoise(
        &self,
        request: &RenderRequest,
        mut x: Tensor,
        captions: &[Vec<CaptionKeys>],
        watch: &mut Watch<'_>,
    ) -> Result<Tensor, RenderError> {
        let steps = request.steps as usize;
        let mut sampler = Sampler::new(&self.folder.schedule, steps);
        for step in 0..steps {
            let t = sampler.timesteps()[step];
            let predict = |caption| self.predict(&x, t, caption).map_err(|error| at_step(error, step, request));
            let mut noise = predict(&captions[0])?;
            if let Some(negative) = captions.get(1) {
                // Two forwards of one picture each, never one of two: other shapes may mean other bits.
                let without = predict(negative)?;
                noise = (&without + ((noise - &without)? * request.guidance)?)?;
            }
            let (next, clean) = sampler.step(step, &x, &noise)?;
            x = next;
            crate::finite::check(std::slice::from_ref(&x), || "latents".into())
                .map_err(|error| at_step(error, step, request))?;
            go_on(watch(Progress::Step { step, steps, latents: &x.unsqueeze(0)?, clean: &clean.unsqueeze(0)? }))?;
        }
        Ok(x)
    }

    /// Noise predicted in `x` `[4, rows, cols]`.
    fn predict(&self, x: &Tensor, t: usize, caption: &[CaptionKeys]) -> Result<Tensor, ForwardError> {
        let all = self.forward(x, t, caption)?;
        Ok(all.narrow(0, 0, x.dim(0)?)?.contiguous()?)
    }

    fn forward(&self, x: &Tensor, t: usize, caption: &[CaptionKeys]) -> Result<Tensor, ForwardError> {
        let (_, rows, cols) = x.dims3()?;
        let grid = plan::LatentSize { rows, cols }.tokens();
        self.dit.forward(x, RowRange::all(grid.rows), grid, t, caption, &mut WholeSequence)
    }

    /// All eight channels the transformer predicts for `latents` `[1, 4, rows, cols]` at timestep `t` under the
    /// prompt of `request`, `[1, 8, rows, cols]`: what reference values of single forwards are compared with.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn forward_once(&self, request: &RenderRequest, latents: &Tensor, t: usize) -> Result<Tensor, RenderError> {
        let embeds = self.encode(&[("prompt", &request.prompt)], request, &mut |_| ControlFlow::Continue(()))?;
        let caption = self.dit.caption(&embeds[0])?;
        let forward = self.forward(&latents.squeeze(0)?, t, &caption).map_err(|error| at_step(error, 0, request))?;
        Ok(forward.unsqueeze(0)?)
    }

    /// Latents `[1, 4, rows, cols]` to a picture `[1, 3, height, width]` f32 in 0..1.
    ///
    /// # Errors
    /// If a value stops being finite or `watch` breaks off.
    pub fn decode(&self, latents: &Tensor, watch: &mut Watch<'_>) -> Result<Tensor, RenderError> {
        let total = self.decoder.n_parts();
        let mut part_done = |done: usize| watch(Progress::Decode { done, total });
        let pixels = self.decoder.decode(&latents.squeeze(0)?, &mut WholePicture, &mut part_done);
        let pixels = pixels.map_err(|error| match error {
            ForwardError::NotFinite { tensor } => RenderError::DecodeNotFinite { tensor },
            ForwardError::Cancelled => RenderError::Cancelled,
            ForwardError::Tensor(error) => error.into(),
        })?;
        Ok(vae::picture(&pixels)?)
    }
}

fn go_on(flow: ControlFlow<()>) -> Result<(), RenderError> {
    if flow.is_break() { Err(RenderError::Cancelled) } else { Ok(()) }
}

fn at_step(error: ForwardError, step: usize, request: &RenderRequest) -> RenderError {
    match error {
        ForwardError::NotFinite { tensor } => {
            RenderError::NotFinite { step: step + 1, steps: request.steps as usize, tensor }
        }
        ForwardError::Cancelled => RenderError::Cancelled,
        ForwardError::Tensor(error) => error.into(),
    }
}

fn check_latents(latents: &Tensor, dims: (usize, usize, usize, usize)) -> Result<Tensor, RenderError> {
    let expected = [dims.0, dims.1, dims.2, dims.3];
    if latents.dims() != expected || latents.dtype() != DType::F32 {
        let found = format!("{:?} of shape {:?}", latents.dtype(), latents.dims());
        return Err(RenderError::Latents(format!("expected f32 of shape {expected:?}, got {found}")));
    }
    let latents = latents.to_device(&Device::Cpu)?.contiguous()?;
    crate::finite::check(std::slice::from_ref(&latents), || "latents".into())
        .map_err(|_| RenderError::Latents("they hold a value that is not finite".into()))?;
    Ok(latents)
}
