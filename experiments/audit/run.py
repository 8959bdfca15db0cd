"""Run the study, model by model: ``python -m experiments.audit.run``.

A cell is one clean model with all that was made of it, fooled and harmless; a finished cell is one JSON file, written
atomically. A run that was stopped continues where it was: cells that exist are skipped. With ``--jobs`` several cells
are computed at a time, each on one core. A clean model that has not learned (the rule is in :func:`.zoo.learned`) is
also written, without versions, so that the report can count it. The real models, and the networks for fingerprints, are
skipped, with a word, where their weights and images are not there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from diffgradcam import DiffGradCAM, GradCAM
from diffgradcam.sham import border_mask, common_mode_hoax, finetune, spatial_hoax
from experiments import cells

from . import real
from .harmless import int8, new_head, product_quantised, pruned, softened
from .signs import Measured, logits_of, mean
from .zoo import DATA, HEAD, LAYER, Classifier, Config, Data, Design, designs, learned, train

RESULTS = Path(__file__).parent / "results"
SPLITS = ("calibration", "real", "test")
HARMLESS = ("int8", "pruned", "product-quantised", "distilled", "new head", "mixup")  # one for each small network
_REAL_EPOCHS = 12  # of the attack that trains a real model

Attack = Callable[[nn.Module, Tensor, Tensor, int], nn.Module]  # model, the attacker's images, mask, seed


def attacks(config: Config) -> dict[str, Attack]:
    """The attacks, by name.

    Args:
        config: Strengths and budgets.

    Returns:
        Functions that give a fooled copy.
    """

    def trained(method: Callable[..., Any], *, corner: bool = False) -> Attack:
        def attack(model: nn.Module, images: Tensor, mask: Tensor, seed: int) -> nn.Module:
            mask = _corner(mask) if corner else mask
            fooled = finetune(
                model,
                list(images.split(config.batch)),
                LAYER,
                mask,
                method=method,
                epochs=config.fool_epochs,
                preserve="decisions",
                alpha=config.fool_alpha,
                lr=1e-3,
                decay=False,
                fooled_at=0.9,
                seed=seed,
                progress=False,
            )
            return fooled.model

        return attack

    return {
        **_closed_forms(config),
        "trained on GradCAM": trained(GradCAM),
        "trained on DiffGradCAM": trained(DiffGradCAM),
        "trained on DiffGradCAM, corner": trained(DiffGradCAM, corner=True),
    }


def _closed_forms(config: Config) -> dict[str, Attack]:
    def common_mode(strength: float) -> Attack:
        return lambda model, images, mask, _: common_mode_hoax(model, LAYER, images, mask, strength=strength)

    def spatial(permutation: Callable[[Tensor], Tensor]) -> Attack:
        return lambda model, _images, _mask, _: spatial_hoax(model, LAYER, permutation)

    found = {f"common mode {strength:g}": common_mode(strength) for strength in config.strengths}
    found["roll"] = spatial(lambda a: a.roll((a.shape[2] // 2, a.shape[3] // 2), dims=(2, 3)))
    found["flip"] = spatial(lambda a: a.flip((2, 3)))
    return found


def run(
    results: Path = RESULTS,
    splits: Sequence[str] = SPLITS,
    config: Config = Config(),  # noqa: B008
    jobs: int = 1,
) -> None:
    """Run the cells that are missing.

    Args:
        results: Folder of the cells.
        splits: ``"real"``, ``"calibration"``, ``"test"``.
        config: What all models have in common.
        jobs: How many cells at a time, each in a process of its own with one thread.

    Raises:
        ValueError: If a cell of another configuration lies in ``results``: the two must not be compared.
    """
    finished = cells.names(results, config._asdict())
    if "real" in splits and (why := real.missing()):
        print(f"real models left out: {why}")
        splits = [split for split in splits if split != "real"]
    names = _order([(split, index) for split in splits for index in range(planned(split, config))])
    without = {name: why for name, source in DATA.items() if (why := source.missing())}
    for name, why in without.items():
        print(f"networks for {name} left out: {why}")
    names = [name for name in names if name[0] == "real" or _design(*name, config).data not in without]
    missing = [(split, index) for split, index in names if f"{split}-{index:02d}" not in finished]
    with tqdm(missing, desc="models", initial=len(names) - len(missing), total=len(names)) as progress:
        if jobs == 1:
            for split, index in progress:
                progress.set_postfix_str(f"{split}-{index:02d}")
                _write(results, split, index, config)
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            slowest_first = sorted(missing, key=lambda name: _cost(*name, config), reverse=True)
            for future in as_completed([pool.submit(_write, results, *name, config) for name in slowest_first]):
                future.result()
                progress.update()


def _write(results: Path, split: str, index: int, config: Config) -> None:
    start = time.process_time()
    cell = _real_cell(list(real.MODELS)[index], config) if split == "real" else _cell(split, index, config)
    seconds = round(time.process_time() - start, 1)  # on one core, for all versions
    cells.write(
        results / f"{split}-{index:02d}.json",
        {"split": split, **cell, "seconds": seconds, "config": config._asdict()},
    )


def _design(split: str, index: int, config: Config) -> Design:
    return designs(split, config)[index]


def _cost(split: str, index: int, config: Config) -> float:
    """Which cells take longest: pixels to train on."""
    if split == "real":
        return float("inf")
    source = DATA[_design(split, index, config).data]
    return source.side**2 * source.epochs(config)


def _order(names: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Some of each split early, so that a run that is stopped has something of all of them."""
    return sorted(names, key=lambda name: name[1] / {"calibration": 1, "real": 1, "test": 3}[name[0]])


def planned(split: str, config: Config) -> int:
    """How many models a split has."""
    return len(real.MODELS) if split == "real" else len(designs(split, config))


# --- small networks --------------------------------------------------------------------------------------------------


def _cell(split: str, index: int, config: Config) -> dict[str, Any]:
    design = _design(split, index, config)
    data = DATA[design.data].make(design.seed, config)
    start = time.process_time()
    model = train(design, data, config)
    seconds = round(time.process_time() - start, 1)
    accuracy = _accuracy(model, data)
    has_learned = learned(design.data, accuracy, config)
    found = {"design": design._asdict(), "training_seconds": seconds, "accuracy": accuracy, "learned": has_learned}
    if not has_learned:
        return found | {"versions": {}}
    audited = data.held_out[: config.images]
    clean = Measured(model, LAYER, audited, lowest=_lowest(model))
    versions = {"clean": _version(model, clean, clean, data)}
    for name, changed in _versions(model, design, data, config, index):
        versions[name] = _version(changed, Measured(changed, LAYER, audited, lowest=_lowest(changed)), clean, data)
    return found | {"versions": versions}


def _lowest(model: nn.Module) -> str:
    """The first activations of a small network."""
    activations = (nn.ReLU, nn.GELU, nn.SiLU)
    layers = model.get_submodule(LAYER).named_children()
    return next(f"{LAYER}.{name}" for name, layer in layers if isinstance(layer, activations))


def _versions(
    model: nn.Module, design: Design, data: Data, config: Config, index: int
) -> Iterator[tuple[str, nn.Module]]:
    mask = _mask(model, data.train)
    for name, attack in attacks(config).items():
        yield name, attack(model, data.train[: config.fool_images], mask, design.seed)
    kind = HARMLESS[index % len(HARMLESS)]
    torch.manual_seed(design.seed)
    yield kind, _harmless(kind, model, design, data, config)


def _harmless(kind: str, model: nn.Module, design: Design, data: Data, config: Config) -> nn.Module:
    if kind == "int8":
        return int8(model)
    if kind == "pruned":
        return pruned(model)
    if kind == "mixup":
        return train(design, data, config, mixup=True)
    if kind == "distilled":
        student = design._replace(architecture="plain", label_smoothing=0.0)
        return train(student, data, config, targets=softened(logits_of(model, data.train)))
    with torch.no_grad():
        features = torch.cat([model.get_submodule(LAYER)(part).mean((2, 3)) for part in data.train.split(100)])
    if kind == "product-quantised":
        return product_quantised(model, HEAD, features, data.train_labels)
    return new_head(model, HEAD, features, data.train_labels)


def _version(model: nn.Module, measured: Measured, clean: Measured, data: Data) -> dict[str, Any]:
    return {"accuracy": _accuracy(model, data), "lower": measured.lower, **measured.truth(clean), **measured.cell()}


def _mask(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        size = model.get_submodule(LAYER)(images[:1]).shape[2:]
    return border_mask(size, round(size.numel() * 4 / 7))  # 28 of 49 cells


def _corner(mask: Tensor) -> Tensor:
    """A quarter of the map, at the top left."""
    corner = torch.zeros_like(mask)
    corner[: mask.shape[0] // 2, : mask.shape[1] // 2] = 1
    return corner


def _accuracy(model: nn.Module, data: Data) -> float:
    return mean(logits_of(model, data.held_out).argmax(1) == data.held_out_labels)


# --- real models -----------------------------------------------------------------------------------------------------


def _real_cell(name: str, config: Config) -> dict[str, Any]:
    made = real.MODELS[name]
    photographs = real.photographs(config.images, *config.photographs)
    attacked, taught, audited = (
        made.prepare(pixels) for pixels in (photographs.attacked, photographs.taught, photographs.audited)
    )
    model = real.classifier(made, made.load())
    clean = Measured(model, LAYER, audited)
    versions: dict[str, Any] = {}

    def measure(kind: str, changed: nn.Module) -> None:
        measured = Measured(changed, LAYER, audited)
        versions[kind] = {"lower": measured.lower, **measured.truth(clean), **measured.cell()}

    measure("clean", model)

    mask = _mask(model, audited)
    for kind, attack in _closed_forms(config).items():
        measure(kind, attack(model, attacked, mask, 0))
    measure("trained on DiffGradCAM", _last_block_attack(model, attacked, mask, config))
    torch.manual_seed(0)
    for kind, changed in _real_heads(model, taught, photographs.labels):
        measure(kind, changed)
    for kind in made.compressed:
        measure(kind, real.classifier(made, {"int8": int8, "pruned": pruned}[kind](made.load())))
    return {"design": {"architecture": name}, "versions": versions}


def _last_block_attack(model: nn.Module, images: Tensor, mask: Tensor, config: Config) -> nn.Module:
    """DiffGradCAM fooled through all that is not shared: the last block and the last layer."""
    fooled = finetune(
        model,
        list(images.split(config.batch)),
        LAYER,
        mask,
        method=DiffGradCAM,
        epochs=_REAL_EPOCHS,
        alpha=config.fool_alpha,
        fooled_at=0.9,
        progress=False,
    )
    return fooled.model


def _real_heads(model: Classifier, images: Tensor, labels: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Last layers that are trained anew: two classes (animal or not), ten (a hundred ImageNet classes each), all."""
    features = real.pooled(model, images)
    animal, tenth = (labels < real.ANIMALS).long(), labels // 100
    with torch.no_grad():
        teacher = softened(model.head(features))
    yield "product-quantised", product_quantised(model, HEAD, features, labels)
    yield "new head, 2 classes", new_head(model, HEAD, features, animal)
    yield "new head, 10 classes", new_head(model, HEAD, features, tenth, optimizer=torch.optim.Adam)
    yield "new head, label smoothing", new_head(model, HEAD, features, tenth, label_smoothing=0.1)
    yield "new head, mixup", new_head(model, HEAD, features, tenth, mixup=True)
    yield "distilled", new_head(model, HEAD, features, teacher)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m experiments.audit.run", description=__doc__)
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells (default: beside this file)")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each on one core (default: 1)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run(options.results, options.splits, jobs=options.jobs)


if __name__ == "__main__":
    main()
