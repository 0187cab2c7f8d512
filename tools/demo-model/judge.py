"""Classifiers that say what is in a picture: six heads on one small network, trained on rendered pictures alone.

No generated picture is ever shown to it in training. A quarter of the rendered ones pass through the VAE first, so that
the decoder's texture is no novelty. Square pictures of any size are scaled to 256x256.

    judge.py data OUT.pt COUNT SEED VAE_FOLDER [--even] [--look hard]    rendered pictures with labels; --even: more starry nights
    judge.py train TEST.pt OUT.pt DATA.pt... [--steps N]   trains, and prints the accuracy on TEST.pt; goes on from OUT.pt
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from networks import autocast
from world import VALUES, render, sample_attributes

SIDE = 256
SIDES_PX, SIDE_SHARES = [256, 384, 512], [0.75, 0.15, 0.1]
THROUGH_VAE = 0.25
BATCH = 32
RATE = 2e-3
# Stars are small and rare: a mistake about them counts three times.
WEATHER_WEIGHTS = [1.0, 1.0, 1.0, 3.0]
SIDE_HEAD = list(VALUES).index("side")


def block(n_in, n_out, stride=1, size=3):
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class Judge(nn.Module):
    """Pictures [n, 3, 256, 256] in -1..1 to one row of scores for every attribute, in the order of `VALUES`.

    Two more input channels hold each pixel's place, since left and right are part of the question.
    """

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            block(5, 24, 2, 5), block(24, 32, 2), block(32, 48), block(48, 64, 2), block(64, 64), block(64, 96, 2), block(96, 96), block(96, 128, 2), block(128, 128)
        )
        n_features = 128 * 4 + 128 * 16
        self.heads = nn.ModuleList([nn.Sequential(nn.Linear(n_features, 128), nn.ReLU(), nn.Linear(128, len(values))) for values in VALUES.values()])

    def forward(self, pictures):
        n, _, height, width = pictures.shape
        down = torch.linspace(-1, 1, height, device=pictures.device).view(1, 1, height, 1).expand(n, 1, height, width)
        right = torch.linspace(-1, 1, width, device=pictures.device).view(1, 1, 1, width).expand(n, 1, height, width)
        features = self.body(torch.cat([pictures, down, right], 1))
        pooled = torch.cat([F.adaptive_avg_pool2d(features, 2).flatten(1), F.adaptive_max_pool2d(features, 4).flatten(1)], 1)
        return [head(pooled) for head in self.heads]


def labels(attributes):
    return torch.tensor([[one.index(name) for name in VALUES] for one in attributes])


def scaled(pictures):
    """Pictures of any size in 0..1 as uint8 [n, 3, 256, 256]."""
    if pictures.shape[2] * pictures.shape[3] > SIDE * SIDE:
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="area")
    else:
        pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (pictures * 255).round().clamp(0, 255).byte()


def draw(count, seed, vae, even, look, device):
    """`count` rendered pictures and their labels, from seeds no training set of the transformer uses."""
    rng = np.random.default_rng([77, seed])
    pictures, drawn = [], []
    for index in range(count):
        attributes = sample_attributes(rng)
        while even and index % 5 == 0 and attributes.time != "at night":
            attributes = sample_attributes(rng)
        side = int(rng.choice(SIDES_PX, p=SIDE_SHARES))
        picture = torch.from_numpy(render(attributes, int(rng.integers(1 << 30)), side, side, look)).permute(2, 0, 1)[None] / 255
        if rng.random() < THROUGH_VAE and side == SIDE:
            with torch.no_grad(), autocast(device):
                latent = vae.encode(picture.to(device) * 2 - 1).latent_dist.sample()
                picture = (vae.decode(latent).sample.float().cpu().clamp(-1, 1) + 1) / 2
        pictures.append(scaled(picture))
        drawn.append(attributes)
    return torch.cat(pictures), labels(drawn)


@torch.no_grad()
def judge(network, pictures):
    """The value number each head sees, [n, 6], for uint8 pictures from `scaled`."""
    device = next(network.parameters()).device
    rows = []
    for part in pictures.split(32):
        rows.append(torch.stack([scores.argmax(1) for scores in network(part.to(device).float() / 127.5 - 1)], 1).cpu())
    return torch.cat(rows)


def accuracy(seen, true):
    """Share of right answers for every attribute, where there is one to give."""
    return {name: (seen[:, i] == true[:, i])[true[:, i] >= 0].float().mean().item() for i, name in enumerate(VALUES)}


def augmented(pictures, true, step):
    """Mirrored in every second step (sides change places), and now and then with noise or blur."""
    if step % 2:
        pictures, side = pictures.flip(3), true[:, SIDE_HEAD]
        true[:, SIDE_HEAD] = torch.where(side >= 0, 2 - side, side)
    if step % 3 == 0:
        pictures = pictures + 0.03 * torch.randn_like(pictures)
    if step % 4 == 0:
        small = F.interpolate(pictures, (192, 192), mode="area")
        pictures = F.interpolate(small, (SIDE, SIDE), mode="bilinear")
    return pictures, true


def load(path, device):
    network = Judge()
    network.load_state_dict(torch.load(path))
    return network.eval().to(device)


def train(pictures, true, test_pictures, test_true, path, steps, device):
    """Trains for `steps` and writes the weights; the accuracy on the test pictures is printed."""
    torch.manual_seed(5)
    network = Judge()
    if path.exists():
        network.load_state_dict(torch.load(path))
    network.to(device, memory_format=torch.channels_last)
    class_weights = [torch.tensor(WEATHER_WEIGHTS if name == "weather" else [1.0] * len(values), device=device) for name, values in VALUES.items()]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    started = time.time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (0.5 * (1 + np.cos(np.pi * step / steps)) * 0.98 + 0.02)
        picks = torch.randint(len(pictures), (BATCH,))
        batch, target = augmented(pictures[picks].to(device).float() / 127.5 - 1, true[picks].clone().to(device), step)
        with autocast(device):
            heads = network(batch.contiguous(memory_format=torch.channels_last))
        loss = sum(
            F.cross_entropy(head.float(), target[:, i], weight, ignore_index=-1, label_smoothing=0.02)
            for i, (head, weight) in enumerate(zip(heads, class_weights))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"judge {step + 1}/{steps} loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    network.eval()
    own = accuracy(judge(network, test_pictures), test_true)
    print("accuracy on rendered pictures:", ", ".join(f"{name} {share:.1%}" for name, share in own.items()))
    torch.save(network.state_dict(), path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    data = commands.add_parser("data")
    data.add_argument("out")
    data.add_argument("count", type=int)
    data.add_argument("seed", type=int)
    data.add_argument("vae")
    data.add_argument("--even", action="store_true")
    data.add_argument("--look", choices=["soft", "hard"], default="soft", help="the look that the judged pictures should have")
    training = commands.add_parser("train")
    training.add_argument("test")
    training.add_argument("out", type=Path)
    training.add_argument("data", nargs="+")
    training.add_argument("--steps", type=int, default=900)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.command == "data":
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(arguments.vae).float().eval().to(device)
        torch.manual_seed(arguments.seed)
        torch.save(draw(arguments.count, arguments.seed, vae, arguments.even, arguments.look, device), arguments.out)
    else:
        parts = [torch.load(path) for path in arguments.data]
        pictures, true = (torch.cat([part[i] for part in parts]) for i in range(2))
        train(pictures, true, *torch.load(arguments.test), arguments.out, arguments.steps, device)


if __name__ == "__main__":
    main()
