"""Run the experiment, cell by cell: ``python -m experiments.lies.run``.

A cell is one (setting, attack, bound, seed); a finished cell is one JSON file, written atomically. A run that was
stopped continues where it was. The order is such that a table of what is there can be published at any time: the first
seed of every setting, with the attacks of the first figure; then the others, the curves, the other seeds, and the whole
of a ResNet-18.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments import cells
from experiments.sham.explainers import CONTRASTIVE, PLAIN

from . import measure
from .attacks import ANY_FUNCTION, ATTACKS, BUDGETS, CURVE, KEEP, ON_INPUTS, TRAINED, make, triggered
from .measure import Shown
from .settings import SETTINGS, WHOLE, Setting, build

RESULTS = Path(__file__).parent / "results"
SEEDS = 3
FIRST = (
    "common mode", "SHAM on GradCAM", "SHAM on DiffGradCAM logsumexp", "autofool on GradCAM",
    "autofool on DiffGradCAM logsumexp", "autofool on three", "wrapper", "spatial",
)  # fmt: skip
CURVES = ("autofool on GradCAM", "autofool on DiffGradCAM logsumexp", "autofool on three")
CURVED = ("digits", "tiles", "lite0-1000")
ON_WHOLE = (  # where all of a large network may change
    "SHAM on GradCAM", "SHAM on DiffGradCAM logsumexp", "autofool on GradCAM", "autofool on DiffGradCAM logsumexp",
    "autofool on DiffGradCAM logsumexp, behaviour free",
)  # fmt: skip
PERTURBED = {  # how many held-out images, steps, grey levels
    "digits": (32, 20, 1.0),
    "tiles": (16, 20, 4.0),
    "orientation": (8, 10, 4.0),
    "lite0": (16, 10, 4.0),
    "resnet18": (16, 10, 4.0),
}
_FEW = ["GradCAM", "LayerCAM", "DiffGradCAM logsumexp"]  # the explainers whose images are changed in large networks

Key = tuple[str, str, float | None, int]  # setting, attack, bound, seed


def run(results: Path = RESULTS, wanted: Sequence[Key] | None = None, device: str = "cpu", jobs: int = 1) -> None:
    """Run the cells that are missing.

    Args:
        results: Folder of the cells.
        wanted: Which; by default all of :func:`plan`.
        device: Where models run.
        jobs: Processes, which may share a device.

    Raises:
        ValueError: If ``results`` has a cell of another configuration, because the two must not be compared.
    """
    finished = cells.names(results, config())
    missing = [key for key in (plan() if wanted is None else wanted) if name(*key) not in finished]
    progress = tqdm(desc="cells", total=len(missing))
    with progress:
        if jobs == 1:
            for key in missing:
                progress.set_postfix_str(name(*key))
                _run_cell(results, device, key)
                progress.update()
        else:
            with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_prepare_process) as pool:
                waiting = [pool.submit(_run_cell, results, device, key) for key in missing]
                for each in waiting:
                    each.result()
                    progress.update()


def _run_cell(results: Path, device: str, key: Key) -> None:
    which, attack, keep, seed = key
    setting, clean = _built(which, seed, device)
    start = time.process_time()
    found = {"setting": which, "attack": attack, "keep": keep, "seed": seed, "config": config(), "device": device}
    found |= cell(setting, clean, *key)
    cells.write(results / f"{name(*key)}.json", found | {"seconds": round(time.process_time() - start, 1)})


@lru_cache(maxsize=2)  # the plan goes to and fro between settings, and the large ones are large
def _built(which: str, seed: int, device: str) -> tuple[Setting, dict[str, Shown]]:
    """A setting and what its clean model shows, by the name of the part."""
    setting = build(which, seed, device)
    return setting, {
        part: measure.shown(setting, setting.tail, getattr(setting, part)) for part in ("fitted", "held_out")
    }


def _prepare_process() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False  # divergences are measured down to 1e-6
    warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # of the converter from ONNX


def cell(
    setting: Setting, clean: dict[str, Shown], which: str, attack: str, keep: float | None, seed: int
) -> dict[str, Any]:
    """What a cell holds.

    Args:
        setting: The setting.
        clean: What its clean model shows, by the name of the part.
        which: Its name.
        attack: In :data:`.attacks.ATTACKS`.
        keep: The bound, in nats; None for none.
        seed: Of everything random.

    Returns:
        Numbers that JSON can represent.
    """
    found: dict[str, Any] = {"accuracy": setting.accuracy}
    if attack == ON_INPUTS:
        count, steps, levels = PERTURBED[which.split("-")[0]]
        names = [*PLAIN, *CONTRASTIVE] if which in ("digits", "tiles") else _FEW
        assert keep is not None
        return found | {"held_out": measure.compare_perturbed(setting, names, count, steps, levels, keep)}
    if attack == "triggered":
        fooled = triggered(setting)
        for part in ("fitted", "held_out"):
            found[part] = measure.compare_triggered(setting, fooled, getattr(setting, part))
        return found
    tail, found["made"] = make(setting, which, attack, keep, seed)
    for part, before in clean.items():
        after = measure.shown(setting, tail, getattr(setting, part), before.logits.argmax(1))
        found[part] = measure.compare(before, after, setting.mask)
    return found


def plan() -> list[Key]:
    """All cells in the order in which they run."""
    wanted: list[Key] = []

    def add(settings: Sequence[str], among: Sequence[str], seed: int = 0) -> None:
        wanted.extend((which, attack, bound(attack), seed) for which in settings for attack in among)

    settings = [which for which in SETTINGS if which != WHOLE]
    for which in settings:
        add([which], FIRST)
    for which in settings:
        add([which], ATTACKS)
    wanted.extend((which, attack, keep, 0) for which in CURVED for attack in CURVES for keep in CURVE)
    wanted.extend((which, attack, None, 0) for which in settings for attack in TRAINED)
    for seed in range(1, SEEDS):
        for which in settings:
            add([which], ATTACKS, seed)
    add([WHOLE], ON_WHOLE)
    return list(dict.fromkeys(wanted))


def bound(attack: str) -> float | None:
    """The bound of an attack in the tables; None where every decision stays anyway."""
    return None if attack in ANY_FUNCTION else KEEP


def name(setting: str, attack: str, keep: float | None, seed: int) -> str:
    """Name of a cell's file, without ``.json``."""
    return f"{setting}-{re.sub('[^a-z]+', '_', attack.lower())}{'' if keep is None else f'-{keep:g}'}-{seed}"


def config() -> dict[str, Any]:
    """What all cells have in common."""
    return {"budgets": {which: list(budget) for which, budget in BUDGETS.items()}, "steps": measure.STEPS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.lies.run", description=__doc__)
    parser.add_argument(
        "--settings", nargs="+", choices=tuple(SETTINGS), default=[which for which in SETTINGS if which != WHOLE],
        help=f"default: all but {WHOLE}, which needs a GPU",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0 (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    parser.add_argument("--device", default="cpu", help="where models run, such as cuda (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one core each (default: %(default)s)")
    options = parser.parse_args(arguments)
    _prepare_process()
    wanted = [key for key in plan() if key[0] in options.settings and key[3] < options.seeds]
    run(options.results, wanted, options.device, options.jobs)


if __name__ == "__main__":
    main()
