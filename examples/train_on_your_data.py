"""A folder of images and a CSV: train with cross-entropy and with people's maps, leave a kind out, compare.

Makes a small folder like yours, of textures with a scratch or a spot, and runs the commands of
docs/train_on_your_own_folder.md on it: under 30 seconds on a CPU. Writes output/train_on_your_data/, with reports. An
illustration, with one seed; experiments/saliency_guided compares with care.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

OUT = Path("output/train_on_your_data")


def textures(folder, photo=None):
    """160 images, of noise or of a photo, every other one flawless, and data.csv: image, label, group, saliency."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    random, rows = np.random.default_rng(0), []
    pieces = None if photo is None else np.lib.stride_tricks.sliding_window_view(photo, (48, 48))
    for i in range(160):
        kind = ("fine", "scratch", "fine", "spot")[i % 4]
        pixels = random.normal(128, 30, (48, 48)) if photo is None else pieces[tuple(random.integers(0, 464, 2))]
        mask, (top, left) = np.zeros((48, 48)), random.integers(4, 32, 2)
        if kind == "scratch":
            for step in range(12):
                mask[top + step, left + step // 2 : left + step // 2 + 2] = 1
        if kind == "spot":
            y, x = np.mgrid[:48, :48]
            mask[(y - top - 4) ** 2 + (x - left - 4) ** 2 < 12] = 1
        pixels = np.where(mask > 0, pixels - 45, pixels)
        image, saliency = f"images/{i}.png", f"masks/{i}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / image)
        Image.fromarray((255 * mask).astype(np.uint8)).save(folder / saliency)
        rows.append((image, int(kind != "fine"), kind, saliency if mask.any() else ""))
    with (folder / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label", "group", "saliency"), *rows])


def main():
    textures(OUT / "data")
    for loss in ("ce", "contrast"):
        command = [sys.executable, "-m", "diffgradcam.cli", "train", OUT / "data/data.csv", "--out", OUT / loss]
        options = ["--hold-out", "spot", "--size", "48", "--epochs", "25", "--resamples", "100", "--json", "--loss"]
        done = subprocess.run([*command, *options, loss], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
        run = json.loads(done.stdout)["runs"][0]
        for part in ("closed", "open"):
            auroc, energy = run[part]["decisions"]["auroc"], run[part]["maps"]["true"]["energy"]
            spread = f"[{auroc['low']:.2f}, {auroc['high']:.2f}]"
            print(f"{loss}, {part}: AUROC {auroc['value']:.2f} {spread}, {energy['value']:.0%} of the map in the mark")
    print(f"before and after: {OUT}/contrast/report.html")


if __name__ == "__main__":
    main()
