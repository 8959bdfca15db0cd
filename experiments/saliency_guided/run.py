"""Run the experiment, cell by cell: ``python -m experiments.saliency_guided.run``.

A cell is one (task, setting, method, seed); when it is finished it is one JSON file, written atomically. A run that
was killed goes on where it was: cells that exist are skipped. The two settings of a (task, method, seed) are two tests
of *one* training, whose images lack one kind: the closed set is tested on the kinds that it had, the open set on the
kind that it lacked.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from experiments import cells

from .tasks import KINDS, build
from .training import METHODS, Config, evaluate, train

RESULTS = Path(__file__).parent / "results"
SETTINGS = ("closed", "open")
SEEDS = 12  # three rounds of the four kinds of each task


def run(
    results: Path = RESULTS,
    tasks: Sequence[str] = tuple(KINDS),
    methods: Sequence[str] = tuple(METHODS),
    seeds: Iterable[int] = range(SEEDS),
    config: Config = Config(),  # noqa: B008 - immutable
) -> None:
    """Run what is missing, seed by seed, so that an interrupted run has complete seeds.

    Args:
        results: Folder of the cells.
        tasks: Names in :data:`.tasks.KINDS`.
        methods: Names in :data:`.training.METHODS`.
        seeds: Seeds; each leaves out another kind.
        config: What every training has in common.

    Raises:
        ValueError: If a cell of another configuration lies in ``results``: the two must not be compared.
    """
    finished = cells.names(results, config._asdict())
    trainings = [(seed, task, method) for seed in seeds for task in tasks for method in methods]
    missing = [key for key in trainings if not finished.issuperset(_name(*key, setting) for setting in SETTINGS)]
    progress = tqdm(missing, desc="trainings", initial=len(trainings) - len(missing), total=len(trainings))
    built: tuple[Any, ...] = ()
    for seed, task, method in progress:
        progress.set_postfix_str(f"seed {seed}, {task}, {method}")
        if built[:2] != (seed, task):
            built = (seed, task, build(task, seed, config.train, config.test))
        images = built[2]
        start = time.process_time()
        model = train(method, images.train, seed, config)
        seconds = time.process_time() - start
        for setting, test in zip(SETTINGS, (images.closed, images.open), strict=True):
            cell = {
                "task": task,
                "setting": setting,
                "method": method,
                "seed": seed,
                "held_out": images.held_out,
                "metrics": evaluate(model, test),
                "seconds": round(seconds, 1),  # of one core, for the training
                "config": config._asdict(),
            }
            cells.write(results / f"{_name(seed, task, method, setting)}.json", cell)


def _name(seed: int, task: str, method: str, setting: str) -> str:
    return f"{task}-{setting}-{re.sub('[^a-z]+', '_', method.lower())}-{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.saliency_guided.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0 (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=tuple(KINDS), default=tuple(KINDS), help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(options.results, options.tasks, seeds=range(options.seeds))


if __name__ == "__main__":
    main()
