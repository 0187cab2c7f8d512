"""Training sets for the transformer: pictures of the world, encoded once and kept on disk as latents with captions.

One file per size: a tuple of the latents (fp16 [n, 4, h, w], scaled) and the list of n captions.
"""

import time

import numpy as np
import torch

from networks import autocast
from world import caption, render, sample_attributes


def as_tensor(pictures):
    """uint8 pictures of one size as [n, 3, h, w] in -1..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def make(vae, width, height, count, seed, path, device):
    """Draws `count` pictures, encodes them with the VAE's mean and writes them to `path`."""
    rng = np.random.default_rng([seed, width, height])
    batch_size = max(1, 16 * 65536 // (width * height))
    started = time.time()
    latents, captions, pictures = [], [], []
    for index in range(count):
        attributes = sample_attributes(rng)
        pictures.append(render(attributes, int(rng.integers(1 << 30)), width, height))
        captions.append(caption(attributes, rng))
        if len(pictures) == batch_size or index == count - 1:
            batch = as_tensor(pictures).to(device, memory_format=torch.channels_last)
            with torch.no_grad(), autocast(device):
                mean = vae.encode(batch).latent_dist.mean
            latents.append((mean.float() * vae.config.scaling_factor).half().cpu())
            pictures = []
    partial = path.with_suffix(".partial")
    torch.save((torch.cat(latents), captions), partial)
    partial.rename(path)
    print(f"{path.name}: {count} pictures of {width}x{height} in {time.time() - started:.0f} s", flush=True)
