"""Run the study, model by model: ``python -m experiments.audit.run``.

A cell is one clean model with all its fooled versions; a finished cell is one JSON file, written atomically. A run
that was stopped continues where it was: cells that exist are skipped. A clean model that has not learned (the rule is
in :func:`.zoo.learned`) is also written, without fooled versions, so that the report can count it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffgradcam import DiffGradCAM, GradCAM, audit
from diffgradcam.metrics.similarity import pearson
from diffgradcam.sham import border_mask, common_mode_hoax, finetune, spatial_hoax
from experiments import cells
from experiments.photos import lite0

from .zoo import CLASSES, DATA, LAYER, Backbone, Config, Data, designs, learned, photographs, restricted, train

RESULTS = Path(__file__).parent / "results"
SPLITS = ("calibration", "lite0", "test")
MEASURED = ("common_mode_share", "gradcam_agreement", "diffgradcam_agreement")  # by the audit, for each image
DIGITS = 4  # significant digits in a cell

Attack = Callable[[nn.Module, Tensor, Tensor, int], nn.Module]  # model, the attacker's images, mask, seed


def attacks(config: Config, train_all: bool = True) -> dict[str, Attack]:
    """The attacks, by name.

    Args:
        config: Strengths and budgets.
        train_all: With the attacks that train the whole model.

    Returns:
        Functions that give a fooled copy.
    """

    def common_mode(strength: float) -> Attack:
        return lambda model, images, mask, _: common_mode_hoax(model, LAYER, images, mask, strength=strength)

    def spatial(permutation: Callable[[Tensor], Tensor]) -> Attack:
        return lambda model, _images, _mask, _: spatial_hoax(model, LAYER, permutation)

    def trained(**options: Any) -> Attack:
        def attack(model: nn.Module, images: Tensor, mask: Tensor, seed: int) -> nn.Module:
            fooled = finetune(
                model,
                list(images.split(config.batch)),
                LAYER,
                mask,
                epochs=config.fool_epochs,
                preserve="decisions",
                alpha=config.fool_alpha,
                decay=False,
                fooled_at=0.9,
                seed=seed,
                progress=False,
                **options,
            )
            return fooled.model

        return attack

    found = {f"common mode {strength:g}": common_mode(strength) for strength in config.strengths}
    found["common mode, trained"] = trained(scope="common_mode", lr=0.005)
    found["roll"] = spatial(lambda a: a.roll((a.shape[2] // 2, a.shape[3] // 2), dims=(2, 3)))
    found["flip"] = spatial(lambda a: a.flip((2, 3)))
    if train_all:
        found["trained on GradCAM"] = trained(method=GradCAM, lr=1e-3)
        found["trained on DiffGradCAM"] = trained(method=DiffGradCAM, lr=1e-3)
    return found


def run(results: Path = RESULTS, splits: Sequence[str] = SPLITS, config: Config = Config()) -> None:  # noqa: B008
    """Run the cells that are missing.

    Args:
        results: Folder of the cells.
        splits: ``"calibration"``, ``"lite0"``, ``"test"``.
        config: What all models have in common.

    Raises:
        ValueError: If a cell of another configuration lies in ``results``: the two must not be compared.
    """
    finished = cells.names(results, config._asdict())
    names = [(split, index) for split in splits for index in range(planned(split, config))]
    missing = [(split, index) for split, index in names if f"{split}-{index:02d}" not in finished]
    real: tuple[Backbone, Data] | None = None
    with tqdm(missing, desc="models", initial=len(names) - len(missing), total=len(names)) as progress:
        for split, index in progress:
            name = f"{split}-{index:02d}"
            progress.set_postfix_str(name)
            start = time.process_time()
            if split == "lite0":
                real = real or (Backbone(lite0()), photographs(config))
                cell = _real_cell(*real, CLASSES[index], config)
            else:
                cell = _small_cell(split, index, config)
            seconds = round(time.process_time() - start, 1)  # on one core, for all versions
            cells.write(
                results / f"{name}.json", {"split": split, **cell, "seconds": seconds, "config": config._asdict()}
            )


def planned(split: str, config: Config) -> int:
    """How many models a split has."""
    return len(CLASSES) if split == "lite0" else len(designs(split, config))


def _small_cell(split: str, index: int, config: Config) -> dict[str, Any]:
    design = designs(split, config)[index]
    data = DATA[design.data][2](design.seed, config)
    start = time.process_time()
    model = train(design, data, config)
    seconds = round(time.process_time() - start, 1)
    accuracy = _accuracy(_logits(model, data.held_out), data)
    assert accuracy is not None
    has_learned = learned(design.data, accuracy, config)
    found = {"design": design._asdict(), "training_seconds": seconds, "accuracy": accuracy, "learned": has_learned}
    if not has_learned:
        return found | {"versions": {}}
    return found | {"versions": dict(_versions(model, data, attacks(config), design.seed, config))}


def _real_cell(shared: Backbone, data: Data, classes: int, config: Config) -> dict[str, Any]:
    """Leave out attacks that train the whole model, which are in the SHAM experiment, and the accuracy."""
    model = restricted(shared, classes, data.held_out)
    versions = _versions(model, data, attacks(config, train_all=False), 0, config)
    return {"design": {"architecture": "EfficientNet-Lite0", "classes": classes}, "versions": dict(versions)}


def _versions(
    clean: nn.Module, data: Data, by: dict[str, Attack], seed: int, config: Config
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For the clean model and each fooled one: whether decisions stay and maps move, and what the audit measures."""
    audited = data.held_out[: config.images]
    with torch.no_grad():
        size = clean.get_submodule(LAYER)(audited[:1]).shape[2:]
    mask = border_mask(size, round(size.numel() * 4 / 7))  # 28 of 49 cells
    everything: dict[str, Attack] = {"clean": lambda model, *_: model, **by}
    for name, attack in everything.items():
        model = attack(clean, data.train[: config.fool_images], mask, seed)
        yield (
            name,
            {
                **_decisions(clean, model, data),
                **_moved("gradcam", GradCAM, clean, model, audited, mask),
                **_moved("diffgradcam", DiffGradCAM, clean, model, audited, mask),
                **_audited(model, audited),
            },
        )


def _audited(model: nn.Module, images: Tensor) -> dict[str, Any]:
    """What the audit measures; None if it refuses a model whose small logits look like sigmoids."""
    try:
        report = audit(model, LAYER, images, occlusion=True, progress=False)
    except ValueError as error:
        if "sigmoids" not in str(error):
            raise
        nothing = [None] * len(images)
        return {"weight_share": None} | dict.fromkeys(MEASURED, nothing)
    assert report.weight_share is not None
    return {
        "weight_share": _short(report.weight_share),
        **{name: [_short(value) for value in getattr(report, name).tolist()] for name in MEASURED},
    }


def _decisions(clean: nn.Module, model: nn.Module, data: Data) -> dict[str, float | None]:
    """On held-out images: accuracy (with labels), agreement with the clean model, largest change of a probability."""
    before, after = _logits(clean, data.held_out), _logits(model, data.held_out)
    return {
        "accuracy": _accuracy(after, data),
        "agreement": _mean(before.argmax(1) == after.argmax(1)),
        "probability_change": _short(float((before.softmax(1) - after.softmax(1)).abs().max())),
    }


def _moved(
    name: str, method: Callable[..., Any], clean: nn.Module, model: nn.Module, images: Tensor, mask: Tensor
) -> dict[str, float]:
    """Mean Pearson's r of a model's maps with those of the clean model and with the mask, for the clean decisions."""
    _, classes, before = method(clean, LAYER).explain(images)
    after = method(model, LAYER).explain(images, classes).maps
    return {
        f"{name}_kept": _mean(pearson(after, before)),
        f"{name}_reached": _mean(pearson(after, mask.expand_as(after))),
    }


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(100)])


def _accuracy(logits: Tensor, data: Data) -> float | None:
    return None if data.held_out_labels is None else _mean(logits.argmax(1) == data.held_out_labels)


def _mean(values: Tensor) -> float:
    return _short(float(values.float().mean()))


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit.run", description=__doc__)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(options.results, options.splits)


if __name__ == "__main__":
    main()
