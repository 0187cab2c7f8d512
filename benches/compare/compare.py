"""Times fresco against PyTorch on the same core, in turns, and prints one row of a Markdown table for each case.

    cargo build --release
    pip install -r benches/compare/requirements.txt
    python benches/compare/compare.py [--rounds 7] [--cases attention-1024,block] [--core 0]

Both sides run in float32 on one thread, pinned to one core. A round is: fresco, then PyTorch. fresco is a process of
its own that warms up and measures itself, so that its start does not count; PyTorch warms up once in every round too.
The table has the medians of all rounds and their ratio: above 1, fresco is the faster one.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEADS, HEAD_WIDTH = 16, 72
WIDTH = HEADS * HEAD_WIDTH
CAPTION_TOKENS = 300
SDXL_WIDTHS = (128, 256, 512, 512)

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[variable] = "1"  # before torch is loaded, and for the child

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402


class Block(nn.Module):
    """One transformer block of PixArt-Sigma XL/2 for one picture, without bookkeeping.

    x + gate_msa * SelfAttention(LN(x) * (1 + scale_msa) + shift_msa)
    x + CrossAttention(x, caption)              neither norm nor modulation nor gate
    x + gate_mlp * MLP(LN(x) * (1 + scale_mlp) + shift_mlp)

    LN has no weights and eps 1e-6. Keys and values of the caption are made beforehand: they depend on the prompt alone.
    """

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, WIDTH) / WIDTH**0.5)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.self_out = nn.Linear(WIDTH, WIDTH)
        self.cross_q = nn.Linear(WIDTH, WIDTH)
        self.cross_kv = nn.Linear(WIDTH, 2 * WIDTH)
        self.cross_out = nn.Linear(WIDTH, WIDTH)
        self.mlp_in = nn.Linear(WIDTH, 4 * WIDTH)
        self.mlp_out = nn.Linear(4 * WIDTH, WIDTH)

    def caption_keys_values(self, caption):
        return tuple(split_heads(part) for part in self.cross_kv(caption).chunk(2, dim=-1))

    def forward(self, x, modulation, caption_keys_values):
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.table + modulation
        q, k, v = (split_heads(part) for part in self.qkv(modulated(x, shift_msa, scale_msa)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = torch.addcmul(x, gate_msa, self.self_out(join_heads(mixed)))
        mixed = F.scaled_dot_product_attention(split_heads(self.cross_q(x)), *caption_keys_values)
        x = x + self.cross_out(join_heads(mixed))
        hidden = F.gelu(self.mlp_in(modulated(x, shift_mlp, scale_mlp)), approximate="tanh")
        return torch.addcmul(x, gate_mlp, self.mlp_out(hidden))


def modulated(x, shift, scale):
    return torch.addcmul(shift, F.layer_norm(x, (WIDTH,), eps=1e-6), 1 + scale)


def split_heads(x):
    return x.unflatten(-1, (HEADS, HEAD_WIDTH)).transpose(1, 2)  # [batch, heads, tokens, width]


def join_heads(x):
    return x.transpose(1, 2).flatten(-2)


def check_block():
    """The block above must compute what diffusers' block of the same weights computes."""
    from diffusers.models.attention import BasicTransformerBlock

    reference = BasicTransformerBlock(
        WIDTH, HEADS, HEAD_WIDTH, cross_attention_dim=WIDTH, activation_fn="gelu-approximate", attention_bias=True,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6).eval()
    ours, theirs = Block().eval(), reference.state_dict()

    def joined(end, *names):
        return torch.cat([theirs[f"{name}.{end}"] for name in names])

    ours.table.copy_(theirs["scale_shift_table"])
    for end in ("weight", "bias"):
        getattr(ours.qkv, end).copy_(joined(end, "attn1.to_q", "attn1.to_k", "attn1.to_v"))
        getattr(ours.self_out, end).copy_(theirs[f"attn1.to_out.0.{end}"])
        getattr(ours.cross_q, end).copy_(theirs[f"attn2.to_q.{end}"])
        getattr(ours.cross_kv, end).copy_(joined(end, "attn2.to_k", "attn2.to_v"))
        getattr(ours.cross_out, end).copy_(theirs[f"attn2.to_out.0.{end}"])
        getattr(ours.mlp_in, end).copy_(theirs[f"ff.net.0.proj.{end}"])
        getattr(ours.mlp_out, end).copy_(theirs[f"ff.net.2.{end}"])
    x, caption, modulation = torch.randn(1, 48, WIDTH), torch.randn(1, CAPTION_TOKENS, WIDTH), torch.randn(6, WIDTH)
    expected = reference(x, encoder_hidden_states=caption, timestep=modulation.reshape(1, -1))
    difference = (ours(x, modulation, ours.caption_keys_values(caption)) - expected).abs().max().item()
    assert difference < 1e-4, f"the block is not the reference's: they differ by {difference}"
    print(f"the block agrees with diffusers' to {difference:.1e}", file=sys.stderr)


# What PyTorch runs: each gives a function without arguments, whose call is what is timed. -------------------------


def attention(n_keys):
    def prepare():
        q, k, v = (torch.randn(1, HEADS, n, HEAD_WIDTH) for n in (4096, n_keys, n_keys))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    return prepare


def block():
    check_block()
    layer = Block().eval()
    x, modulation = torch.randn(1, 1024, WIDTH), torch.randn(6, WIDTH)
    caption = layer.caption_keys_values(torch.randn(1, CAPTION_TOKENS, WIDTH))
    return lambda: layer(x, modulation, caption)


def vae():
    from diffusers import AutoencoderKL

    decoder = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=SDXL_WIDTHS, layers_per_block=2,
        norm_num_groups=32, down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4).eval()
    latents = torch.randn(1, 4, 64, 64)
    return lambda: decoder.decode(latents).sample


# Name: what is compared, the arguments of `fresco bench`, and PyTorch's side.
CASES = {
    "attention-1024": (
        "attention, 16 heads of 72, 4,096 queries, 1,024 keys",
        ["attention", "--heads", "16", "--head-width", "72", "--queries", "4096", "--keys", "1024"], attention(1024)),
    "attention-4096": (
        "attention, 16 heads of 72, 4,096 queries, 4,096 keys",
        ["attention", "--heads", "16", "--head-width", "72", "--queries", "4096", "--keys", "4096"], attention(4096)),
    "block": ("XL/2 block, 1,024 tokens", ["block", "--tokens", "1024"], block),
    "vae": ("VAE decode, SDXL widths, 512²", ["vae", "--size", "512x512"], vae),
}


def seconds_of_fresco(binary, arguments):
    command = [binary, "bench", *arguments, "--threads", "1", "--runs", "1", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with {done.returncode}")
    return float(json.loads(done.stdout)["seconds"])


def seconds_of_torch(run):
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def machine():
    """The processor's name and its number of cores."""
    name = platform.processor() or platform.machine()
    try:
        lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
        fields = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
        name = fields.get("Model name", name).strip()
        family = fields.get("CPU family", "").strip()
        if family:
            name += f" (family {family}, model {fields.get('Model', '').strip()})"
    except (OSError, subprocess.CalledProcessError):
        pass
    return f"{name}, {os.cpu_count()} cores"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="which, separated by commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of fresco, then PyTorch (default: %(default)s)")
    parser.add_argument("--core", type=int, help="the core both run on (default: the last one)")
    parser.add_argument("--fresco", default=str(ROOT / "target/release/fresco"), help="the binary (default: %(default)s)")
    parser.add_argument("--check", action="store_true", help="only check PyTorch's block against diffusers'")
    args = parser.parse_args()
    args.cases = args.cases.split(",")
    unknown = [name for name in args.cases if name not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}: there are {list(CASES)}")
    if not args.check and not os.access(args.fresco, os.X_OK):
        parser.error(f"{args.fresco} is not there: build it with `cargo build --release`")
    return args


def main():
    args = parse_arguments()
    machine_name = machine()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if args.check:
        check_block()
        return
    if hasattr(os, "sched_setaffinity"):
        core = max(os.sched_getaffinity(0)) if args.core is None else args.core
        os.sched_setaffinity(0, {core})  # the child inherits it

    print("| case | PyTorch | fresco | PyTorch / fresco | rounds | machine, one core | torch | date |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.cases:
        title, arguments, prepare = CASES[name]
        run = prepare()
        ours, theirs = [], []
        for round_idx in range(args.rounds):
            ours.append(seconds_of_fresco(args.fresco, arguments))
            theirs.append(seconds_of_torch(run))
            print(f"{name} {round_idx + 1}/{args.rounds}: fresco {ours[-1]:.4f} s, PyTorch {theirs[-1]:.4f} s", file=sys.stderr)
        a, b = statistics.median(theirs), statistics.median(ours)
        today = datetime.date.today().isoformat()
        print(
            f"| {title} | {a:.3f} s | {b:.3f} s | {a / b:.2f} | {args.rounds} | {machine_name} | {torch.__version__} | {today} |",
            flush=True)
        del run


if __name__ == "__main__":
    main()
