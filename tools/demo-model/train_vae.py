"""Trains the VAE: first all of it on crops, then the decoder alone on whole pictures.

Crops teach texture cheaply, but over whole pictures the decoder's group norms and its attention see other statistics,
which shows as a cast of colour. The second part ends that; it leaves the encoder as it is, so latents do not move and
the transformer can be trained meanwhile.
"""

import copy
import math
import time

import numpy as np
import torch

from latents import as_tensor
from networks import autocast, build_vae
from world import render, sample_attributes

CHECKPOINT_STEPS = 200
REPORT_STEPS = 100
# Whole pictures: width, height, how many at once, share of the steps.
WHOLE = [(256, 256, 4, 0.45), (320, 208, 4, 0.14), (208, 320, 4, 0.14), (384, 384, 2, 0.12), (512, 288, 2, 0.05), (512, 512, 1, 0.10)]


def random_pictures(rng, width, height, count):
    return [render(sample_attributes(rng), int(rng.integers(1 << 30)), width, height) for _ in range(count)]


def edges(difference):
    """Mean error of the differences between neighbouring pixels: keeps edges where they are."""
    across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return across + (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()


def save(path, vae, average, optimizer, step):
    partial = path.with_suffix(".partial")
    state = {"vae": vae.state_dict(), "ema": average.state_dict(), "opt": optimizer.state_dict(), "step": step}
    torch.save(state, partial)
    partial.rename(path)


def start(path, start_from):
    """The VAE, its moving average and the state to resume from: of `path` if it exists, else the averages of `start_from`."""
    vae = build_vae().to(memory_format=torch.channels_last)
    state = torch.load(path) if path.exists() else None
    if state:
        vae.load_state_dict(state["vae"])
    elif start_from:
        vae.load_state_dict(torch.load(start_from)["ema"])
    average = copy.deepcopy(vae)
    if state:
        average.load_state_dict(state["ema"])
    return vae, average, state


def crop(picture, rng, size):
    y, x = (int(rng.integers(0, side - size + 1)) for side in picture.shape[:2])
    part = picture[y : y + size, x : x + size]
    return part[:, ::-1] if rng.random() < 0.5 else part


def train_on_crops(plan, path, start_from, device):
    """Encoder and decoder on crops of `plan.side` from 900 pictures of three sizes and 24 of 1024x1024."""
    rng = np.random.default_rng(7)
    pool = []
    for _ in range(900):
        side = int(rng.choice([192, 256, 384]))
        pool += random_pictures(rng, side, side, 1)
    pool += random_pictures(rng, 1024, 1024, 24)

    vae, _, state = start(path, start_from)
    vae.to(device)
    optimizer = torch.optim.AdamW(vae.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    if state:
        optimizer.load_state_dict(state["opt"])
    for step in range(state["step"] if state else 0, plan.steps):
        rng = np.random.default_rng([plan.side, step])
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * min(1, step / 100) * (0.97 * 0.5 * (1 + math.cos(math.pi * step / plan.steps)) + 0.03)
        parts = [crop(pool[rng.integers(len(pool))], rng, plan.side) for _ in range(plan.batch)]
        batch = as_tensor(parts).to(device, memory_format=torch.channels_last)
        posterior = vae.encode(batch).latent_dist
        difference = vae.decode(posterior.sample()).sample - batch
        loss = difference.abs().mean() + 0.7 * edges(difference) + 1e-5 * posterior.kl().mean() / plan.side**2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % REPORT_STEPS == 0:
            print(f"{plan.name} {step + 1}/{plan.steps} loss {loss.item():.4f}", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == plan.steps:
            save(path, vae, vae, optimizer, step + 1)


def train_decoder(plan, path, start_from, device):
    """The decoder on whole pictures of several sizes, drawn anew for every step; error, edges and log of the square."""
    vae, average, state = start(path, start_from)
    vae.to(device), average.to(device)
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    pairs = [(weight, mean) for weight, mean in zip(vae.parameters(), average.parameters()) if weight.requires_grad]
    weights, averages = [weight for weight, _ in pairs], [mean for _, mean in pairs]
    optimizer = torch.optim.AdamW(weights, plan.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    if state:
        optimizer.load_state_dict(state["opt"])
    step, mean_psnr, started = state["step"] if state else 0, None, time.time()
    while step < plan.steps:
        rng = np.random.default_rng([4242, step])
        torch.manual_seed(4242000 + step)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            group["lr"] = plan.rate * min(1, (step + 1) / 50) * (0.98 * cosine + 0.02)
        width, height, count, _ = WHOLE[rng.choice(len(WHOLE), p=[share for *_, share in WHOLE])]
        batch = as_tensor(random_pictures(rng, width, height, count))
        if rng.random() < 0.5:
            batch = batch.flip(3)
        batch = batch.to(device, memory_format=torch.channels_last)
        with autocast(device):
            with torch.no_grad():
                posterior = vae.encode(batch).latent_dist
                latents = posterior.sample() if step % 2 else posterior.mean
            decoded = vae.decode(latents).sample
        difference = decoded.float() - batch
        square = difference.pow(2).mean((1, 2, 3))
        loss = difference.abs().mean() + 0.25 * edges(difference) + 0.02 * torch.log(square + 1e-5).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(0.995, (1 + step) / (10 + step)))
        psnr = (-10 * torch.log10(square.detach() / 4)).mean().item()
        mean_psnr = psnr if mean_psnr is None else 0.98 * mean_psnr + 0.02 * psnr
        if step % REPORT_STEPS == 0:
            print(f"{plan.name} {step}/{plan.steps} PSNR {mean_psnr:.2f} dB, {time.time() - started:.0f} s", flush=True)
        if step % CHECKPOINT_STEPS == 0 or step == plan.steps:
            save(path, vae, average, optimizer, step)


def latent_scale(vae, device):
    """1 / standard deviation of latents, from 64 crops' worth of pictures: the VAE's scaling factor."""
    rng = np.random.default_rng(8)
    batch = as_tensor(random_pictures(rng, 128, 128, 64)).to(device)
    with torch.no_grad():
        return round(1 / vae.encode(batch).latent_dist.mean.std().item(), 5)
