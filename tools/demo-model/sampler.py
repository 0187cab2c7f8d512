"""The training code's own sampler: what `fresco render` is compared with.

Captions to pictures with DPM-Solver++ of diffusers and classifier-free guidance, many pictures at a time.
"""

import torch
from diffusers import DPMSolverMultistepScheduler

from networks import autocast, predict_noise
from tokenizer import encode

STEPS, GUIDANCE = 12, 4.5
PIXELS_AT_ONCE = 32 * 256 * 256


def noise(width, height, seed):
    """The noise `fresco render` begins with for this seed: f32 [4, h, w]."""
    return torch.randn(1, 4, height // 8, width // 8, generator=torch.Generator("cpu").manual_seed(seed))[0]


def solver_of(steps):
    solver = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    solver.set_timesteps(steps)
    return solver


class Sampler:
    """The parts needed for a picture, in evaluation mode on one device."""

    def __init__(self, tokenizer, text_encoder, transformer, vae, device, fast=True):
        """`fast` computes in bfloat16 where autocast allows; without it everything is float32."""
        self.tokenizer, self.device, self.fast = tokenizer, device, fast
        self.text_encoder, self.transformer, self.vae = (part.eval().to(device) for part in (text_encoder, transformer, vae))

    def autocast(self):
        return autocast(self.device, self.fast)

    def embed(self, captions):
        ids, mask = (tensor.to(self.device) for tensor in encode(self.tokenizer, captions))
        with self.autocast():
            return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    @torch.no_grad()
    def denoise(self, captions, latents, steps=STEPS, guidance=GUIDANCE, first=0):
        """From noise [n, 4, h, w] to latents, before the VAE's scaling is undone.

        With `first`, the latents are those of pictures with noise as the step of that number finds it. Without guidance
        (1 or less) the empty caption is not asked.
        """
        embeds, mask = self.embed(captions)
        empty_embeds, empty_mask = self.embed([""] * len(captions))
        solver = solver_of(steps)
        solver.set_begin_index(first)
        latents = latents.to(self.device)
        for timestep in solver.timesteps[first:]:
            timesteps = timestep.expand(len(captions)).to(self.device)
            with self.autocast():
                predicted = predict_noise(self.transformer, latents, timesteps, embeds, mask).float()
                if guidance > 1:
                    without = predict_noise(self.transformer, latents, timesteps, empty_embeds, empty_mask).float()
                    predicted = without + guidance * (predicted - without)
            latents = solver.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def redraw(self, captions, latents, steps, first, guidance):
        """The pictures' latents [n, 4, h, w] with noise and drawn again from step `first` on: what is in them stays."""
        solver = solver_of(steps)
        noisy = solver.add_noise(latents, torch.randn(latents.shape).to(latents.device), solver.timesteps[first : first + 1])
        return self.denoise(captions, noisy, steps, guidance, first)

    @torch.no_grad()
    def decode(self, latents):
        """Pictures f32 [n, 3, H, W] in 0..1, one at a time."""
        pictures = []
        for latent in latents.split(1):
            with self.autocast():
                pictures.append(self.vae.decode(latent / self.vae.config.scaling_factor).sample.float())
        return (torch.cat(pictures).clamp(-1, 1) + 1) / 2

    def pictures(self, captions, seeds, width, height, steps=STEPS, guidance=GUIDANCE):
        """uint8 [n, 3, H, W]: one picture for each caption and seed."""
        at_once = max(1, min(32, PIXELS_AT_ONCE // (width * height)))
        result = []
        for first in range(0, len(captions), at_once):
            part = slice(first, first + at_once)
            latents = torch.stack([noise(width, height, seed) for seed in seeds[part]])
            decoded = self.decode(self.denoise(captions[part], latents, steps, guidance))
            result.append((decoded * 255).round().byte().cpu())
        return torch.cat(result)
