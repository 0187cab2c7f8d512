"""Measures the demo model: is in the picture what the prompt says, how exact is the VAE, does `fresco` draw the same?

    evaluate.py psnr     --model DIR [--size 512x512]         PSNR and MS-SSIM of encode and decode on held-out pictures
    evaluate.py judged   --model DIR --size 256x256 --count 400 --judge judge.pt
    evaluate.py judged   ... --fresco PATH                    pictures from the binary instead of the training sampler
    evaluate.py judged   ... --state STATE.pt                 a checkpoint's transformer and text encoder instead of DIR's
    evaluate.py parity   --model DIR --fresco PATH            the binary against the training sampler, same latents

Captions, seeds and pictures are fixed and held out: training draws its pictures from other seeds.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import judge
import networks
from latents import as_tensor
from sampler import GUIDANCE, STEPS, Sampler, noise
from world import SCENES, caption, render, sample_attributes

HELD_OUT = 31337
AT_ONCE = 16
SCALE_WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]  # of MS-SSIM, from fine to coarse
PARITY_CAPTIONS = [
    ("snowy mountains at sunset with a ringed planet on the right", 256, 256),
    ("a calm sea at night under a starry sky with a crescent moon on the left", 320, 208),
    ("a city skyline at dawn in thick fog in teal tones", 512, 512),
]


def held_out(count, seed=1):
    """Attributes, captions and noise seeds of the evaluation."""
    rng = np.random.default_rng([HELD_OUT, seed])
    attributes = [sample_attributes(rng) for _ in range(count)]
    return attributes, [caption(one) for one in attributes], [seed * 100_000 + index for index in range(count)]


def load_sampler(folder, device, state=None, fast=True):
    """The model folder in the training code's networks, with a checkpoint's averages in place of its weights if given."""
    if state:
        saved = torch.load(state)
        weights, text_weights = saved["ema_dit"], saved["ema_t5"]
    else:
        stored = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
        weights = {name.replace("attn1.sr.", "kvc.sr.").replace("attn1.sr_norm.", "kvc.norm."): tensor.float() for name, tensor in stored.items()}
        text_weights = {name: tensor.float() for name, tensor in load_file(folder / "text_encoder/model.safetensors").items()}
        text_weights["encoder.embed_tokens.weight"] = text_weights["shared.weight"]
    sample_size = json.loads((folder / "transformer/config.json").read_text())["sample_size"]
    transformer = networks.build_transformer(any("kvc" in name for name in weights), sample_size)
    text_encoder = networks.build_text_encoder()
    networks.load_transformer(transformer, weights)
    text_encoder.load_state_dict(text_weights)
    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    return Sampler(tokenizer, text_encoder, transformer, vae, device, fast)


def run_fresco(binary, model, text, width, height, out, *more):
    command = [binary, "render", text, "--model", model, "--size", f"{width}x{height}", "--steps", STEPS, "--guidance", GUIDANCE, "--out", out, "--force"]
    subprocess.run([str(word) for word in [*command, *more]], check=True, capture_output=True)


def from_fresco(arguments, captions, seeds, width, height):
    """The binary's pictures, uint8 [n, 3, H, W]."""
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        for text, seed in zip(captions, seeds):
            run_fresco(arguments.fresco, arguments.model, text, width, height, path, "--seed", seed, "--threads", arguments.threads)
            pictures.append(torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1))
    return torch.stack(pictures)


def drawn(arguments, captions, seeds, device):
    """The pictures for the captions, scaled for the judge; kept in `--pictures`, from where a stopped run goes on."""
    width, height = map(int, arguments.size.split("x"))
    kept = arguments.pictures and arguments.pictures.exists()
    pictures = torch.load(arguments.pictures) if kept else torch.empty(0, 3, judge.SIDE, judge.SIDE, dtype=torch.uint8)
    sampler = None
    while len(pictures) < len(captions):
        part = slice(len(pictures), len(pictures) + AT_ONCE)
        if arguments.fresco:
            more = from_fresco(arguments, captions[part], seeds[part], width, height)
        else:
            sampler = sampler or load_sampler(arguments.model, device, arguments.state)
            more = sampler.pictures(captions[part], seeds[part], width, height)
        pictures = torch.cat([pictures, judge.scaled(more.float() / 255)])
        if arguments.pictures:
            torch.save(pictures, arguments.pictures)
    return pictures[: len(captions)]


def measure_judged(arguments, device):
    """Share of pictures in which each attribute is what the caption says."""
    attributes, captions, seeds = (part[arguments.first :] for part in held_out(arguments.first + arguments.count))
    pictures = drawn(arguments, captions, seeds, device)
    if not Path(arguments.judge).exists():
        raise SystemExit(f"no classifiers in {arguments.judge}: train them with judge.py")
    shares = judge.accuracy(judge.judge(judge.load(arguments.judge, device), pictures), judge.labels(attributes))
    by = "fresco" if arguments.fresco else "training sampler"
    print(json.dumps({"size": arguments.size, "count": len(captions), "by": by, **{name: round(share, 4) for name, share in shares.items()}}))


def multi_scale_similarity(a, b):
    """MS-SSIM of two pictures [1, 3, h, w] in 0..1, five scales, so of at least 176 pixels a side."""
    gauss = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5).to(a.device)
    window = torch.outer(gauss, gauss)[None, None].repeat(3, 1, 1, 1) / gauss.sum() ** 2

    def mean(x):
        return F.conv2d(x, window, groups=3)

    result = 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        mean_a, mean_b = mean(a), mean(b)
        variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
        share = (2 * (mean(a * b) - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)
        if scale == len(SCALE_WEIGHTS) - 1:
            share = share * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
        result *= share.mean().clamp(min=0).item() ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return result


@torch.no_grad()
def measure_psnr(arguments, device):
    """PSNR and MS-SSIM of held-out pictures, averaged; float32."""
    width, height = map(int, arguments.size.split("x"))
    vae = AutoencoderKL.from_pretrained(arguments.model / "vae").float().eval().to(device)
    rng = np.random.default_rng([99, 1])
    decibels, similarities, scenes = [], [], []
    for _ in range(arguments.count):
        attributes = sample_attributes(rng)
        picture = as_tensor([render(attributes, int(rng.integers(1 << 30)), width, height, arguments.look)]).to(device)
        decoded = vae.decode(vae.encode(picture).latent_dist.mean).sample.clamp(-1, 1)
        decibels.append(-10 * torch.log10((decoded - picture).pow(2).mean() / 4).item())
        similarities.append(multi_scale_similarity((decoded + 1) / 2, (picture + 1) / 2))
        scenes.append(attributes.scene)
    print(f"PSNR of {len(decibels)} pictures: mean {np.mean(decibels):.2f} dB, from {min(decibels):.2f} to {max(decibels):.2f}; MS-SSIM {np.mean(similarities):.4f}")
    for scene in SCENES:
        of_scene = [value for value, name in zip(decibels, scenes) if name == scene]
        if of_scene:
            print(f"  {scene}: {np.mean(of_scene):.2f} dB ({len(of_scene)})")


def measure_parity(arguments, device):
    """Largest difference in 0..1 between the binary's picture and the training sampler's, from the same latents."""
    sampler = load_sampler(arguments.model, device, fast=False)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        noise_path, picture_path = Path(folder) / "noise.safetensors", Path(folder) / "picture.safetensors"
        for index, (text, width, height) in enumerate(PARITY_CAPTIONS):
            latents = noise(width, height, 900 + index)[None]
            save_file({"latents": latents}, noise_path)
            run_fresco(arguments.fresco, arguments.model, text, width, height, picture_path, "--latents", noise_path)
            ours = load_file(picture_path)["image"]
            theirs = sampler.decode(sampler.denoise([text], latents)).cpu()
            difference = (ours - theirs).abs().max().item()
            worst = max(worst, difference)
            print(f"{text}, {width}x{height}: {difference:.2e}")
    print(f"largest difference {worst:.2e}, allowed 1e-3")
    if worst > 1e-3:
        raise SystemExit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["psnr", "judged", "parity"])
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[2] / "models/demo")
    parser.add_argument("--state", help="checkpoint to take transformer and text encoder from")
    parser.add_argument("--fresco", help="the binary to draw with")
    parser.add_argument("--threads", type=int, default=1, help="threads of the binary")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--look", choices=["soft", "hard"], default="soft", help="of the pictures for psnr")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="leave out this many of the held-out captions, to share the work")
    parser.add_argument("--judge", default="judge.pt", help="classifiers from judge.py")
    parser.add_argument("--pictures", type=Path, help="keep the pictures here, scaled for the judge, or take them from here")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    {"psnr": measure_psnr, "judged": measure_judged, "parity": measure_parity}[arguments.mode](arguments, device)


if __name__ == "__main__":
    main()
