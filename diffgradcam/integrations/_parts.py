"""What the adapters share: what is in a batch, when maps are due, and what an audit leads to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, distributed

from .._core.base import BaseCAM, TrainableCAM
from .._core.checks import check_choice, check_count
from .._core.outputs import Classes
from ..losses import ClassChoice, GuidedLoss, SaliencyGuidedLoss
from ..robustness import AuditReport
from ..training import audit_in_training, guided_loss, log_maps
from ..training.loop import place
from ..visualize.arrays import Array, ImageLike

Key = int | str
OnFooled = Literal["warn", "stop"]


class Guidance:
    """The guided loss of a batch whose parts are found by key.

    Args:
        cam: Of the model that the training step runs.
        criterion: The saliency loss and what it weighs.
        labels: Which part of a batch has the labels: a position in a tuple, a key of a dictionary, or a field of a
            named tuple.
        human: Which one has the human maps.
        mask: Which one says which images have a human map; None if all have.
        choice: Whose map is trained.
    """

    def __init__(
        self,
        cam: TrainableCAM,
        criterion: SaliencyGuidedLoss,
        labels: Key,
        human: Key,
        mask: Key | None,
        choice: ClassChoice,
    ) -> None:
        if not isinstance(cam, TrainableCAM):
            raise TypeError(f"cam is {type(cam).__name__}; expected a method that trains, such as GradCAM")
        if not isinstance(criterion, SaliencyGuidedLoss):
            raise TypeError(
                f"criterion is {type(criterion).__name__}; expected SaliencyGuidedLoss, such as "
                "SaliencyGuidedLoss(CyborgLoss(), alpha=0.5)"
            )
        if criterion.class_weights is not None:
            raise ValueError(
                "criterion has class_weights, but here the classification loss is the trainer's own; leave them out, "
                "and weigh the classes in that loss"
            )
        check_choice("choice", choice, get_args(ClassChoice))
        self.cam, self.criterion, self.choice = cam, criterion, choice
        self.labels, self.human, self.mask = labels, human, mask

    def loss(self, batch: Any, logits: Tensor, classification: Tensor) -> GuidedLoss:
        """The guided loss.

        Args:
            batch: What the training step was given.
            logits: What its forward pass gave.
            classification: The loss that it found.

        Returns:
            As :func:`~diffgradcam.training.guided_loss`.
        """
        labels, human = self._part(batch, "labels"), self._part(batch, "human")
        mask = None if self.mask is None else self._part(batch, "mask")
        return guided_loss(
            self.cam,
            self.criterion,
            logits,
            labels,
            human,
            mask,
            classification=classification,
            choice=self.choice,
        )

    def _part(self, batch: Any, name: str) -> Tensor:
        key = getattr(self, name)
        try:
            named = isinstance(key, str) and not isinstance(batch, Mapping)
            part = getattr(batch, key) if named else batch[key]
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"{name}={key!r} is not a part of the batch, which is {_described(batch)}; expected a position in a "
                "tuple, a key of a dictionary or a field of a named tuple"
            ) from error
        if not isinstance(part, Tensor):
            raise TypeError(f"{name}={key!r} of the batch is {type(part).__name__}; expected a tensor")
        return part


class MapsEvery:
    """Maps of fixed images, every so many steps.

    Args:
        cam: As :func:`~diffgradcam.training.log_maps`.
        images: Likewise.
        every_n_steps: How often; the first picture is of the untrained model.
        classes: As :func:`~diffgradcam.training.log_maps`.
        pictures: Likewise.
        tag: Likewise.
    """

    def __init__(
        self,
        cam: BaseCAM,
        images: Tensor,
        every_n_steps: int,
        classes: Classes,
        pictures: Sequence[ImageLike] | None,
        tag: str,
    ) -> None:
        check_count("every_n_steps", every_n_steps)
        self.cam, self.images, self.every_n_steps, self.classes = cam, images, every_n_steps, classes
        self.pictures, self.tag = pictures, tag

    def log(self, writers: Sequence[Callable[[str, Array, int], object]], step: int) -> None:
        """Send the maps, if they are due.

        Args:
            writers: Where to, each a function of the tag, the picture and the step.
            step: How many optimizer steps there were.
        """
        if step % self.every_n_steps or not writers:
            return

        def to_all(tag: str, picture: Array, step: int) -> None:
            for write in writers:
                write(tag, picture, step)

        log_maps(
            self.cam,
            self.images,
            to_all,
            step,
            self.classes,
            pictures=self.pictures,
            tag=self.tag,
        )


class Audits:
    """An audit at the end of each epoch, by the first process.

    Args:
        cam: As :func:`~diffgradcam.training.audit_in_training`.
        images: Likewise.
        on_fooled: ``"warn"``, or also ``"stop"`` the training.
        first_epoch: The first epoch that is audited, from 1.
        options: Of :func:`diffgradcam.audit`.
    """

    def __init__(
        self, cam: BaseCAM, images: Tensor, on_fooled: OnFooled, first_epoch: int, options: Mapping[str, Any]
    ) -> None:
        check_choice("on_fooled", on_fooled, get_args(OnFooled))
        check_count("first_epoch", first_epoch)
        self.cam, self.images, self.on_fooled, self.options = cam, images, on_fooled, dict(options)
        self.first_epoch = first_epoch
        self.reports: dict[int, AuditReport] = {}

    def stops(self, epoch: int) -> bool:
        """Audit, warn if the model is fooled, and say whether to stop: the same on all processes.

        Args:
            epoch: Which one has ended, from 1.

        Returns:
            Whether to stop.
        """
        if epoch < self.first_epoch:
            return False
        rank, world = place()
        fooled = [not rank and self._fooled(epoch)]
        if world > 1:
            distributed.broadcast_object_list(fooled)
        return self.on_fooled == "stop" and fooled[0]

    def _fooled(self, epoch: int) -> bool:
        try:
            self.reports[epoch] = audit_in_training(self.cam, self.images, **self.options)
        except ValueError as error:  # a model whose weights are NaN, say, is no reason to lose a training
            warnings.warn(f"the model was not audited after epoch {epoch}: {error}", stacklevel=2)
            return False
        return self.reports[epoch].fooled


class AuditedEpochs:
    """What the callbacks ``AuditEachEpoch`` share: their arguments, and the reports.

    Args:
        cam: As :class:`Audits`.
        images: Likewise.
        on_fooled: Likewise.
        first_epoch: Likewise.
        **options: Likewise.
    """

    def __init__(
        self,
        cam: BaseCAM,
        images: Tensor,
        *,
        on_fooled: OnFooled = "warn",
        first_epoch: int = 1,
        **options: Any,
    ) -> None:
        self._audits = Audits(cam, images, on_fooled, first_epoch, options)

    @property
    def reports(self) -> dict[int, AuditReport]:
        """The reports by epoch, from 1, in the first process; without epochs after which no audit could be made."""
        return self._audits.reports


def _described(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a dictionary with {', '.join(map(repr, batch))}"
    if isinstance(batch, tuple | list):
        fields = getattr(batch, "_fields", None)
        return f"{type(batch).__name__} of {len(batch)}" + (f" ({', '.join(fields)})" if fields else "")
    return type(batch).__name__
