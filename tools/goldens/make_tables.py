"""Writes tables of reference values that need no model: token ids, noise, and the sampler's time grid.

    make_tables.py OUT SPIECE_MODEL

Needs torch, diffusers and sentencepiece. Writes

    OUT/tokens.json     prompts and the ids SPIECE_MODEL cuts them into, after lower-casing and stripping, end mark included
    OUT/noise.json      ends and sum of torch.randn on the CPU, for seeds inside and beyond 32 bits
    OUT/sampler.json    timesteps and sigmas of DPM-Solver++ 2M, and runs of it on a noise prediction given in closed form
"""

import argparse
import json
import os

import sentencepiece
import torch
from diffusers import DPMSolverMultistepScheduler

MAX_TOKENS = 300
END = 1
PROMPTS = [
    "",
    " ",
    "\t\n  \r\n",
    "a",
    "A snowy mountain at dusk, two moons",
    "snowy mountains at sunset with a ringed planet on the right",
    "Concept art of a ruined castle, red desert",
    "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG",
    "  leading and trailing spaces  ",
    "double  spaces   and    more",
    "tabs\tand\tmore\ttabs",
    "line\nbreaks\r\nof every\rkind",
    "trailing line break\n",
    "comma,no,space",
    "comma , space",
    "punctuation: (brackets) [square] {curly} \"quotes\" 'single' a/b\\c #1 @x 100% & * + = < > ? ! ~ ` ^ | _ -",
    "numbers 0123456789 3.14 1,000,000",
    "hyphen-ated well-known state-of-the-art",
    "don't can't it's",
    "château café naïve über señor",
    "cha\u0302teau cafe\u0301 nai\u0308ve",
    "A\u030angstro\u0308m",
    "\u0301leading mark",
    "e\u0301\u0302\u0323 many marks",
    "ﬁne ﬂames o\ufb00er eﬃcient ﬆone",
    "ｆｕｌｌ ｗｉｄｔｈ ＡＢＣ １２３！",
    "ideographic\u3000space",
    "no-break\u00a0space and narrow\u202fspace and em\u2003space",
    "\u3000\u00a0leading and trailing other spaces\u2003\u3000",
    "zero\u200bwidth\u200bspace",
    "zero\u200dwidth\u200djoiner and \ufefffeff and soft\u00adhyphen",
    "\u200bleading zero width space",
    "left\u200eto\u200fright marks",
    "雪山と夕日",
    "一座被雪覆盖的山 at dusk",
    "눈 덮인 산",
    "ｶﾞﾗｽ half-width katakana",
    "Снежные горы на закате",
    "ΟΔΥΣΣΕΥΣ ends in a final sigma Σ",
    "İstanbul ISPARTA ı",
    "STRASSE Straße ẞ",
    "جبل ثلجي عند الغروب",
    "हिम पर्वत",
    "🏔️ snowy 🌅",
    "👩‍👩‍👧‍👦 family of four",
    "🇩🇪🇫🇷 flags",
    "❤ \u2764\ufe0f",
    "½ ¼ x² H₂O ™ © ℃ Ⅳ ①",
    "“curly” ‘quotes’ – en — em … dots",
    "ﷺ one character, many letters",
    "</s>",
    "<unk>",
    "<pad>",
    "a </s> b",
    "<extra_id_0>",
    "▁",
    "a▁b ▁ c",
    "\U0001d56c\U0001d56d mathematical letters",
    "\ue000 private use \U0010fffd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "qqqq zzzz xxxx",
    "a snowy mountain at dusk with two moons over a calm sea, " * 12,
    "雪" * 400,
    "x " * 350,
]
NOISE_SHAPES = [[1, 4, 2, 2], [1, 4, 4, 4], [1, 4, 16, 24], [1, 4, 30, 22], [1, 4, 26, 34], [1, 4, 64, 64]]
NOISE_SEEDS = [0, 1, 25, 2**32 - 1, 2**32, 2**32 + 5, 2**63, 2**63 + 7, 2**64 - 1]
GRID_STEPS = [1, 2, 3, 4, 7, 12, 14, 20, 25, 50, 999, 1000]
RUN_STEPS = [1, 2, 3, 14, 25]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder to write")
    parser.add_argument("spiece_model", help="the tokenizer's model file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, value in (("tokens", tokens(args.spiece_model)), ("noise", noise()), ("sampler", sampler())):
        with open(os.path.join(args.out, name + ".json"), "w") as file:
            file.write(spread(value) + "\n")


def spread(value, depth=0):
    """JSON with one innermost object or list to a line."""
    is_flat = not isinstance(value, (dict, list)) or depth > 1
    if is_flat or not value:
        return json.dumps(value)
    pad, end = " " * (depth + 1), " " * depth
    if isinstance(value, dict):
        lines = [f"{pad}{json.dumps(k)}: {spread(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + "\n" + end + "}"
    lines = [pad + json.dumps(v) for v in value]
    return "[\n" + ",\n".join(lines) + "\n" + end + "]"


def tokens(spiece_model):
    pieces = sentencepiece.SentencePieceProcessor(model_file=spiece_model)
    return [{"prompt": p, "ids": pieces.encode(p.lower().strip())[: MAX_TOKENS - 1] + [END]} for p in PROMPTS]


def noise():
    """The generator keeps the lower 32 bits of a seed, so 2**63 draws what 0 draws."""
    rows = []
    for shape in NOISE_SHAPES:
        for seed in NOISE_SEEDS:
            x = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).flatten()
            ends = {"first": x[:8].tolist(), "last": x[-8:].tolist()}
            rows.append({"shape": shape, "seed": seed, **ends, "sum": x.double().sum().item()})
    return rows


def build_sampler(steps):
    scheduler = DPMSolverMultistepScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", num_train_timesteps=1000, algorithm_type="dpmsolver++",
        solver_order=2, solver_type="midpoint", lower_order_final=True, prediction_type="epsilon", timestep_spacing="linspace",
        final_sigmas_type="zero")
    scheduler.set_timesteps(steps)
    return scheduler


def summary(values):
    """All of a short list; the ends and the sum of a long one."""
    if len(values) <= 60:
        return {"all": values.tolist()}
    return {"first": values[:5].tolist(), "last": values[-5:].tolist(), "sum": values.double().sum().item()}


def sampler():
    grids, runs = [], []
    for steps in GRID_STEPS:
        scheduler = build_sampler(steps)
        # Some step counts give one step fewer than asked, or a timestep twice: what the reference says is written down.
        timesteps, sigmas = summary(scheduler.timesteps), summary(scheduler.sigmas)
        grids.append({"steps": steps, "n_timesteps": len(scheduler.timesteps), "timesteps": timesteps, "sigmas": sigmas})
    start = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4)
    for steps in RUN_STEPS:
        scheduler, x, latents = build_sampler(steps), start.clone(), []
        for t in scheduler.timesteps:
            eps = torch.tanh(0.3 * x) + 0.01 * t.item() / 1000
            x = scheduler.step(eps, t, x, return_dict=False)[0]
            latents.append(x.flatten().tolist())
        runs.append({"steps": steps, "latents": latents})
    return {
        "eps": "tanh(0.3 x) + 0.01 t / 1000", "start_shape": [1, 4, 4, 4], "start": start.flatten().tolist(),
        "grids": grids, "runs": runs}


if __name__ == "__main__":
    main()
