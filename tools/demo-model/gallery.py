"""Makes the README's pictures with the product itself: a contact sheet of 512x512 and large pictures, as small JPEGs.

    gallery.py --fresco target/release/fresco [--out docs/gallery]

Every picture is drawn by `fresco render` with the demo model; this script only chooses prompts and puts them side by side.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
STEPS, GUIDANCE = 12, 4.5
SHEET_COLUMNS = 4
SHEET_CELL = 360
GAP = 6
SHEET = [
    ("snowy mountains at sunset with a ringed planet on the right", 1),
    ("a calm sea at sunset with a sun in the center", 2),
    ("a city skyline at night with a full moon on the left", 3),
    ("a deep canyon at dawn with two moons in the center", 4),
    ("a pine forest at dawn in thick fog", 5),
    ("desert dunes at noon with a sun on the left in golden tones", 6),
    ("rolling hills at noon under scattered clouds", 7),
    ("rocky mountains at night with a crescent moon on the right in purple tones", 8),
    ("a calm sea at night with a full moon on the left in teal tones", 9),
    ("a city skyline at sunset under scattered clouds in red tones", 10),
    ("snowy mountains at dawn with two moons on the left", 11),
    ("a pine forest at sunset with a ringed planet in the center", 12),
]
LARGE = [
    ("large-2048x2048.jpg", "rolling hills at dawn in golden tones with a full moon on the right", 2048, 2048, 22),
]


def draw(fresco, text, width, height, seed, path):
    command = [fresco, "render", text, "--model", ROOT / "models/demo", "--size", f"{width}x{height}", "--steps", STEPS]
    command += ["--guidance", GUIDANCE, "--seed", seed, "--out", path, "--force"]
    print(text, f"{width}x{height}", flush=True)
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return Image.open(path).convert("RGB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresco", default=ROOT / "target/release/fresco")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/gallery")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        pitch = SHEET_CELL + GAP
        sheet = Image.new("RGB", (SHEET_COLUMNS * pitch - GAP, -(-len(SHEET) // SHEET_COLUMNS) * pitch - GAP), "white")
        for index, (text, seed) in enumerate(SHEET):
            picture = draw(arguments.fresco, text, 512, 512, seed, path).resize((SHEET_CELL, SHEET_CELL), Image.LANCZOS)
            sheet.paste(picture, (index % SHEET_COLUMNS * pitch, index // SHEET_COLUMNS * pitch))
        sheet.save(arguments.out / "sheet.jpg", quality=86, optimize=True)
        for name, text, width, height, seed in LARGE:
            draw(arguments.fresco, text, width, height, seed, path).save(arguments.out / name, quality=84, optimize=True)


if __name__ == "__main__":
    main()
