"""Run the comparison, method by method: ``python -m experiments.faithfulness.run``.

A cell is one method, plain or contrastive, on all photographs; a finished cell is one JSON file, written
atomically, with a value for each photograph. A run that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffgradcam.heatmaps import rectify
from diffgradcam.metrics import Evaluator, average_drop, average_gain, average_increase, deletion, insertion, road
from experiments import cells
from experiments.photos import centre, lite0, photo, to_input

from .methods import METHODS, Make

RESULTS = Path(__file__).parent / "results"
PHOTOS = (
    "astronaut", "camera", "cat", "clock", "coffee", "coins", "rocket", "stereo_motorcycle", "china", "flower",
)  # fmt: skip
STEPS = 20  # of deletion and insertion
PERCENTILES = (20, 50, 80)  # of ROAD
SLOW = ("ScoreCAM",)  # last: a forward pass for each of 1280 channels


def run(
    results: Path = RESULTS, photos: Sequence[str] = PHOTOS, methods: Sequence[tuple[str, str]] = tuple(METHODS)
) -> None:
    """Run the cells that are missing.

    Args:
        results: Folder of the cells.
        photos: Names of photographs, of scikit-image or scikit-learn.
        methods: Keys of :data:`.methods.METHODS`.

    Raises:
        ValueError: If ``results`` has a cell of another configuration, because the two must not be compared.
    """
    config = {"photos": list(photos), "steps": STEPS, "percentiles": list(PERCENTILES)}
    finished = cells.names(results, config)
    missing = sorted((key for key in methods if name(*key) not in finished), key=lambda key: key[0] in SLOW)
    model, images = lite0(), to_input([centre(photo(each)) for each in photos])
    for key in tqdm(missing, desc="methods", initial=len(methods) - len(missing), total=len(methods)):
        method, explains = key
        start = time.process_time()
        metrics = measure(METHODS[key], model, images)
        cell = {"method": method, "explains": explains, "config": config, "metrics": metrics}
        cells.write(results / f"{name(*key)}.json", cell | {"seconds": round(time.process_time() - start, 1)})


def name(method: str, explains: str) -> str:
    """Name of a cell's file, without ``.json``."""
    text = f"{method.replace('++', ' plus plus')}-{explains}"
    return re.sub("[^a-z0-9-]+", "_", text.lower())


def measure(make: Make, model: nn.Module, images: Tensor) -> dict[str, list[float]]:
    """All metrics of one method, one value for each image.

    Pixels are ranked by the *signed* map, so that pixels without evidence have an order, too. For average drop,
    increase and gain, the image is multiplied by the rectified map, which is the map that people see.
    """
    found: dict[str, list[Tensor]] = {}
    evaluator = Evaluator(model)
    for image in images.split(1):
        began = time.perf_counter()
        _, classes, maps = make(model).explain(image)
        seconds = time.perf_counter() - began
        removed = road(evaluator, image, maps, classes, percentiles=PERCENTILES, progress=False)
        seen = rectify(maps)
        values = {
            "deletion": deletion(evaluator, image, maps, classes, steps=STEPS, progress=False).auc,
            "insertion": insertion(evaluator, image, maps, classes, steps=STEPS, progress=False).auc,
            "road": removed.combined,
            "drop": average_drop(evaluator, image, seen, classes),
            "increase": average_increase(evaluator, image, seen, classes),
            "gain": average_gain(evaluator, image, seen, classes),
            "seconds": torch.tensor([seconds]),
        }
        for metric, value in values.items():
            found.setdefault(metric, []).append(value)
    return {metric: [round(v, 5) for v in torch.cat(values).tolist()] for metric, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.faithfulness.run", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    parser.add_argument(
        "--part", default="0/1", help="this process takes every n-th method: 0/2 and 1/2 for two of them"
    )
    options = parser.parse_args(arguments)
    part, parts = (int(number) for number in options.part.split("/"))
    torch.set_num_threads(1)
    run(options.results, methods=tuple(METHODS)[part::parts])


if __name__ == "__main__":
    main()
