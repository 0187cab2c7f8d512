"""PyTorch and diffusers on the GPU that `fresco bench … --device cuda:0` measures: the same sizes, bf16, random weights.

    gpu.py [--device cuda:0] [--small] [--runs 5]

One line a measurement: what, median seconds, and peak memory. --small shrinks everything, to try the script on a CPU.
What takes more than a second is warmed up once and run twice. What matters most comes first, for whoever ends this early.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def median_seconds(device, runs, work):
    def once():
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    if once() > 1.0:
        runs = 2
    else:
        once()
    return statistics.median(once() for _ in range(runs))


def attempt(what, work):
    """A library that is missing, a backend that cannot do it, memory that is short: said, not hidden, and no end."""
    try:
        return work()
    except Exception as error:
        print(f"{what}: not possible: {(str(error) or type(error).__name__).splitlines()[0]}", flush=True)
        return None


def report(device, what, runs, work):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = attempt(what, lambda: median_seconds(device, runs, work))
    if seconds is None:
        return
    peak = f", {torch.cuda.max_memory_allocated(device) >> 20} MiB" if device.type == "cuda" else ""
    print(f"{what}: {seconds:.4f} s{peak}", flush=True)


def attention(device, runs, queries, keys, heads, width):
    q, k, v = (torch.randn(1, heads, n, width, device=device, dtype=torch.bfloat16) for n in (queries, keys, keys))
    what = f"attention of {queries} queries over {keys} keys, {heads} heads of {width}"
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with sdpa_kernel(backend):
            report(device, f"{what}, {backend.name}", runs, lambda: F.scaled_dot_product_attention(q, k, v))


@torch.no_grad()
def step(device, runs, side, layers, caption):
    """One guided step of XL/2 in a latent of `side`: two forwards of one picture each."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        sample_size=side, num_layers=layers, interpolation_scale=side / 64, caption_channels=4096, use_additional_conditions=False
    )
    model = model.to(device, torch.bfloat16).eval()
    latent = torch.randn(1, 4, side, side, device=device, dtype=torch.bfloat16)
    embeds = torch.randn(1, caption, 4096, device=device, dtype=torch.bfloat16)
    mask, time_at = torch.ones(1, caption, device=device), torch.tensor([500], device=device)
    none = {"resolution": None, "aspect_ratio": None}

    def both(run):
        for _ in range(2):
            run(latent, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=time_at, added_cond_kwargs=none)

    what = f"step of {layers} blocks at {8 * side}x{8 * side}, two branches"
    report(device, f"{what}, eager", runs, lambda: both(model))
    report(device, f"{what}, compiled", runs, lambda compiled=torch.compile(model): both(compiled))


@torch.no_grad()
def decode(device, runs, side):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024,
    )
    vae = vae.to(device, torch.bfloat16).eval()
    latent = torch.randn(1, 4, side, side, device=device, dtype=torch.bfloat16)
    what = f"decode of {8 * side}x{8 * side}"
    report(device, f"{what}, whole", runs, lambda: vae.decode(latent).sample)
    vae.enable_tiling()
    report(device, f"{what}, tiled", runs, lambda: vae.decode(latent).sample)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda:0"))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    device, runs = arguments.device, arguments.runs
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"PyTorch {torch.__version__} on {name}", flush=True)
    shrink = 64 if arguments.small else 1
    side, layers = (32, 1) if arguments.small else (512, 28)
    cases = [("step", lambda: step(device, runs, side, layers, 300)), ("decode", lambda: decode(device, runs, side))]
    for queries, keys, heads, width in [(65_536, keys, 16, 72) for keys in (65_536, 16_384, 4_096)] + [
        (tokens, tokens, 1, 512) for tokens in (65_536, 262_144)
    ]:
        shape = (queries // shrink, keys // shrink, heads, width)
        cases.append((f"attention {shape}", lambda shape=shape: attention(device, runs, *shape)))
    for what, case in cases:
        attempt(what, case)
        if device.type == "cuda":
            # What a case held must not count for the next one.
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
