"""One run from images to figures on disk: split, train, keep the weights, test closed and open."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from .._core.layers import LayerSpec
from .._core.persistence import atomic_file
from ..data import SaliencyDataset, SaliencyItem
from ..data.saliency import listed
from .checkpoint import write_checkpoint
from .evaluation import Evaluation, evaluate_model
from .images import InMemory
from .loop import fit, place
from .protocol import Settings, Split, split

_IN_MEMORY = 4 * 2**30  # bytes of images and maps

MODEL, METRICS, STATE = "model.safetensors", "metrics.json", "state.safetensors"


class Data(NamedTuple):
    """Images with all that a split needs.

    Attributes:
        images: Of one size.
        names: Of each image, as the CSV has it.
        labels: Class of each image; 1 is the attack or the finding.
        groups: Such as the kind of attack.
        together: Images with the same name here stay in one part; empty for those that go by themselves.
    """

    images: Dataset[SaliencyItem]
    names: list[str]
    labels: list[int]
    groups: list[str]
    together: list[str]

    @classmethod
    def read(cls, dataset: SaliencyDataset, together: str | None = None) -> Data:
        """Read every image once, so that a bad one is named before anything trains.

        They are kept in memory if that takes at most 4 GiB.

        Args:
            dataset: With a transform that brings images to one size.
            together: Column of the CSV that keeps images together; None for none.

        Returns:
            See :class:`Data`.

        Raises:
            ValueError: If an image cannot be read, or the CSV lacks the column. The message names the rows.
        """
        kept: list[SaliencyItem] | None = []
        errors: list[Exception] = []
        for index in range(len(dataset)):
            try:
                item = dataset[index]
            except (ValueError, OSError) as error:
                errors.append(error)
                continue
            if kept is not None:
                kept.append(item)
                each = item.image.numel() * item.image.element_size() + item.saliency.numel() * 4
                if each * len(dataset) > _IN_MEMORY:
                    kept = None
        if errors:
            raise ValueError(listed(errors))
        return cls(
            dataset if kept is None else InMemory.of_items(kept),
            dataset.column("image"),
            dataset.labels,
            dataset.groups,
            [""] * len(dataset) if together is None else dataset.column(together),
        )

    def fingerprint(self) -> str:
        """Tells one list of images from another: a hash of their names, labels and groups, not of their pixels."""
        rows = list(zip(self.names, self.labels, self.groups, self.together, strict=True))
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]

    def part(self, index: Sequence[int]) -> Subset[SaliencyItem]:
        """Some of the images."""
        return Subset(self.images, index)


class Run(NamedTuple):
    """One training and its tests.

    Attributes:
        hold_out: Group that is left out; None for a closed set alone.
        seed: Of split, weights and order.
    """

    hold_out: str | None
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        kind = "closed" if self.hold_out is None else "without-" + "".join(
            letter if letter.isalnum() else "_" for letter in self.hold_out
        )  # fmt: skip
        return f"{kind}-{self.seed}"


def train_and_test(
    folder: Path,
    data: Data,
    run: Run,
    settings: Settings,
    make_model: Callable[[int], nn.Module],
    about: Mapping[str, Any],
    *,
    layer: LayerSpec,
    reshape_transform: Callable[[Tensor], Tensor] | None = None,
    validation: float = 0.15,
    test: float = 0.25,
    device: str | torch.device = "cpu",
    workers: int = 0,
    progress: bool = False,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Train once and test, or read what that gave before.

    Args:
        folder: Gets a folder for the run, with its weights and its figures.
        data: The images.
        run: Which run.
        settings: Of the training; the run's seed takes the place of theirs.
        make_model: Makes a model from a seed.
        about: What the weights' file says beside the settings, for whoever loads it.
        layer: Where maps are taken.
        reshape_transform: As any CAM takes it.
        validation: Share of the images.
        test: Share of the images.
        device: Where to train.
        workers: Processes that read images.
        progress: Show a bar.
        resamples: Of the test images, for intervals.

    Returns:
        What ``metrics.json`` in the run's folder says.

    Raises:
        ValueError: If that folder is of other settings, or as :func:`~diffgradcam.training.fit` and
            :func:`~diffgradcam.training.split`.
    """
    own = folder / run.folder
    own.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, seed=run.seed)
    told = {**about, "settings": settings.to_dict(), "hold_out": run.hold_out, "data": data.fingerprint()}
    metrics = own / METRICS
    if metrics.is_file():
        found: dict[str, Any] = json.loads(metrics.read_text(encoding="utf-8"))
        if found["about"] != json.loads(json.dumps(told)):
            raise ValueError(f"{metrics} is of other options or other images: choose another folder with --out")
        (own / STATE).unlink(missing_ok=True)  # left by a process that was killed when it had written the metrics
        return found
    parts = split(
        data.labels, data.groups, data.together,
        hold_out=run.hold_out, validation=validation, test=test, seed=run.seed,
    )  # fmt: skip
    torch.manual_seed(run.seed)
    fitted = fit(
        make_model(run.seed), data.part(parts.train), settings,
        layer=layer, reshape_transform=reshape_transform,
        validation=data.part(parts.validation) if parts.validation else None,
        device=device, checkpoint=own / STATE, about=told, workers=workers, progress=progress,
    )  # fmt: skip
    result: dict[str, Any] = {"about": told, "selected": fitted.selected}
    for name, index in (("closed", parts.closed), ("open", parts.open)):
        result[name] = (
            as_dict(
                evaluate_model(
                    fitted.model, data.part(index),
                    layer=layer, reshape_transform=reshape_transform, device=device, resamples=resamples,
                )
            )
            if index
            else None
        )  # fmt: skip
    result["images"] = {name: len(index) for name, index in parts._asdict().items()}
    result["history"] = [epoch._asdict() for epoch in fitted.history]
    rank, _ = place()
    if rank > 0:
        return result
    write_checkpoint(
        own / MODEL, fitted.model.state_dict(), {**told, "seen": _seen(data, parts), "selected": fitted.selected}
    )
    with atomic_file(metrics) as file:
        file.write(json.dumps(result, indent=1).encode())
    (own / STATE).unlink(missing_ok=True)
    return result


def unseen(data: Data, seen: Mapping[str, Sequence[str]]) -> tuple[list[int], list[int]]:
    """Which images a model may be tested on: none that it was trained on, nor another one of the same patient.

    Args:
        data: The images.
        seen: From the model's checkpoint.

    Returns:
        ``(closed, open)``: images of the groups that training had, and of those that it lacked with the images of the
        classes that these lack.
    """
    names, together, groups = (set(seen[key]) for key in ("names", "together", "groups"))
    new = [i for i, name in enumerate(data.names) if name not in names and (data.together[i] or None) not in together]
    closed = [i for i in new if data.groups[i] in groups]
    others = [i for i in new if data.groups[i] not in groups]
    has = {data.labels[i] for i in others}
    return closed, sorted(others + [i for i in closed if data.labels[i] not in has]) if others else []


def as_dict(found: Evaluation) -> dict[str, Any]:
    """An evaluation in the form of JSON.

    Args:
        found: What :func:`~diffgradcam.training.evaluate_model` gave.

    Returns:
        Nested dictionaries; each estimate has ``value``, ``low`` and ``high``.
    """
    return {
        "images": {str(label): count for label, count in found.images.items()},
        "decisions": {name: estimate._asdict() for name, estimate in found.decisions.items()},
        "maps": {
            name: {key: estimate._asdict() for key, estimate in values.items()} for name, values in found.maps.items()
        },
    }


def _seen(data: Data, parts: Split) -> dict[str, list[str]]:
    index = parts.train + parts.validation
    return {
        "names": [data.names[i] for i in index],
        "together": sorted({data.together[i] for i in index} - {""}),
        "groups": sorted({data.groups[i] for i in index}),
    }
