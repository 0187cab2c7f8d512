"""Teaches the VAE's decoder to mend what the transformer draws, after both have been trained.

A small transformer knows where things are, but not to the pixel where they end: rims fray into blocks of a token's size.
Here a true picture's latents get noise and are drawn again by the transformer from the middle of the schedule on. What
comes out has the true picture's contents and the transformer's flaws; the decoder learns to give the true picture for it.
A share of the latents stays as the encoder made them, so that encoding and decoding stays exact. The encoder does not
move, so the transformer's latents stay what they are.

    train_repair.py --model DIR --work DIR [--steps N] [--look hard]    starts from a model folder, with no other stage

Pictures are drawn anew all the time, each is used a few times. A step's draws depend on its number alone; after a stop
the last pictures are drawn again.
"""

import argparse
import copy
import math
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch

from latents import as_tensor
from recipe import REPAIR, RepairStage
from train_vae import edges, save
from world import SIDE_X, caption, render, sample_attributes

CHECKPOINT_STEPS = 50
REPORT_STEPS = 10
# Every so many steps a new picture joins the last KEPT ones.
STEPS_A_PICTURE = 2
KEPT = 150
CLEAN_SHARE = 0.2
REDRAW_STEPS = 10
LONGEST_AVERAGE = 0.99
CROP = 32  # of latents
# Width, height, whether cropped to 256x256, how many at once, share of the steps.
KINDS = [(512, 512, True, 2, 0.6), (512, 512, False, 1, 0.2), (256, 256, False, 2, 0.15), (320, 208, False, 2, 0.05)]


class Picture:
    """A true picture in the soft look [3, h, w] in -1..1, its latents, and latents redrawn by the transformer."""

    def __init__(self, sampler, rng, width, height, look):
        attributes, seed = sample_attributes(rng), int(rng.integers(1 << 30))
        looks = {name: as_tensor([render(attributes, seed, width, height, name)]).to(sampler.device) for name in {"soft", look}}
        scale = sampler.vae.config.scaling_factor
        with torch.no_grad(), sampler.autocast():
            latents = {name: sampler.vae.encode(picture).latent_dist.mean.float() * scale for name, picture in looks.items()}
        first = int(rng.integers(4, 8))
        guidance = 1.0 if rng.random() < 0.4 else 2 + 2.5 * rng.random()
        self.true, self.clean = looks["soft"][0], latents["soft"][0] / scale
        self.redrawn = sampler.redraw([caption(attributes)], latents[look], REDRAW_STEPS, first, guidance)[0] / scale
        self.body_x = SIDE_X.get(attributes.side)

    def pair(self, rng, cropped):
        """Latents and the picture they should decode to; half of the crops of a picture with a body show it."""
        latents = self.clean if rng.random() < CLEAN_SHARE else self.redrawn
        if not cropped:
            return latents, self.true
        rows, columns = latents.shape[1:]
        y, x = int(rng.integers(rows - CROP + 1)), int(rng.integers(columns - CROP + 1))
        if self.body_x and rng.random() < 0.5:
            y = int(rng.integers(rows // 8 + 1))
            x = int(np.clip(self.body_x * columns - CROP * (0.25 + 0.5 * rng.random()), 0, columns - CROP))
        return latents[:, y : y + CROP, x : x + CROP], self.true[:, 8 * y : 8 * (y + CROP), 8 * x : 8 * (x + CROP)]


class Gallery:
    """The last pictures of every size."""

    def __init__(self, sampler, look):
        self.sampler, self.look, self.pictures = sampler, look, {}

    def batch(self, step, rng, kind):
        width, height, cropped, count, _ = kind
        kept = self.pictures.setdefault((width, height), deque(maxlen=KEPT))
        if step % STEPS_A_PICTURE == 0 or len(kept) < 2:
            kept.append(Picture(self.sampler, rng, width, height, self.look))
        newest = [kept[-1]] if step % STEPS_A_PICTURE == 0 else []
        chosen = newest + [kept[rng.integers(len(kept))] for _ in range(count - len(newest))]
        latents, true = zip(*(picture.pair(rng, cropped) for picture in chosen))
        return torch.stack(latents), torch.stack(true)


def train_repair(plan: RepairStage, checkpoint, sampler, device):
    """Trains a copy of the sampler's decoder; the sampler, which redraws, keeps its own."""
    vae = copy.deepcopy(sampler.vae).to(memory_format=torch.channels_last)
    state = torch.load(checkpoint) if checkpoint.exists() else None
    if state:
        vae.load_state_dict(state["vae"])
    average = copy.deepcopy(vae)
    if state:
        average.load_state_dict(state["ema"])
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    averages = [mean for weight, mean in zip(vae.parameters(), average.parameters()) if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, plan.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    if state:
        optimizer.load_state_dict(state["opt"])
    gallery, shares = Gallery(sampler, plan.look), [share for *_, share in KINDS]
    step, mean_loss, started = state["step"] if state else 0, None, time.process_time()
    while step < plan.steps:
        rng = np.random.default_rng([5151, step])
        torch.manual_seed(5151000 + step)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            group["lr"] = plan.rate * min(1, (step + 1) / 20) * (0.97 * cosine + 0.03)
        latents, true = gallery.batch(step, rng, KINDS[rng.choice(len(KINDS), p=shares)])
        with sampler.autocast():
            decoded = vae.decode(latents.to(memory_format=torch.channels_last)).sample
        difference = decoded.float() - true
        square = difference.pow(2).mean((1, 2, 3))
        loss = difference.abs().mean() + 0.25 * edges(difference) + 0.02 * torch.log(square + 1e-5).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - min(LONGEST_AVERAGE, (1 + step) / (10 + step)))
        mean_loss = loss.item() if mean_loss is None else 0.97 * mean_loss + 0.03 * loss.item()
        if step % REPORT_STEPS == 0:
            print(f"{plan.name} {step}/{plan.steps} loss {mean_loss:.4f}, {time.process_time() - started:.0f} s of a core", flush=True)
        if step % CHECKPOINT_STEPS == 0 or step == plan.steps:
            save(checkpoint, vae, average, optimizer, step)


def main():
    from evaluate import load_sampler

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the model folder whose decoder is trained")
    parser.add_argument("--work", type=Path, required=True, help="where the checkpoint is kept")
    parser.add_argument("--steps", type=int, default=REPAIR.steps)
    parser.add_argument("--look", choices=["soft", "hard"], default=REPAIR.look, help="the look the transformer was trained on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads on a CPU")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments.work.mkdir(parents=True, exist_ok=True)
    plan = RepairStage(REPAIR.name, arguments.steps, REPAIR.rate, arguments.look)
    train_repair(plan, arguments.work / f"vae-{plan.name}.pt", load_sampler(arguments.model, device), device)


if __name__ == "__main__":
    main()
