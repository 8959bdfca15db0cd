"""How the cost of explaining grows with batch, classes, layers and images: ``python -m benchmarks.scaling [--quick]``.

Times are multiples of running the model alone, in the same rounds: ResNet-18, random weights, 224 x 224, CPU. Models of
up to 21,841 classes are its last layer alone, on activations (512, 7, 7), timed in seconds. Prints a line for each
measurement and writes ``benchmarks/results/scaling.json`` and ``scaling.png``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import measure
from benchmarks.contenders import bare
from benchmarks.dataset import Images, inference
from benchmarks.resnet import ResNet18
from diffgradcam import DiffGradCAM, FinerCAM, GradCAM, LayerCAM, explain_pairs
from diffgradcam.data import explain_dataset

RESULTS = Path(__file__).parent / "results" / "scaling.json"
METHODS = {"GradCAM": GradCAM, "DiffGradCAM": DiffGradCAM, "LayerCAM": LayerCAM}
LAYERS = ["layer4", "layer3", "layer2", "layer1"]

Curve = dict[str, Any]
Points = Iterator[tuple[int, dict[str, float]]]


def batches(rounds: int, *, quick: bool) -> Points:
    """One map per image, for growing batches."""
    model = ResNet18().eval()
    for batch in (1, 4) if quick else (1, 2, 4, 8, 16, 32):
        images = torch.rand(batch, 3, 224, 224)
        calls = {name: partial(method(model, "layer4").explain, images) for name, method in METHODS.items()}
        yield batch, measure.interleaved_ratios(bare(model, images), calls, rounds, 60)


def explained(rounds: int, *, quick: bool) -> Points:
    """Growing numbers of classes of one image, of 1000."""
    model, images = ResNet18().eval(), torch.rand(1, 3, 224, 224)
    for count in (1, 64) if quick else (1, 3, 10, 30, 64, 100, 300, 1000):
        calls = {
            name: partial(method(model, "layer4").explain, images, f"top{count}")
            for name, method in (METHODS | {"FinerCAM": FinerCAM}).items()
        }
        if 1 < count <= 30:
            calls["pairs of GradCAM"] = partial(explain_pairs, GradCAM(model, "layer4"), images, f"top{count}")
        yield count, measure.interleaved_ratios(bare(model, images), calls, rounds, 60)


def layers(rounds: int, *, quick: bool) -> Points:
    """Growing numbers of layers in one map, from the last to the first: gradients go back to the first of them."""
    model, images = ResNet18().eval(), torch.rand(4, 3, 224, 224)
    for count in range(1, 3 if quick else 5):
        calls = {name: partial(method(model, LAYERS[:count]).explain, images) for name, method in METHODS.items()}
        yield count, measure.interleaved_ratios(bare(model, images), calls, rounds, 60)


def images(rounds: int, *, quick: bool) -> Points:
    """Growing data sets, explained into a folder, and inference with the same loader."""
    model = ResNet18().eval()
    for count in (32,) if quick else (32, 64, 128, 256):
        loader = DataLoader(Images(count, 224), batch_size=16)
        calls = {"DiffGradCAM": partial(explain_into_a_folder, model, loader)}
        yield count, measure.interleaved_ratios(partial(inference, model, loader), calls, rounds, 200)


def explain_into_a_folder(model: nn.Module, loader: DataLoader) -> None:
    """Explain a data set into a temporary folder."""
    with tempfile.TemporaryDirectory() as out:
        explain_dataset(DiffGradCAM(model, "layer4"), loader, out, shard_size=64, progress=False)


class Head(nn.Module):
    """The last layer of a ResNet-18 for another number of classes; its input takes the place of the image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer4 = nn.Identity()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer4(features))


def model_classes(*, quick: bool) -> Iterator[tuple[int, dict[str, float], dict[str, float]]]:
    """All maps of models with growing numbers of classes, 8 images: seconds, and peak memory in MiB."""
    features = torch.rand(8, 512, 7, 7, generator=torch.Generator().manual_seed(0))
    for count in (10, 1000) if quick else (10, 100, 1000, 5000, 21841):
        model = Head(count).eval()
        cams = {name: method(model, "layer4") for name, method in METHODS.items()}
        if count > 1000:
            del cams["LayerCAM"]  # has no closed form
        seconds: dict[str, list[float]] = {name: [] for name in cams}
        for number in range(6):
            for name in random.Random(number).sample(list(cams), len(cams)):
                seconds[name].append(measure.elapsed(partial(cams[name].explain, features, "all")))
        memory = {name: measure.peak_memory(partial(cam.explain, features, "all")) for name, cam in cams.items()}
        yield (
            count,
            {name: statistics.median(values[1:]) for name, values in seconds.items()},
            {name: held / 2**20 for name, held in memory.items()} | {"the maps themselves": 8 * count * 49 * 4 / 2**20},
        )


def draw(curves: dict[str, Curve]) -> Figure:
    """One panel for each curve: its lines against the growing quantity."""
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    for axes, (title, curve) in zip(figure.subplots(2, 3).flat, curves.items(), strict=True):
        for name, points in curve["lines"].items():
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", markersize=4, label=name)
        axes.set(title=title, xlabel=curve["x"], ylabel=curve["y"])
        if curve["y"].startswith("x "):
            axes.set_ylim(0, 1.15 * max(y for points in curve["lines"].values() for _, y in points))
        else:
            axes.set_yscale("log")
        if curve["x"] != "layers":
            axes.set_xscale("log")
        axes.set_xticks([x for x, _ in max(curve["lines"].values(), key=len)])
        axes.set_xticks([], minor=True)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def collect(
    curves: dict[str, Curve], title: str, x: str, y: str, points: Iterator[tuple[int, dict[str, float]]]
) -> None:
    """Measure, print each result, and store it in ``curves``."""
    curve = curves[title] = {"x": x, "y": y, "lines": {}}
    for at, values in points:
        print(f"{title}, {at} {x}: " + ", ".join(f"{name} {value:.3g}" for name, value in values.items()), flush=True)
        for name, value in values.items():
            curve["lines"].setdefault(name, []).append((at, round(value, 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few points, only printed: to see that it runs")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 9
    curves: dict[str, Curve] = {}
    forward = "x forward pass"
    collect(curves, "One map an image", "images in the batch", forward, batches(rounds, quick=quick))
    collect(
        curves, "Several classes of one image", "classes explained, of 1000", forward, explained(rounds, quick=quick)
    )
    collect(curves, "Several layers in one map, 4 images", "layers", forward, layers(rounds, quick=quick))
    collect(curves, "A data set into a folder", "images", "x inference", images(min(rounds, 5), quick=quick))
    measured = list(model_classes(quick=quick))
    for title, y, part in (("All classes: time", "seconds, 8 images", 1), ("All classes: memory", "MiB, 8 images", 2)):
        collect(curves, title, "classes of the model", y, ((each[0], each[part]) for each in measured))
    if not quick:
        setting = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        RESULTS.write_text(json.dumps({"setting": setting, "curves": curves}, indent=2) + "\n")
        draw(curves).savefig(RESULTS.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
