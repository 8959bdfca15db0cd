"""Callbacks for Lightning: saliency guidance, maps of fixed images, and an audit after each epoch.

Each is one entry of ``Trainer(callbacks=[...])``; the module that is trained stays as it is. They are for one model per
process (one device or data parallel), not for models in shards.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .._core.base import BaseCAM, TrainableCAM
from .._core.optional import import_optional
from .._core.outputs import Classes
from .._core.wrappers import inner_model
from ..losses import ClassChoice, SaliencyGuidedLoss
from ..training import twice_differentiable
from ..training.watching import sender
from ..visualize.arrays import ImageLike
from ._parts import AuditedEpochs, Guidance, Key, MapsEvery

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
else:
    Callback = import_optional("lightning.pytorch", "diffgradcam.integrations.lightning").Callback

__all__ = ["AuditEachEpoch", "MapLogger", "SaliencyGuidance"]


class SaliencyGuidance(Callback):
    """Add a saliency loss to what ``training_step`` returns. There is no second forward pass.

    The total is that of ``criterion``, with the loss of ``training_step`` as the classification loss; both parts are
    logged, as ``classification_loss`` and ``saliency_loss``. Validation, testing and prediction stay as they are. It
    works with accumulated gradients, mixed precision and data-parallel training. Attention runs unfused in training
    steps, see :func:`~diffgradcam.training.twice_differentiable`.

    Args:
        cam: A CAM of the module that ``training_step`` runs once, such as ``GradCAM(module.model, "layer4",
            rectify=False)``. It is attached while the module is fitted.
        criterion: The saliency loss and what it weighs, such as ``SaliencyGuidedLoss(CyborgLoss(), alpha=0.5)``.
        labels: Which part of a batch has the labels: a position in a tuple, a key of a dictionary, or a field of a
            named tuple, such as ``"label"`` of :class:`~diffgradcam.data.SaliencyItem`.
        human: Which part has the human maps, ``(B, H, W)``.
        mask: Which part says which images have a human map, ``(B,)`` bool; None if all have one. Images without one
            train on their labels alone.
        choice: Whose map is trained: that of the ``"true"`` class, or of the ``"predicted"`` one.

    Raises:
        TypeError: If ``cam`` does not train or ``criterion`` is something else.
        ValueError: If ``criterion`` has ``class_weights``: the classification loss is the module's own. In ``fit``: if
            the module optimises manually, runs the model of the CAM not once in a step, or a batch lacks a part.
    """

    def __init__(
        self,
        cam: TrainableCAM,
        criterion: SaliencyGuidedLoss,
        *,
        labels: Key,
        human: Key,
        mask: Key | None = None,
        choice: ClassChoice = "true",
    ) -> None:
        self._guidance = Guidance(cam, criterion, labels, human, mask, choice)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Attach the CAM and guide ``training_step``."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} optimises manually, so training_step returns no loss to add to; call "
                "diffgradcam.training.guided_loss in training_step"
            )
        step = pl_module.training_step

        @functools.wraps(step)
        def guided(*args: Any, **kwargs: Any) -> Any:
            return self._guided(pl_module, functools.partial(step, *args, **kwargs), args[0])

        self._guidance.cam.attach()
        pl_module.training_step = guided  # type: ignore[method-assign]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Leave the module as it was."""
        self._guidance.cam.detach()
        vars(pl_module).pop("training_step", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Leave the module as it was."""
        self.on_fit_end(trainer, pl_module)

    def _guided(self, module: LightningModule, step: functools.partial[Any], batch: Any) -> Any:
        cam, outputs = self._guidance.cam, []
        model = inner_model(cam.model)
        # One statement: between two, Ctrl-C could come and leave the hook.
        with model.register_forward_hook(lambda *called: outputs.append(called[-1])), twice_differentiable():
            result = step()
        loss = result["loss"] if isinstance(result, Mapping) else result
        if loss is None:  # the step is to be left out
            return result
        if len(outputs) != 1:
            raise ValueError(
                f"training_step ran the model of the CAM, {type(model).__name__}, {len(outputs)} times; expected "
                "once; give the CAM the module that training_step calls, or call diffgradcam.training.guided_loss in "
                "training_step"
            )
        guided = self._guidance.loss(batch, cam.output(outputs[0]), loss)
        parts = {"classification_loss": guided.classification, "saliency_loss": guided.saliency}
        module.log_dict({name: part.detach() for name, part in parts.items()}, batch_size=len(cam.output(outputs[0])))
        return {**result, "loss": guided.total} if isinstance(result, Mapping) else guided.total


class MapLogger(Callback):
    """Draw the maps of fixed images every so many steps, and send them to the trainer's own loggers.

    TensorBoard and Weights & Biases show them as a picture over the steps; the first is of the model before training.
    One process draws. See :func:`~diffgradcam.training.draw_maps` for what is drawn and what is left alone.

    Args:
        cam: Any method.
        images: A few images as the model takes them, ``(N, C, H, W)``.
        every_n_steps: How many optimizer steps lie between two pictures.
        classes: The class of each image whose map is shown, ``(N,)``, or one for all; by default the decisions.
        pictures: The images as they are to be seen; by default each image scaled to its lowest and highest value.
        tag: The name of the picture in the log.

    Raises:
        ValueError: If ``every_n_steps`` is below 1.

    Warns:
        UserWarning: If no logger of the trainer takes pictures.
    """

    def __init__(
        self,
        cam: BaseCAM,
        images: Tensor,
        *,
        every_n_steps: int = 100,
        classes: Classes = None,
        pictures: Sequence[ImageLike] | None = None,
        tag: str = "maps",
    ) -> None:
        self._maps = MapsEvery(cam, images, every_n_steps, classes, pictures, tag)
        self._writers: list[Any] = []
        self._seen = -1  # the step that was looked at last: several batches make one step where gradients accumulate

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Find the loggers, and draw the model before it is trained."""
        if not trainer.is_global_zero:
            return
        found = [sender(getattr(logger, "experiment", None), "trainer/global_step") for logger in trainer.loggers]
        self._writers = [writer for writer in found if writer is not None]
        if not self._writers:
            given = ", ".join(type(logger).__name__ for logger in trainer.loggers) or "none"
            warnings.warn(
                f"maps are not logged, because no logger of the trainer takes pictures (it has {given}); use "
                "TensorBoardLogger or WandbLogger",
                stacklevel=2,
            )
        self._seen = -1
        self.on_train_batch_end(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Draw, if it is time."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self._maps.log(self._writers, self._seen)


class AuditEachEpoch(AuditedEpochs, Callback):
    """Audit the model at the end of each epoch of training, and warn or stop if it is fooled.

    The median share of the common mode is logged as ``common_mode_share``. See
    :func:`~diffgradcam.training.audit_in_training`.

    Args:
        cam: Whose model and layers are audited.
        images: As :func:`diffgradcam.audit` takes them.
        on_fooled: ``"warn"``, or warn and ``"stop"`` the training.
        first_epoch: The first epoch after which there is an audit, from 1. A model that has hardly been trained still
            has the common mode of its initialisation, and may be reported.
        **options: Of :func:`diffgradcam.audit`, such as ``thresholds``.

    Raises:
        ValueError: If ``on_fooled`` is something else, or ``first_epoch`` is below 1.

    Warns:
        UserWarning: If the model is fooled; it has the report. Also if the model cannot be audited.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Audit."""
        epoch = trainer.current_epoch + 1
        stop = self._audits.stops(epoch)
        report = self.reports.get(epoch)
        if report is not None:
            pl_module.log("common_mode_share", report.common_mode_share.median())
        trainer.should_stop = trainer.should_stop or stop
