"""Trains the demo model from nothing to a model folder: VAE, latents, transformer with text encoder, repair, export.

    train.py --work DIR --out DIR [--shrink N] [--grow X]
    train.py --dry-run [--hours H]        only says what it costs, and with H what the transformer reaches in that time here

Says first what it will cost. Stopped at any time, it goes on from its last checkpoint when started again with the same
`--work`. Uses a GPU if there is one. With `torchrun --nproc-per-node N train.py ...`, N processes share the transformer's
batches; run it alone first until the latents are made.
"""

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

import latents
import networks
import train_dit
import train_repair
import train_vae
from export import export
from networks import build_vae
from recipe import CROP_SECONDS, DECODER_SECONDS, DIT_SECONDS, DIT_STAGES, LATENTS_FROM, REPAIR, REPAIR_SECONDS, VAE_STAGES
from sampler import Sampler
from tokenizer import build as build_tokenizer
from train_vae import WHOLE

MOST_PICTURES = 4  # rendering them takes a CPU, however fast the GPU is


def dit_seconds(stage):
    """Estimated seconds of one core for a stage of the transformer."""
    step_seconds = 0.0
    for mix in stage.mixes:
        n_pixels = mix.pool.width * mix.pool.height
        picture_seconds = next((seconds for largest, seconds in DIT_SECONDS if n_pixels <= largest), DIT_SECONDS[-1][1])
        step_seconds += mix.share * mix.batch * picture_seconds
    return stage.steps * step_seconds / sum(mix.share for mix in stage.mixes)


def vae_seconds(stage):
    """Estimated seconds of one core for a stage of the VAE."""
    if stage.kind == "crops":
        return stage.steps * stage.batch * CROP_SECONDS
    return stage.steps * DECODER_SECONDS * sum(count * share for _, _, count, share in WHOLE)


def measured_seconds(mix, device):
    """Seconds of one step of the mix on this device, the second of two; random latents, captions of 16 tokens."""
    transformer, text_encoder = networks.build_transformer(True).to(device), networks.build_text_encoder().to(device)
    latents = torch.randn(mix.batch, 4, mix.pool.height // 8, mix.pool.width // 8, device=device)
    ids = torch.randint(3, networks.VOCABULARY, (mix.batch, 16), device=device)
    timesteps = torch.randint(train_dit.N_TIMESTEPS, (mix.batch,), device=device)
    for _ in range(2):
        started = time.time()
        with networks.autocast(device):
            embeds = text_encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            predicted = networks.predict_noise(transformer, latents, timesteps, embeds, torch.ones_like(ids))
        predicted.float().pow(2).mean().backward()
        predicted.sum().item()  # waits for a GPU
        seconds = time.time() - started
    return seconds


def print_reach(stages, hours, device):
    """Says how many times the stages' steps fit into `hours` of this device, by the measured speed of every size."""
    by_mix, seconds, pictures = {}, 0.0, 0.0
    for stage in stages:
        total = sum(mix.share for mix in stage.mixes)
        for mix in stage.mixes:
            key = (mix.pool.width, mix.pool.height, mix.batch)
            if key not in by_mix:
                by_mix[key] = measured_seconds(mix, device)
                print(f"  {key[0]}x{key[1]}: {by_mix[key] / mix.batch:.4f} s a picture", flush=True)
            steps = stage.steps * mix.share / total
            seconds, pictures = seconds + steps * by_mix[key], pictures + steps * mix.batch
    times = hours * 3600 / seconds
    print(f"The recipe shows the transformer {pictures:.0f} pictures, {seconds / 3600:.2f} hours of this device.")
    print(f"{hours:g} hours are {times:.2f} times that, {pictures * times:.0f} pictures: --grow {times:.2f}. The rest comes on top.")


def print_costs(dit_stages, device):
    print(f"device: {device}. Estimated on one core of a 2025 server CPU; a GPU takes a small part of it.")
    costs = [(stage.name, vae_seconds(stage)) for stage in VAE_STAGES] + [(stage.name, dit_seconds(stage)) for stage in dit_stages]
    costs.append((REPAIR.name, REPAIR.steps * REPAIR_SECONDS))
    for name, seconds in costs:
        print(f"  {name:10} {seconds / 60:6.0f} min")
    print(f"  {'in all':10} {sum(seconds for _, seconds in costs) / 60:6.0f} min, and about 15 min for the latents")


def finished(checkpoint, steps):
    return checkpoint.exists() and torch.load(checkpoint, map_location="cpu")["step"] >= steps


def grown(stage, times):
    """The stage with so many times its steps, and as many times the pictures to learn from, but at most `MOST_PICTURES` times."""
    mixes = (replace(mix, pool=replace(mix.pool, count=round(mix.pool.count * min(times, MOST_PICTURES)))) for mix in stage.mixes)
    return replace(stage, steps=max(2, round(stage.steps * times)), mixes=tuple(mixes))


def shrunk(stage, n):
    """The stage with an N-th of its steps and, of each size, an N-th of the pictures."""
    stage = replace(stage, steps=max(2, stage.steps // n))
    if hasattr(stage, "mixes"):
        mixes = (replace(mix, pool=replace(mix.pool, count=max(4, mix.pool.count // n))) for mix in stage.mixes)
        stage = replace(stage, mixes=tuple(mixes))
    return stage


def train_vae_stages(stages, work, device):
    """Runs what is not finished; returns the checkpoint of the last stage and of the one latents come from."""
    start_from, checkpoints = None, {}
    for stage in stages:
        checkpoint = work / f"vae-{stage.name}.pt"
        if not finished(checkpoint, stage.steps):
            run = train_vae.train_on_crops if stage.kind == "crops" else train_vae.train_decoder
            run(stage, checkpoint, start_from, device)
        start_from = checkpoints[stage.name] = checkpoint
    return start_from, checkpoints[LATENTS_FROM]


def make_pools(stages, work, vae_checkpoint, device):
    """Latents for every stage, those that are not on disk yet; returns the VAE's scaling factor."""
    vae = build_vae()
    vae.load_state_dict(torch.load(vae_checkpoint)["ema"])
    vae.eval().to(device, memory_format=torch.channels_last)
    scaling_factor = train_vae.latent_scale(vae, device)
    vae.register_to_config(scaling_factor=scaling_factor)
    for stage in stages:
        for pool in (mix.pool for mix in stage.mixes):
            path = work / f"{pool.name}.pt"
            if not path.exists():
                latents.make(vae, pool.width, pool.height, pool.count, pool.seed, path, device)
    return scaling_factor


def sampler_of(vae_state, transformer_state, scaling_factor, tokenizer, device):
    """The averages of both checkpoints, put together to draw pictures."""
    vae, transformer, text_encoder = build_vae(), networks.build_transformer(True), networks.build_text_encoder()
    vae.load_state_dict(vae_state["ema"])
    vae.register_to_config(scaling_factor=scaling_factor)
    networks.load_transformer(transformer, transformer_state["ema_dit"])
    text_encoder.load_state_dict(transformer_state["ema_t5"])
    return Sampler(tokenizer, text_encoder, transformer, vae, device)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="checkpoints and latents; gigabytes are not needed")
    parser.add_argument("--out", type=Path, help="the model folder to write")
    parser.add_argument("--shrink", type=int, default=1, help="an N-th of the steps and pictures: tries the scripts, no more")
    parser.add_argument("--grow", type=float, default=1.0, help="so many times the steps of the transformer's stages")
    parser.add_argument("--hours", type=float, help="with --dry-run: measure this device, and say what it would reach")
    parser.add_argument("--dry-run", action="store_true", help="only say what it would cost")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads on a CPU")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(arguments.threads)
    dit_stages = [grown(stage, arguments.grow) for stage in DIT_STAGES]
    if int(os.environ.get("RANK", "0")) == 0:
        print_costs(dit_stages, device)
    if arguments.dry_run:
        if arguments.hours:
            print_reach(dit_stages, arguments.hours, device)
        return
    if not (arguments.work and arguments.out):
        parser.error("--work and --out say where to")
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)

    vae_stages, dit_stages = ([shrunk(stage, arguments.shrink) for stage in stages] for stages in (VAE_STAGES, dit_stages))
    vae_checkpoint, latents_checkpoint = train_vae_stages(vae_stages, arguments.work, device)
    scaling_factor = make_pools(dit_stages, arguments.work, latents_checkpoint, device)
    tokenizer = build_tokenizer()
    start_from = None
    for stage in dit_stages:
        checkpoint = arguments.work / f"dit-{stage.name}.pt"
        if not finished(checkpoint, stage.steps):
            pools = [arguments.work / f"{mix.pool.name}.pt" for mix in stage.mixes]
            train_dit.train(stage, pools, checkpoint, start_from, tokenizer, device)
        start_from = checkpoint
    if int(os.environ.get("RANK", "0")) == 0:
        repaired = arguments.work / f"vae-{REPAIR.name}.pt"
        repair = shrunk(REPAIR, arguments.shrink)
        if not finished(repaired, repair.steps):
            sampler = sampler_of(torch.load(vae_checkpoint), torch.load(start_from), scaling_factor, tokenizer, device)
            train_repair.train_repair(repair, repaired, sampler, device)
        export(torch.load(repaired), torch.load(start_from), arguments.out, scaling_factor)


if __name__ == "__main__":
    main()
