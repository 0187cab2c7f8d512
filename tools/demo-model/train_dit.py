"""Trains transformer and text encoder together for one stage of the recipe.

Noise prediction with min-SNR weights (gamma 5); a tenth of the captions are left empty, for guidance; moving averages of
the weights are what is shipped. Timesteps are spread evenly over a batch, and for larger pictures moved towards the
noisy end (`shift`), where the composition is decided.

A stage resumes from its checkpoint: data and noise of a step depend on the stage's name and the step alone. Under
torchrun several processes share a batch.
"""

import copy
import hashlib
import math
import os
import time

import numpy as np
import torch
import torch.distributed as dist

import networks
from tokenizer import EOS_ID, PAD_ID, encode

CHECKPOINT_STEPS = 200
REPORT_STEPS = 50
EMPTY_SHARE = 0.1
GAMMA = 5
N_TIMESTEPS = 1000
WARMUP_STEPS = 100
LONGEST_AVERAGE = 0.999


def signal_share():
    """Cumulative product of 1 - beta for the linear betas 1e-4 to 0.02."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, N_TIMESTEPS, dtype=torch.float64), 0).float()


class Pool:
    """The latents and token ids of one size."""

    def __init__(self, path, tokenizer):
        self.latents, captions = torch.load(path)
        self.ids, self.mask = encode(tokenizer, captions)

    def batch(self, size):
        """A random batch: latents, ids and mask, some captions emptied, cut to the longest caption."""
        picks = torch.randint(len(self.latents), (size,))
        latents, ids, mask = self.latents[picks].float(), self.ids[picks].clone(), self.mask[picks].clone()
        empty = torch.rand(size) < EMPTY_SHARE
        ids[empty], mask[empty] = PAD_ID, 0
        ids[empty, 0], mask[empty, 0] = EOS_ID, 1
        longest = int(mask.sum(1).max())
        return latents, ids[:, :longest], mask[:, :longest]


class Stage:
    """Weights, their moving averages and the optimiser of one stage, with what is needed to go on after a stop."""

    def __init__(self, plan, checkpoint, start_from, device):
        self.plan, self.checkpoint, self.device, self.step = plan, checkpoint, device, 0
        self.transformer = networks.build_transformer(plan.compressed, plan.sample_size)
        self.text_encoder = networks.build_text_encoder()
        resumed = checkpoint.exists()
        state = torch.load(checkpoint if resumed else start_from) if resumed or start_from else None
        if state:
            networks.load_transformer(self.transformer, state["dit" if resumed else "ema_dit"])
            self.text_encoder.load_state_dict(state["t5" if resumed else "ema_t5"])
        self.transformer.to(device), self.text_encoder.to(device)
        self.average_transformer, self.average_text_encoder = copy.deepcopy(self.transformer), copy.deepcopy(self.text_encoder)
        self.weights = [*self.transformer.parameters(), *self.text_encoder.parameters()]
        self.averages = [*self.average_transformer.parameters(), *self.average_text_encoder.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, plan.rate, betas=(0.9, 0.98), weight_decay=0.01)
        if resumed:
            networks.load_transformer(self.average_transformer, state["ema_dit"])
            self.average_text_encoder.load_state_dict(state["ema_t5"])
            self.optimizer.load_state_dict(state["opt"])
            self.step = state["step"]

    def save(self):
        partial = self.checkpoint.with_suffix(".partial")
        parts = {"dit": self.transformer, "t5": self.text_encoder, "opt": self.optimizer}
        parts |= {"ema_dit": self.average_transformer, "ema_t5": self.average_text_encoder}
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": self.step}, partial)
        partial.rename(self.checkpoint)

    def rate(self):
        """Learning rate of this step: a short warm-up, then half a cosine to the stage's last rate."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.step / self.plan.steps))
        rate = self.plan.last_rate + (self.plan.rate - self.plan.last_rate) * cosine
        return rate * min(1, (self.step + 1) / WARMUP_STEPS)

    def loss(self, pool, size, alphas):
        """Weighted error of one batch of `size` pictures."""
        latents, ids, mask = (tensor.to(self.device) for tensor in pool.batch(size))
        even = (torch.arange(size) + torch.rand(size)) / size
        shifted = self.plan.shift * even / (1 + (self.plan.shift - 1) * even)
        timesteps = (shifted * N_TIMESTEPS).long().clamp(0, N_TIMESTEPS - 1)
        noise = torch.randn(latents.shape).to(self.device)
        alpha = alphas[timesteps].to(self.device)
        share = alpha[:, None, None, None]
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        with networks.autocast(self.device):
            embeds = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            predicted = networks.predict_noise(self.transformer, noisy, timesteps.to(self.device), embeds, mask)
        weight = torch.clamp(GAMMA * (1 - alpha) / alpha, max=1.0)
        return (weight * (predicted.float() - noise).pow(2).mean((1, 2, 3))).sum() / size * 1.6

    def learn(self, loss, n_ranks):
        """One step of the optimiser, and of the averages behind it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad()
        loss.backward()
        if n_ranks > 1:
            for weight in self.weights:
                if weight.grad is not None:
                    dist.all_reduce(weight.grad)
                    weight.grad /= n_ranks
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(LONGEST_AVERAGE, (1 + self.step) / (20 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 1 - keep)


def train(plan, pool_paths, checkpoint, start_from, tokenizer, device):
    """Runs the stage to its end, or on from its checkpoint."""
    rank, n_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if n_ranks > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
    seed = int(hashlib.sha256(plan.name.encode()).hexdigest()[:8], 16)
    alphas = signal_share()
    pools = [Pool(path, tokenizer) for path in pool_paths]
    shares = np.array([mix.share for mix in plan.mixes], float)
    shares /= shares.sum()
    torch.manual_seed(seed)
    stage = Stage(plan, checkpoint, start_from, device)
    started, first_step, mean_loss = time.time(), stage.step, None
    while stage.step < plan.steps:
        pick = np.random.default_rng([seed, stage.step]).choice(len(pools), p=shares)
        torch.manual_seed((seed * 1000003 + stage.step * n_ranks + rank) % (1 << 62))
        loss = stage.loss(pools[pick], plan.mixes[pick].batch, alphas)
        stage.learn(loss, n_ranks)
        mean_loss = loss.item() if mean_loss is None else 0.99 * mean_loss + 0.01 * loss.item()
        if rank == 0 and stage.step % REPORT_STEPS == 0:
            speed = (stage.step - first_step) / (time.time() - started)
            print(f"{plan.name} {stage.step}/{plan.steps} loss {mean_loss:.4f}, {speed:.2f} steps a second", flush=True)
        if rank == 0 and (stage.step % CHECKPOINT_STEPS == 0 or stage.step == plan.steps):
            stage.save()
