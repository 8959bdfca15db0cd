"""Run the experiment on real images, cell by cell: ``python -m experiments.saliency_guided.real.run``.

A cell is one training; when it is finished it is one JSON file, written atomically. A run that was killed goes on
where it was. The stages follow each other:

1. ``pilot``: cross-entropy alone with three learning rates, on the development images. All methods then train with
   the best.
2. ``tuning``: three configurations of every method (the same budget), on the development images. Each method then
   has the one with the highest mean AUROC over the four tasks.
3. ``main``: every method, task and seed; tested on images that no choice was made on.
4. ``shortcuts``: what numbers that know nothing of an image's content tell of its class, on the same tests.
5. ``shares``: how many human maps are needed.

Two more need a GPU, and run with ``--device cuda``: ``resnet-pilot``, three learning rates of a ResNet-18 with ImageNet
weights at 224 x 224, by cross-entropy alone on the development images; and ``resnet``, every method with the best. The
methods' other settings are those that ``tuning`` chose for the small network.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Subset
from tqdm import tqdm

from diffgradcam.data import lda_saliency
from diffgradcam.training import InMemory, Settings, SmallNet, evaluate_model, fit
from experiments import cells
from experiments.resnet import PretrainedResNet18

from .regions import judge_regions
from .tasks import build, missing, shortcuts, with_share_of_maps

RESULTS = Path(__file__).parent / "results"
MAIN_TASKS = ("tiles", "faces", "fingerprints", "chestxray")
SEEDS = 10
STAGES = ("pilot", "tuning", "main", "shortcuts", "shares")
GPU_STAGES = ("resnet-pilot", "resnet")
RESNET_TASKS = {"faces": "faces224", "chestxray": "chestxray224"}
RESNET_RATES = (1e-4, 3e-4, 1e-3)
BASE = Settings(loss="ce", epochs=12, select="last")
RATES = (1e-3, 3e-3, 1e-2)
_CHOICE_SEED = 1000  # of pilot and tuning: of no seed of the table
_ALPHAS = tuple({"alpha": alpha} for alpha in (0.25, 0.5, 0.75))

# Of each method: what it is, and the three configurations that it may choose from.
METHODS: dict[str, tuple[dict[str, Any], tuple[dict[str, Any], ...]]] = {
    "CE": ({"loss": "ce"}, tuple({"weight_decay": value} for value in (1e-4, 1e-3, 1e-2))),
    "CYBORG": ({"loss": "cyborg"}, _ALPHAS),
    "Difference": ({"loss": "difference"}, _ALPHAS),
    "Contrast": ({"loss": "contrast"}, _ALPHAS),
    "Divergence": (
        {"loss": "divergence"},
        tuple({"alpha": a, "divergence_weight": w} for a, w in ((0.5, 1.0), (0.5, 0.1), (0.75, 0.1))),
    ),
    "CYBORG dynamic": (
        {"loss": "cyborg"},
        ({"alpha": "dynamic"}, {"alpha": "dynamic", "blur": True}, {"alpha": "dynamic-detached"}),
    ),
    "LDA maps": ({"loss": "cyborg"}, _ALPHAS),
}
REGION_METHODS = ("CE", "Difference")  # whose networks on tiles the post-hoc tool is judged on
SHARES = (0.1, 0.25, 0.5)
SHARE_TASKS = ("tiles", "faces")
SHARE_METHODS = ("CYBORG", "Contrast")
SIDE_METHODS = ("CE", "CYBORG", "Contrast")  # on chestxray64


class Training(NamedTuple):
    """One cell.

    Attributes:
        stage: One of :data:`STAGES` or :data:`GPU_STAGES`.
        task: In :data:`.tasks.TASKS`.
        method: In :data:`METHODS`.
        seed: Of split, weights and order.
        settings: As JSON has them.
        share: Of human maps that training has.
    """

    stage: str
    task: str
    method: str
    seed: int
    settings: dict[str, Any]
    share: float = 1.0

    @property
    def name(self) -> str:
        """Of the cell's file."""
        if self.stage == "shortcuts":
            return f"{self.task}-{self.seed}"
        words = [self.task, re.sub("[^a-z]+", "_", self.method.lower()), str(self.seed)]
        given = Settings.from_dict(self.settings)
        if self.stage in ("pilot", "resnet-pilot"):
            words.append(f"lr{given.learning_rate:g}")
        elif self.stage == "tuning":
            words.append(
                f"wd{given.weight_decay:g}"
                if given.loss == "ce"
                else f"a{given.alpha}" + f"w{given.divergence_weight:g}" * (given.loss == "divergence")
                + "blur" * given.blur
            )  # fmt: skip
        elif self.stage == "shares":
            words.append(f"{self.share:g}")
        return "-".join(words)


def run(
    results: Path = RESULTS,
    tasks: Sequence[str] = MAIN_TASKS,
    seeds: Iterable[int] = range(SEEDS),
    stages: Sequence[str] = STAGES,
    base: Settings = BASE,
    jobs: int = 1,
    device: str = "cpu",
) -> None:
    """Run what is missing, stage by stage and seed by seed, so that an interrupted run has complete seeds.

    Args:
        results: Folder; each stage has one of its own in it.
        tasks: Names in :data:`.tasks.TASKS`; those whose images are not here are said and left out.
        seeds: Seeds of the table.
        stages: Of :data:`STAGES` and :data:`GPU_STAGES`, in this order.
        base: What all trainings have in common.
        jobs: Processes.
        device: Where to train.

    Raises:
        ValueError: If a cell of another configuration lies in ``results``, or a stage lacks an earlier one's cells.
    """
    here = []
    for task in tasks:
        reason = missing(task)
        if reason is None:
            here.append(task)
        else:
            tqdm.write(f"{task} is left out: {reason}")
    for stage in stages:
        config, trainings = _plan(stage, results, here, list(seeds), base)
        finished = cells.names(results / stage, config)
        todo = [training for training in trainings if training.name not in finished]
        bar = tqdm(desc=stage, total=len(trainings), initial=len(trainings) - len(todo))
        with bar:
            if jobs == 1:
                for training in todo:
                    _run_cell(results, config, training, device)
                    bar.update()
            else:
                with ProcessPoolExecutor(
                    jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
                ) as pool:
                    waiting = [pool.submit(_run_cell, results, config, training, device) for training in todo]
                    for each in waiting:
                        each.result()
                        bar.update()


def chosen_rate(results: Path) -> float:
    """The learning rate with the highest mean AUROC on the development images, over the tasks.

    Args:
        results: Folder of the stages.

    Returns:
        One of :data:`RATES`.
    """
    return _best_rate(results / "pilot")


def choices(results: Path) -> dict[str, dict[str, Any]]:
    """Of each method, the configuration with the highest mean AUROC on the development images, over the tasks.

    Args:
        results: Folder of the stages.

    Returns:
        What each method changes of the base settings.
    """
    found = cells.read(results / "tuning")
    chosen = {}
    for method, (_, grid) in METHODS.items():
        own = [cell for cell in found if cell["method"] == method]
        means = _means(own, lambda cell: cell["option"])
        chosen[method] = grid[max(means, key=lambda option: means[option])]
    return chosen


def _best_rate(folder: Path) -> float:
    means = _means(cells.read(folder), lambda cell: cell["settings"]["learning_rate"])
    return max(means, key=lambda rate: means[rate])


def _means(found: Sequence[dict[str, Any]], key: Any) -> dict[Any, float]:
    values: dict[Any, list[float]] = {}
    for cell in found:
        values.setdefault(key(cell), []).append(cell["development"]["auroc"])
    most = max(map(len, values.values()), default=0)
    if not most or any(len(each) != most for each in values.values()):
        raise ValueError("pilot or tuning is not finished: run those stages first")
    return {each: sum(numbers) / len(numbers) for each, numbers in values.items()}


def _plan(
    stage: str, results: Path, tasks: Sequence[str], seeds: Sequence[int], base: Settings
) -> tuple[dict[str, Any], list[Training]]:
    """The configuration of a stage and its trainings, in order."""
    if stage == "pilot":
        options = [replace(base, learning_rate=rate) for rate in RATES]
        return {"base": base.to_dict()}, [
            Training(stage, task, "CE", _CHOICE_SEED, each.to_dict()) for task in tasks for each in options
        ]
    if stage == "resnet-pilot":
        base = replace(base, amp=True)
        return {"base": base.to_dict()}, [
            Training(stage, RESNET_TASKS[task], "CE", _CHOICE_SEED, replace(base, learning_rate=rate).to_dict())
            for task in tasks
            if task in RESNET_TASKS
            for rate in RESNET_RATES
        ]
    if stage == "resnet":
        base = replace(base, amp=True, learning_rate=_best_rate(results / "resnet-pilot"))
        tasks = [RESNET_TASKS[task] for task in tasks if task in RESNET_TASKS]
    else:
        base = replace(base, learning_rate=chosen_rate(results))
    if stage == "tuning":
        return {"base": base.to_dict()}, [
            Training(stage, task, method, _CHOICE_SEED, replace(base, **what, **option).to_dict())
            for task in tasks
            for method, (what, options) in METHODS.items()
            for option in options
        ]
    side = ["chestxray64"] if "chestxray" in tasks else []
    if stage == "shortcuts":
        return {}, [Training(stage, task, "none", seed, {}) for seed in seeds for task in [*tasks, *side]]
    chosen = choices(results)
    config = {"base": base.to_dict(), "choices": chosen}
    settings = {method: replace(base, **what, **chosen[method]).to_dict() for method, (what, _) in METHODS.items()}
    if stage == "shares":
        return config, [
            Training(stage, task, method, seed, settings[method], share)
            for seed in seeds
            for task in tasks
            if task in SHARE_TASKS
            for method in SHARE_METHODS
            for share in SHARES
        ]
    return config, [
        Training(stage, task, method, seed, settings[method])
        for seed in seeds
        for task in [*tasks, *side]
        for method in (SIDE_METHODS if task in side else METHODS)
    ]


def _run_cell(results: Path, config: dict[str, Any], training: Training, device: str) -> None:
    images = build(training.task, training.seed)
    if training.stage == "shortcuts":
        cell: dict[str, Any] = {"task": training.task, "seed": training.seed, "held_out": images.held_out}
        cell |= {"closed": shortcuts(images.closed), "open": shortcuts(images.open), "config": config}
        cells.write(results / training.stage / f"{training.name}.json", cell)
        return
    settings = replace(Settings.from_dict(training.settings), seed=training.seed)
    train = images.train
    if training.method == "LDA maps":
        train = InMemory(train.images, train.labels, lda_saliency(train.images, train.labels), groups=train.groups)
    if training.share < 1:
        train = with_share_of_maps(train, training.share, training.seed)
    torch.manual_seed(training.seed)
    large = training.stage in GPU_STAGES
    model: nn.Module = PretrainedResNet18(2) if large else SmallNet(2, train.images.shape[1])
    layer = "body.layer4" if large else "features"
    start = time.process_time()
    model = fit(model, train, settings, layer=layer, device=device).model
    seconds = time.process_time() - start
    cell = {
        "task": training.task,
        "method": training.method,
        "seed": training.seed,
        "held_out": images.held_out,
        "settings": settings.to_dict(),
        "seconds": round(seconds, 1),  # of one core, for the training
        "images": {part: len(getattr(images, part)) for part in ("train", "closed", "open", "development")},
        "human_maps": int(train.has_saliency.sum()),
        "config": config,
    }
    if training.stage == "shares":
        cell["share"] = training.share
    if training.stage == "tuning":
        what, grid = METHODS[training.method]
        start_from = replace(Settings.from_dict(config["base"]), seed=training.seed)
        cell["option"] = [replace(start_from, **what, **option) for option in grid].index(settings)
    parts = ("closed", "open") if training.stage in ("main", "shares", "resnet") else ("development",)
    for part in parts:
        test = getattr(images, part)
        found = evaluate_model(model, test, layer=layer, device=device, resamples=0)
        values = {name: estimate.value for name, estimate in found.decisions.items()}
        for name, matches in found.maps.items():
            values |= {f"{name}_{key}": estimate.value for key, estimate in matches.items()}
        cell[part] = values
    if training.stage == "main" and training.task == "tiles" and training.method in REGION_METHODS:
        both = Subset(images.closed.dataset, sorted({*images.closed.indices, *images.open.indices}))
        cell["regions"] = judge_regions(model, both, layer, training.seed)
    cells.write(results / training.stage / f"{training.name}.json", cell)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.saliency_guided.real.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0 (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=MAIN_TASKS, default=MAIN_TASKS, help="default: all")
    stages = (*STAGES, *GPU_STAGES)
    parser.add_argument("--stages", nargs="+", choices=stages, default=STAGES, help="default: the first five")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one core each (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to train (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(options.results, options.tasks, range(options.seeds), options.stages, jobs=options.jobs, device=options.device)


if __name__ == "__main__":
    main()
