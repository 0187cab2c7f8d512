"""The recipe: what is trained, in which order, on what, for how long. The figures are those of the shipped weights.

Weak to strong, as the paper of PixArt-Sigma does it: small pictures first, then larger ones, then compressed keys and
values, begun as an average, then larger ones yet. README.md says where the shipped weights' run differed.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class VaeStage:
    name: str
    kind: str  # "crops": all of it on crops; "decoder": the decoder alone on whole pictures
    steps: int
    rate: float
    side: int = 0
    batch: int = 0


@dataclass(frozen=True)
class PoolPlan:
    """A set of latents: pictures of one size."""

    width: int
    height: int
    count: int
    seed: int

    @property
    def name(self):
        return f"{self.width}x{self.height}-{self.count}-{self.seed}"


@dataclass(frozen=True)
class Mix:
    """A size in a stage: how many pictures a step of it takes, and its share of the steps."""

    pool: PoolPlan
    batch: int
    share: float


@dataclass(frozen=True)
class DitStage:
    name: str  # also the seed of its data and noise
    mixes: tuple
    steps: int
    rate: float
    last_rate: float
    shift: float  # above 1: more of the noisy timesteps
    compressed: bool = False
    sample_size: int = 32  # what position codes span


@dataclass(frozen=True)
class RepairStage:
    name: str
    steps: int
    rate: float
    look: str = "soft"  # of the pictures the transformer was trained on


VAE_STAGES = [
    VaeStage("crops-96", "crops", steps=2400, rate=1.5e-3, side=96, batch=8),
    VaeStage("crops-64", "crops", steps=7000, rate=1.5e-3, side=64, batch=8),
    VaeStage("decoder", "decoder", steps=600, rate=6e-4),
]
# The encoder does not move after this stage: latents made with it fit the finished VAE.
LATENTS_FROM = "crops-64"

SQUARE_128 = PoolPlan(128, 128, 8000, 11)
SQUARE_256, WIDE_256, TALL_256 = PoolPlan(256, 256, 5000, 12), PoolPlan(320, 208, 2000, 12), PoolPlan(208, 320, 2000, 12)
FEW_512, SQUARE_512, WIDE_512 = PoolPlan(512, 512, 1200, 13), PoolPlan(512, 512, 2400, 15), PoolPlan(672, 384, 500, 15)
SQUARE_1024, WIDE_1024 = PoolPlan(1024, 1024, 300, 15), PoolPlan(1280, 720, 120, 15)
AROUND_256 = (Mix(SQUARE_256, 24, 5), Mix(WIDE_256, 24, 2), Mix(TALL_256, 24, 2))
MOSTLY_512 = (
    Mix(SQUARE_256, 20, 1.4),
    Mix(WIDE_256, 20, 0.3),
    Mix(TALL_256, 20, 0.3),
    Mix(FEW_512, 10, 2.5),
    Mix(SQUARE_512, 10, 4.5),
    Mix(WIDE_512, 10, 1),
)
UP_TO_1024 = (
    Mix(SQUARE_256, 20, 2.2),
    Mix(WIDE_256, 20, 0.5),
    Mix(TALL_256, 20, 0.5),
    Mix(SQUARE_512, 10, 2.6),
    Mix(WIDE_512, 10, 0.6),
    Mix(SQUARE_1024, 2, 2.0),
    Mix(WIDE_1024, 2, 0.8),
)
ALL_SIZES = (
    Mix(SQUARE_256, 24, 4.2),
    Mix(WIDE_256, 24, 0.8),
    Mix(TALL_256, 24, 0.8),
    Mix(SQUARE_512, 10, 1.8),
    Mix(WIDE_512, 10, 0.4),
    Mix(SQUARE_1024, 2, 1.3),
    Mix(WIDE_1024, 2, 0.5),
)
FINE = (
    Mix(SQUARE_256, 24, 2.6),
    Mix(WIDE_256, 24, 0.5),
    Mix(TALL_256, 24, 0.5),
    Mix(FEW_512, 10, 1.2),
    Mix(SQUARE_512, 10, 2.8),
    Mix(WIDE_512, 10, 0.7),
    Mix(SQUARE_1024, 2, 1.4),
    Mix(WIDE_1024, 2, 0.5),
)

DIT_STAGES = [
    DitStage("start", (Mix(SQUARE_128, 48, 1),), steps=2300, rate=8e-4, last_rate=4e-5, shift=1.0),
    DitStage("s128", (Mix(SQUARE_128, 64, 1),), steps=600, rate=8e-4, last_rate=6.5e-4, shift=1.0),
    DitStage("s256", AROUND_256, steps=1000, rate=8e-4, last_rate=3.9e-4, shift=1.5),
    DitStage("kv256", AROUND_256, steps=400, rate=5e-4, last_rate=3.1e-4, shift=1.5, compressed=True),
    # From here on positions are twice as far apart: at 512x512 half of a unit was too little to tell neighbours by.
    DitStage("g512", MOSTLY_512, steps=2100, rate=6e-4, last_rate=3e-5, shift=1.5, compressed=True, sample_size=64),
    DitStage("g1024", UP_TO_1024, steps=900, rate=4e-4, last_rate=1e-5, shift=1.5, compressed=True, sample_size=64),
    DitStage("gmix", ALL_SIZES, steps=1200, rate=6e-4, last_rate=1e-5, shift=1.5, compressed=True, sample_size=64),
    DitStage("gfine", FINE, steps=2000, rate=5e-4, last_rate=1e-5, shift=1.0, compressed=True, sample_size=64),
]

# The decoder once more, behind the finished transformer.
REPAIR = RepairStage("repair", steps=600, rate=6e-4)

# What the stages are said to cost: seconds of one core (Zen 5, one thread) for one picture, by its number of pixels.
CROP_SECONDS, DECODER_SECONDS, REPAIR_SECONDS = 0.03, 0.25, 3.3  # the last a step
DIT_SECONDS = [(128 * 128, 0.014), (320 * 208, 0.042), (512 * 512, 0.17), (1024 * 1024, 1.5)]
