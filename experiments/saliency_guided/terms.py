"""Why Divergence and CYBORG + entropy lose to CYBORG on the stand-ins: ``python -m experiments.saliency_guided.terms``.

Both are CYBORG plus a term of weight 1. Here the term's weight goes down to 0, which is CYBORG, on seeds that are not
in the table; and the gradient of each term is measured, at the start and after training, beside that of CYBORG's
squared error and of cross-entropy. A cell is one training; a run that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from diffgradcam import GradCAM
from diffgradcam.losses import cam_entropy_loss, cyborg_loss, divergence_salience_loss
from experiments import cells

from .tasks import KINDS, Images, build
from .training import Config, Method, Net, evaluate, train

RESULTS = Path(__file__).parent / "results_terms"
WEIGHTS = (0.1, 1.0, 0.3, 0.03)  # in this order; beside them 0, which is CYBORG
SEEDS = (100, 101, 102, 103)  # the table has 0 to 11
TERMS = ("agreement", "entropy")
PARTS = ("cross_entropy", "squared_error", *TERMS)
_MEASURED = 256  # images that gradients are measured on


def method(term: str, weight: float) -> Method:
    """CYBORG plus a weighted term.

    Args:
        term: One of :data:`TERMS`.
        weight: Its weight; 1 is Divergence, or CYBORG + entropy, of the table.

    Returns:
        What :func:`.training.train` takes.
    """

    def with_agreement(true: Tensor, false: Tensor, human: Tensor, mask: Tensor) -> Tensor:
        return divergence_salience_loss(true, false, human, weight, mask=mask)

    def with_entropy(maps: Tensor, human: Tensor, mask: Tensor) -> Tensor:
        return cyborg_loss(maps, human, mask=mask) + weight * cam_entropy_loss(maps, log=True)

    if weight == 0:
        return Method(cyborg_loss, False)
    return Method(with_agreement, True) if term == "agreement" else Method(with_entropy, False)


def gradients(model: Net, images: Images) -> dict[str, dict[str, float]]:
    """How large each term is, and how hard it pulls.

    Args:
        model: Left as it is, apart from the statistics of its batch norm.
        images: Training images.

    Returns:
        ``value`` and ``gradient`` (its norm over all weights) of each of :data:`PARTS`, all unweighted.
    """
    batch = images.take(torch.arange(min(_MEASURED, len(images.labels))))
    found = {}
    with GradCAM(model, [model.features], rectify=False) as cam:
        for name in PARTS:
            logits = model(batch.images)
            maps = cam.maps(logits, torch.stack([batch.labels, 1 - batch.labels], 1))
            value = _part(name, logits, maps, batch)
            by_weight = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
            norm = torch.stack([each.square().sum() for each in by_weight if each is not None]).sum().sqrt()
            found[name] = {"value": float(value.detach()), "gradient": float(norm)}
    return found


def _part(name: str, logits: Tensor, maps: Tensor, batch: Images) -> Tensor:
    true, false = maps.unbind(1)
    if name == "cross_entropy":
        return F.cross_entropy(logits, batch.labels)
    if name == "entropy":
        return cam_entropy_loss(true, log=True)
    error = cyborg_loss(true, batch.saliency, mask=batch.has_saliency)
    if name == "squared_error":
        return error
    return divergence_salience_loss(true, false, batch.saliency, 1.0, mask=batch.has_saliency) - error


def run(
    results: Path = RESULTS,
    tasks: Sequence[str] = tuple(KINDS),
    seeds: Iterable[int] = SEEDS,
    config: Config = Config(),  # noqa: B008 - immutable
) -> None:
    """Run what is missing.

    Args:
        results: Folder of the cells.
        tasks: Stand-in tasks.
        seeds: Of no seed of the table.
        config: As there.
    """
    finished = cells.names(results, config._asdict())
    cases = [(TERMS[0], 0.0), *((term, weight) for weight in WEIGHTS for term in TERMS)]
    trainings = [(seed, task, *case) for seed in seeds for case in cases for task in tasks]
    todo = [key for key in trainings if _name(*key) not in finished]
    for seed, task, term, weight in tqdm(todo, initial=len(trainings) - len(todo), total=len(trainings)):
        images = build(task, seed, config.train, config.test)
        torch.manual_seed(seed)
        before = gradients(Net().train(), images.train)
        start = time.process_time()
        model = train(method(term, weight), images.train, seed, config)
        cell: dict[str, Any] = {
            "task": task,
            "term": term,
            "weight": weight,
            "seed": seed,
            "held_out": images.held_out,
            "seconds": round(time.process_time() - start, 1),
            "closed": evaluate(model, images.closed),
            "open": evaluate(model, images.open),
            "before": before,
            "after": gradients(model, images.train),
            "config": config._asdict(),
        }
        cells.write(results / f"{_name(seed, task, term, weight)}.json", cell)


def _name(seed: int, task: str, term: str, weight: float) -> str:
    return f"{task}-{term}-{weight:g}-{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.saliency_guided.terms", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(options.results)


if __name__ == "__main__":
    main()
