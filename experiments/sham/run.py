"""Run the experiment, cell by cell: ``python -m experiments.sham.run``.

A cell is one (setting, attack, strength, seed), or the clean model of a (setting, seed); a finished cell is one JSON
file, written atomically. A run that was stopped continues where it was: cells that exist are skipped. The strengths
that the tables show run first, seed by seed; the others follow, with the first seed only.
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from diffgradcam import benchmark, explain_together
from diffgradcam.metrics import pearson
from experiments import cells

from .attacks import ATTACKS, CLOSED_FORM, TRAINING, shown_strength, training_of
from .explainers import explainers
from .settings import SEEDS, SETTINGS, Batches, Setting, build

RESULTS = Path(__file__).parent / "results"
CLEAN = "clean"
SWEPT_SETTINGS = ("digits", "orientation", "lite0-1000")  # whose fine-tuning is swept over strengths, with one seed
SWEPT_ATTACKS = ("SHAM on GradCAM", "SHAM on DiffGradCAM logsumexp")
_COMPARED = 3  # number of batches of the fitted images
_DIGITS = 4  # significant digits in a cell


def run(
    results: Path = RESULTS,
    settings: Sequence[str] = tuple(SETTINGS),
    seeds: Iterable[int] = range(SEEDS),
    sweep: bool = True,
) -> None:
    """Run the cells that are missing.

    Args:
        results: Folder of the cells.
        settings: Names in :data:`.settings.SETTINGS`.
        seeds: Seeds.
        sweep: Whether to run also the strengths that the tables do not show.

    Raises:
        ValueError: If ``results`` has a cell of another configuration, because the two must not be compared.
    """
    finished = cells.names(results, _config())
    wanted = plan(settings, tuple(seeds), sweep)
    missing = [key for key in wanted if name(*key) not in finished]
    progress = tqdm(missing, desc="cells", initial=len(wanted) - len(missing), total=len(wanted))
    built: tuple[Any, ...] = ()
    for key in progress:
        which, attack, strength, seed = key
        progress.set_postfix_str(f"{which}, {attack} {strength}, seed {seed}")
        if built[:2] != (which, seed):
            built = (which, seed, build(which, seed))
        setting: Setting = built[2]
        cell = {"setting": which, "attack": attack, "strength": strength, "seed": seed, "config": _config()}
        start = time.process_time()
        if strength is None:
            cell |= {"maps": clean_maps(setting)}
        else:
            fooled = ATTACKS[attack].make(setting, strength, training_of(which), seed)
            for part, batches in (("fitted", setting.fitted[:_COMPARED]), ("held_out", setting.held_out)):
                cell[part] = compare(setting, fooled, batches)
        cells.write(results / f"{name(*key)}.json", cell | {"seconds": round(time.process_time() - start, 1)})


def plan(settings: Sequence[str], seeds: Sequence[int], sweep: bool = True) -> list[tuple[str, str, float | None, int]]:
    """All cells in the order in which they run, those of the tables first."""
    shown = [
        (setting, attack, strength, seed)
        for seed in seeds
        for setting in settings
        for attack, strength in ((CLEAN, None), *((attack, shown_strength(setting, attack)) for attack in ATTACKS))
    ]
    swept = [
        (setting, attack, strength, seed)
        for seed in (seeds[:1] if sweep else ())
        for setting in settings
        for attack, spec in ATTACKS.items()
        for strength in spec.strengths
        if attack in CLOSED_FORM or (setting in SWEPT_SETTINGS and attack in SWEPT_ATTACKS)
    ]
    return list(dict.fromkeys([*shown, *swept]))


def name(setting: str, attack: str, strength: float | None, seed: int) -> str:
    """Name of a cell's file, without ``.json``."""
    how = "" if strength is None else f"-{strength:g}"
    return f"{setting}-{re.sub('[^a-z]+', '_', attack.lower())}{how}-{seed}"


def compare(setting: Setting, fooled: nn.Module, batches: Batches) -> dict[str, Any]:
    """The means of :func:`diffgradcam.benchmark` over the images; intervals are taken over seeds, in the report."""
    loader = [batch if setting.labelled else batch[0] for batch in batches]
    result = benchmark(
        setting.model, fooled, explainers(setting.layer), loader, mask=setting.mask, resamples=0, progress=False
    )
    return {
        "decisions": _means(asdict(result.decisions)),
        "rows": {
            row.explainer: _means({k: v for k, v in asdict(row).items() if k != "explainer"}) for row in result.rows
        },
    }


def clean_maps(setting: Setting) -> dict[str, float]:
    """How similar each explainer's map of the clean model is to GradCAM's: mean r over the held-out images."""
    named = explainers(setting.layer)
    cams = [make(setting.model) for make in named.values()]
    sums, seen = torch.zeros(len(named), dtype=torch.float64), 0
    for images, *_ in setting.held_out:
        maps = [explanation.maps for explanation in explain_together(cams, images)]
        sums += torch.stack([pearson(each, maps[0]).double().sum() for each in maps])
        seen += len(images)
    return {explainer: round(value, _DIGITS) for explainer, value in zip(named, (sums / seen).tolist(), strict=True)}


def _means(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The means of the estimates, with the same nesting; None if a mean is not defined."""
    means: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, Mapping) and "mean" in value:
            means[key] = float(f"{value['mean']:.{_DIGITS}g}") if value["n"] else None
        else:
            means[key] = _means(value) if isinstance(value, Mapping) else value
    return means


def _config() -> dict[str, Any]:
    return {"training": {setting: list(training) for setting, training in TRAINING.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sham.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0 (default: %(default)s)")
    parser.add_argument("--settings", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS), help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    parser.add_argument("--no-sweep", action="store_true", help="only the strengths that the tables show")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)  # of the converter from ONNX
    run(options.results, options.settings, range(options.seeds), not options.no_sweep)


if __name__ == "__main__":
    main()
