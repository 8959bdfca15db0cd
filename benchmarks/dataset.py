"""What explaining a data set costs, compared with running the model over it with the same loader, and how memory grows.

Two measurements, designed for a machine that other people use at the same time:

- **Throughput**: plain inference and ``explain_dataset`` take turns, in a random order in each round; the ratio is the
  median over the rounds of inference seconds over explanation seconds. CPU seconds of all threads are
  recorded as well: other users do not affect them, but they do not include waiting for the disk.
- **Memory**: resident memory while 20,000 small images are explained, at the end of each tenth.

Run it with ``python -m benchmarks.dataset``; it prints a line for each measurement and writes
``benchmarks/results/dataset.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.resnet import ResNet18
from diffgradcam import DiffGradCAM, GradCAM
from diffgradcam.data import explain_dataset

RESULTS = Path(__file__).parent / "results" / "dataset.json"


class Images(Dataset[tuple[Tensor, int]]):
    """Images that take some work to read and no memory: each is computed from its index."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.base = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.base.roll(position, 2), position


def inference(model: nn.Module, loader: DataLoader) -> None:
    """Plain inference."""
    with torch.inference_mode():
        for images, _ in loader:
            model(images)


def throughput(images: int, size: int, batch: int, workers: int, rounds: int) -> dict[str, dict[str, float]]:
    """Speed as a multiple of the speed of inference: 1 is as fast."""
    model = ResNet18().eval()
    loader = DataLoader(Images(images, size), batch_size=batch, num_workers=workers)
    cams = {"GradCAM": GradCAM(model, "layer4"), "DiffGradCAM": DiffGradCAM(model, "layer4")}
    calls: dict[str, Callable[[Path], object]] = {"inference": lambda _: inference(model, loader)}
    for name, cam in cams.items():
        calls[name] = lambda out, cam=cam: explain_dataset(cam, loader, out, shard_size=4 * batch, progress=False)
    calls["DiffGradCAM, common_mode=True"] = lambda out: explain_dataset(
        cams["DiffGradCAM"], loader, out, shard_size=4 * batch, common_mode=True, progress=False
    )
    model(next(iter(loader))[0])
    ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds):
        took = {}
        for name in random.Random(number).sample(list(calls), len(calls)):
            with tempfile.TemporaryDirectory() as folder:
                wall, cpu = time.perf_counter(), time.process_time()
                calls[name](Path(folder))
                took[name] = time.perf_counter() - wall, time.process_time() - cpu
        for name, (wall, cpu) in took.items():
            ratios[name].append((took["inference"][0] / wall, took["inference"][1] / cpu))
    median = {n: [statistics.median(values) for values in zip(*r, strict=True)] for n, r in ratios.items()}
    return {name: {"wall": round(wall, 3), "cpu": round(cpu, 3)} for name, (wall, cpu) in median.items()}


def memory(images: int) -> list[tuple[int, float]]:
    """Resident memory, MiB, after each tenth of the images."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    cam = GradCAM(model.eval(), "1")
    seen: list[tuple[int, float]] = []
    count = 0

    class Watched:
        """A CAM that records the memory from time to time."""

        def explain(self, batch: Tensor, classes: object = None) -> object:
            nonlocal count
            explanation = cam.explain(batch, classes)
            count += len(batch)
            if count % (images // 10) == 0:
                seen.append((count, resident_mib()))
            return explanation

    with tempfile.TemporaryDirectory() as out:
        loader = DataLoader(Images(images, 16), batch_size=50)
        explain_dataset(Watched(), loader, out, shard_size=500, progress=False)
    return seen


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="for the throughput")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=20_000, help="for the memory; a multiple of 500")
    options = parser.parse_args()
    grown = memory(options.many)
    for count, mib in grown:
        print(f"{count:6d} images: {mib:.0f} MiB", flush=True)
    arguments = (options.images, options.size, options.batch, options.workers, options.rounds)
    ratios = throughput(*arguments)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio['wall']:.3f} of the throughput of inference (CPU seconds: {ratio['cpu']:.3f})")
    setting = vars(options) | {"torch": torch.__version__, "threads": torch.get_num_threads()}
    RESULTS.write_text(json.dumps({"setting": setting, "throughput": ratios, "resident_mib": grown}, indent=2) + "\n")


if __name__ == "__main__":
    main()
