"""For Hugging Face's ``Trainer``: one that is guided by saliency, maps of fixed images, and an audit after each epoch.

They are for one model per process (one device or data parallel), not for models in shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.base import BaseCAM, TrainableCAM
from .._core.optional import import_optional
from .._core.outputs import Classes
from ..losses import ClassChoice, SaliencyGuidedLoss
from ..training import twice_differentiable
from ..training.watching import sender
from ..visualize.arrays import ImageLike
from ._parts import AuditedEpochs, Guidance, MapsEvery

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback
    from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
else:
    _transformers = import_optional("transformers", "diffgradcam.integrations.hugging_face")
    Trainer, TrainerCallback = _transformers.Trainer, _transformers.TrainerCallback
    TensorBoardCallback = _transformers.integrations.TensorBoardCallback
    WandbCallback = _transformers.integrations.WandbCallback

__all__ = ["AuditEachEpoch", "MapLogger", "SaliencyGuidedTrainer"]


class SaliencyGuidedTrainer(Trainer):
    """A ``Trainer`` that adds a saliency loss to the loss of the model. There is no second forward pass.

    The total is that of ``criterion``, with the loss of the model (or of label smoothing) as the classification loss;
    the means of both parts are logged with the loss, as ``classification_loss`` and ``saliency_loss``. Evaluation and
    prediction leave the human maps out and stay as they are. It works with accumulated gradients, whose batches count
    alike, with mixed precision and with data-parallel training. Attention runs unfused in training steps, see
    :func:`~diffgradcam.training.twice_differentiable`.

    Args:
        *args: Of ``Trainer``.
        cam: A CAM of the model, such as ``GradCAM(model, "resnet.encoder.stages.3", rectify=False)``. It is attached
            while the model is trained.
        criterion: The saliency loss and what it weighs, such as ``SaliencyGuidedLoss(CyborgLoss(), alpha=0.5)``.
        human: The key of the human maps ``(B, H, W)`` in the batches that the data collator makes.
        mask: The key of ``(B,)`` bool, which images have a human map; None if all have one. Images without one train on
            their labels alone.
        labels: The key of the labels.
        choice: Whose map is trained: that of the ``"true"`` class, or of the ``"predicted"`` one.
        **kwargs: Of ``Trainer``.

    Raises:
        TypeError: If ``cam`` does not train or ``criterion`` is something else.
        ValueError: If the arguments remove columns that the model does not take, as they do by default, there is a
            ``compute_loss_func``, or ``criterion`` has ``class_weights``. In training: if a batch lacks a part.
    """

    def __init__(
        self,
        *args: Any,
        cam: TrainableCAM,
        criterion: SaliencyGuidedLoss,
        human: str,
        mask: str | None = None,
        labels: str = "labels",
        choice: ClassChoice = "true",
        **kwargs: Any,
    ) -> None:
        self._guidance = Guidance(cam, criterion, labels, human, mask, choice)
        self._parts: list[Tensor] = []
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(
                "compute_loss_func is given; expected the loss of the model itself; put yours into the model's forward "
                "method, or call diffgradcam.training.guided_loss in the compute_loss of a Trainer of your own"
            )
        super().__init__(*args, **kwargs)
        if self.args.remove_unused_columns:
            raise ValueError(
                f"remove_unused_columns is True, so {human!r} never gets into a batch; pass "
                "TrainingArguments(remove_unused_columns=False)"
            )
        # Else the model divides its loss by the images of all accumulated batches, and the saliency loss would not be.
        self.model_accepts_loss_kwargs = False

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with the CAM attached."""
        with self._guidance.cam:
            return super().train(*args, **kwargs)

    def compute_loss(  # type: ignore[override] # older releases pass no num_items_in_batch
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """The guided loss in training, the loss of the model elsewhere."""
        plain = self._without_maps(inputs)
        if not model.training:
            return super().compute_loss(model, plain, return_outputs, **kwargs)
        with twice_differentiable():
            loss, outputs = super().compute_loss(model, plain, return_outputs=True)
        total, *parts = self._guidance.loss(inputs, self._guidance.cam.output(outputs), loss)
        self._parts.append(torch.stack(parts).detach())
        return (total, outputs) if return_outputs else total

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer`` does it, without the human maps."""
        return super().prediction_step(model, self._without_maps(inputs), *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log both parts with the loss: their means since the last time, of this process."""
        if "loss" in logs and self._parts:
            classification, saliency = torch.stack(self._parts).float().mean(0).tolist()
            logs = {**logs, "classification_loss": classification, "saliency_loss": saliency}
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    def _without_maps(self, inputs: dict[str, Any]) -> dict[str, Any]:
        ours = (self._guidance.human, self._guidance.mask)
        return {name: value for name, value in inputs.items() if name not in ours}


class MapLogger(TrainerCallback):
    """Draw the maps of fixed images every so many steps, and send them to where the trainer reports to.

    TensorBoard and Weights & Biases (``report_to=["tensorboard", "wandb"]``) show them as a picture over the steps; the
    first is of the model before training. One process draws. See :func:`~diffgradcam.training.draw_maps` for what is
    drawn and what is left alone.

    Args:
        trainer: Whose logs are written to. Add the callback to it: ``trainer.add_callback(MapLogger(trainer, ...))``.
        cam: Any method.
        images: A few images as the model takes them, ``(N, C, H, W)``.
        every_n_steps: How many optimizer steps lie between two pictures.
        classes: The class of each image whose map is shown, ``(N,)``, or one for all; by default the decisions.
        pictures: The images as they are to be seen; by default each image scaled to its lowest and highest value.
        tag: The name of the picture in the log.

    Raises:
        ValueError: If ``every_n_steps`` is below 1, or the trainer reports neither to TensorBoard nor to Weights &
            Biases.
    """

    def __init__(
        self,
        trainer: Trainer,
        cam: BaseCAM,
        images: Tensor,
        *,
        every_n_steps: int = 100,
        classes: Classes = None,
        pictures: Sequence[ImageLike] | None = None,
        tag: str = "maps",
    ) -> None:
        self._maps = MapsEvery(cam, images, every_n_steps, classes, pictures, tag)
        callbacks = trainer.callback_handler.callbacks
        self._reports = [each for each in callbacks if isinstance(each, TensorBoardCallback | WandbCallback)]
        if not self._reports:
            raise ValueError(
                "the trainer reports neither to TensorBoard nor to Weights & Biases, so there is nowhere to send maps; "
                'pass TrainingArguments(report_to=["tensorboard"]) or ["wandb"]'
            )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Draw the model before it is trained."""
        self._log(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Draw, if it is time."""
        self._log(state)

    def _log(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        runs = [each.tb_writer if isinstance(each, TensorBoardCallback) else _wandb_run() for each in self._reports]
        found = [sender(run, "train/global_step") for run in runs]
        self._maps.log([writer for writer in found if writer is not None], state.global_step)


class AuditEachEpoch(AuditedEpochs, TrainerCallback):
    """Audit the model at the end of each epoch of training, and warn or stop if it is fooled.

    See :func:`~diffgradcam.training.audit_in_training`.

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

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        """Audit."""
        stop = self._audits.stops(round(state.epoch))
        control.should_training_stop = control.should_training_stop or stop
        return control


def _wandb_run() -> Any:
    return import_optional("wandb", "report_to='wandb'").run
