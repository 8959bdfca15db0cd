"""What a training is: its settings, the presets of them, and which images train, choose, and test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from .._core.checks import check_seed
from ..losses import Alpha, ClassChoice, SaliencyGuidedLoss, cyborg_loss

LossName = Literal["ce", "cyborg", "difference", "contrast", "divergence", "camal"]
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "step", "cosine"]
Augmentation = Literal["none", "flip", "affine"]
Selection = Literal["best", "last"]

_WARM_UP = 0.1  # share of a cosine schedule's steps


@dataclass(frozen=True)
class Settings:
    """Everything that decides how a training goes, besides the model and the data.

    Attributes:
        loss: The saliency loss; ``"ce"`` is cross-entropy alone.
        alpha: Weight of cross-entropy beside the saliency loss, see :class:`~diffgradcam.losses.SaliencyGuidedLoss`.
        divergence_weight: Of the agreement of the two maps, in ``"divergence"`` alone.
        explained: Whose map is trained: that of the ``"true"`` class, or of the ``"predicted"`` one as in the original
            CYBORG.
        blur: Blur human maps on the grid of the model's maps, 3 x 3 with sigma drawn from .1 to 2 as in VISER.
        epochs: Passes over the training images.
        batch_size: Images per step, over all processes.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        learning_rate: Its highest.
        momentum: Of SGD.
        weight_decay: Of the optimiser.
        schedule: ``"constant"``; ``"step"``: times ``step_factor`` every ``step_epochs``; or ``"cosine"``: up over a
            tenth of the steps, then down to 0.
        step_epochs: See ``schedule``.
        step_factor: See ``schedule``.
        class_weights: Weigh classes in the cross-entropy by the inverse of their number of training images.
        augment: Of image and map together: ``"flip"`` left and right, ``"affine"`` also turns by up to 10 degrees,
            scales by up to 10% and shifts by up to 5%.
        select: Keep the weights of the epoch that was ``"best"`` on the validation images, or of the ``"last"``.
        amp: Automatic mixed precision: half on a GPU, bfloat16 on a CPU.
        seed: Of new weights, the order of the images and their augmentation.

    Raises:
        ValueError: If an option is unknown or out of its range.
    """

    loss: LossName = "cyborg"
    alpha: Alpha = 0.5
    divergence_weight: float = 0.1
    explained: ClassChoice = "true"
    blur: bool = False
    epochs: int = 20
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 3e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: ScheduleName = "cosine"
    step_epochs: int = 12
    step_factor: float = 0.1
    class_weights: bool = True
    augment: Augmentation = "flip"
    select: Selection = "best"
    amp: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        SaliencyGuidedLoss(cyborg_loss, self.alpha)  # checks it
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(map(repr, choices))}")
        for name in ("epochs", "batch_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 1")
        for name in ("divergence_weight", "momentum", "weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected at least 0")
        for name in ("learning_rate", "step_factor"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number above 0")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Settings:
        """Settings by name, some of them changed.

        Args:
            name: One of ``diffgradcam.training.PRESETS``.
            changes: Fields that differ.

        Returns:
            The settings.

        Raises:
            ValueError: If there is no such preset, or a value is wrong.

        Example:
            >>> Settings.preset("cyborg", epochs=2).learning_rate
            0.005
        """
        if name not in PRESETS:
            raise ValueError(f"preset is {name!r}: expected one of {', '.join(map(repr, PRESETS))}")
        return replace(PRESETS[name], **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """Read what :meth:`to_dict` wrote.

        Args:
            values: From a checkpoint.

        Returns:
            The settings.

        Raises:
            ValueError: If a field is unknown.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"settings hold {', '.join(sorted(unknown))}: expected those of this version")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step.

        Args:
            step: From 0, over all epochs.
            steps_per_epoch: How many steps an epoch has.

        Returns:
            A learning rate.

        Example:
            >>> settings = Settings.preset("cyborg")
            >>> [round(settings.rate(10 * epoch, 10), 6) for epoch in (0, 11, 12, 24)]
            [0.005, 0.005, 0.0005, 5e-05]
        """
        if self.schedule == "step":
            return self.learning_rate * self.step_factor ** (step // steps_per_epoch // self.step_epochs)
        if self.schedule == "constant":
            return self.learning_rate
        total = self.epochs * steps_per_epoch
        rising = max(1, round(_WARM_UP * total))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


_CHOICES: dict[str, tuple[Any, ...]] = {
    "loss": get_args(LossName),
    "explained": get_args(ClassChoice),
    "optimizer": get_args(OptimizerName),
    "schedule": get_args(ScheduleName),
    "augment": get_args(Augmentation),
    "select": get_args(Selection),
}

PRESETS = {
    "default": Settings(),
    # As in the public code of CYBORG and its descendants.
    "cyborg": Settings(
        loss="cyborg",
        alpha=0.5,
        explained="predicted",
        epochs=50,
        batch_size=20,
        optimizer="sgd",
        learning_rate=0.005,
        momentum=0.9,
        weight_decay=1e-6,
        schedule="step",
        step_epochs=12,
        step_factor=0.1,
        class_weights=False,
        augment="none",
        select="best",
    ),
}


class Split(NamedTuple):
    """Which images are for what, as positions in the data set, sorted; no image is in two of the first three.

    Attributes:
        train: To train with; without the group that is held out.
        validation: To choose the best epoch with; likewise.
        closed: To test with; likewise.
        open: The group that is held out, with the images of ``closed`` of the classes that it lacks. Empty where no
            group is held out.
    """

    train: list[int]
    validation: list[int]
    closed: list[int]
    open: list[int]


def split(
    labels: Sequence[int],
    groups: Sequence[str],
    together: Sequence[str] | None = None,
    *,
    hold_out: str | None = None,
    validation: float = 0.15,
    test: float = 0.25,
    seed: int = 0,
) -> Split:
    """Split images by what must stay together, with one group held out of everything but the open test.

    The parts have about the same mix of groups and labels. Images of the held-out group whose patient (or session)
    is also in training or validation are in no part.

    Args:
        labels: Class of each image.
        groups: Group of each image, such as the kind of attack.
        together: What keeps images together, such as their patient: those with the same non-empty name are in one
            part. By default each image goes by itself.
        hold_out: Name of the group that is held out.
        validation: Share of the images to choose the epoch with.
        test: Share of the images to test with.
        seed: Of the split.

    Returns:
        See :class:`Split`.

    Raises:
        ValueError: If the lengths differ, a share is wrong, the group does not exist, or a part has no image of some
            class that training has.

    Example:
        >>> split([0, 0, 0, 0, 1, 1, 1, 1, 1], [""] * 8 + ["new"], hold_out="new", validation=0.25, test=0.25)
        Split(train=[0, 3, 5, 6], validation=[2, 7], closed=[1, 4], open=[1, 8])
    """
    count = len(labels)
    names = [""] * count if together is None else list(together)
    if not count == len(groups) == len(names):
        raise ValueError(f"got {count} labels, {len(groups)} groups and {len(names)} names: expected one per image")
    if not (0 <= validation < 1 and 0 < test < 1 and validation + test < 1):
        raise ValueError(
            f"shares are {validation} for validation and {test} for testing: expected both in [0, 1), testing above "
            "0, and something left to train with"
        )
    check_seed(seed)
    if hold_out is not None and hold_out not in groups:
        raise ValueError(f"no group {hold_out!r}: expected one of {', '.join(sorted(set(groups) - {''})) or 'none'}")
    units: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if groups[index] != hold_out:
            units.setdefault(f"named {name}" if name else f"alone {index}", []).append(index)
    parts: list[list[int]] = [[], [], []]
    shares = (1 - validation - test, validation, test)
    random = np.random.default_rng(seed)
    # Units of the same kinds follow each other; each goes to the part that lacks most. So every part has its share.
    order = sorted(units.values(), key=lambda unit: (sorted({(labels[i], groups[i]) for i in unit}), random.random()))
    done = 0
    for unit in order:
        done += len(unit)
        lacking = [share * done - len(part) for share, part in zip(shares, parts, strict=True)]
        parts[int(np.argmax(lacking))].extend(unit)
    train, validating, closed = (sorted(part) for part in parts)
    wanted = {labels[index] for part in parts for index in part}
    for what, part in (("training", train), ("validation", validating), ("the closed test", closed)):
        missing = wanted - {labels[index] for index in part}
        if missing and (part or what != "validation"):
            raise ValueError(
                f"{what} has no image of class {', '.join(map(str, sorted(missing)))}: expected more images, or "
                "fewer that are kept together"
            )
    opened: list[int] = []
    if hold_out is not None:
        known = {names[index] for index in train + validating} - {""}
        new = [i for i in range(count) if groups[i] == hold_out and names[i] not in known]
        if not new:
            raise ValueError(
                f"every image of the held-out group {hold_out!r} is kept together with images of training: expected "
                "some that are not"
            )
        has = {labels[index] for index in new}
        opened = sorted(new + [index for index in closed if labels[index] not in has])
    return Split(train, validating, closed, opened)
