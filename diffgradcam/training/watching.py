"""What to watch while a model is trained: maps of fixed images as a picture, and the audit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

from .._core.base import BaseCAM
from .._core.editing import evaluating
from .._core.outputs import Classes
from .._core.wrappers import inner_model
from ..heatmaps import minmax, rectify, scale_signed
from ..robustness import AuditReport, audit
from ..visualize import grid, overlay, overlay_signed
from ..visualize.arrays import Array, ImageLike


@runtime_checkable
class ImageWriter(Protocol):
    """What writes pictures as TensorBoard's ``SummaryWriter`` does."""

    def add_image(self, tag: str, img_tensor: Any, global_step: int | None = None, **options: Any) -> None:
        """Write a picture."""
        ...


Writer = ImageWriter | Callable[[str, Array, int], object] | Any
"""A ``SummaryWriter``, a run of Weights & Biases, or a function of the tag, the picture and the step."""


def draw_maps(
    cam: BaseCAM,
    images: Tensor,
    classes: Classes = None,
    *,
    pictures: Sequence[ImageLike] | None = None,
) -> Array:
    """Draw what a model looks at, also in the middle of its training.

    The first row has the images, the second their maps, with the class that each map explains and its probability. A
    signed map (``rectify=False``) is red where it speaks for the class and blue where it speaks against it.

    The model runs in evaluation mode. Its modes are set back, and its statistics, gradients and the state of the random
    numbers are left as they are.

    Args:
        cam: Any method, attached or not.
        images: A few images as the model takes them, ``(N, C, H, W)``, on any device.
        classes: The class of each image whose map is shown, ``(N,)``, or one for all; by default the decisions, which
            may change while the model is trained.
        pictures: The images as they are to be seen; by default ``images``, each scaled to its own lowest and highest
            value.

    Returns:
        A picture ``(H, W, 3)``, RGB, uint8.

    Raises:
        ValueError: If there are several classes for an image, or another number of pictures; otherwise as
            :meth:`~diffgradcam.BaseCAM.explain`.
        TypeError: As :meth:`~diffgradcam.BaseCAM.explain`.
    """
    with evaluating(inner_model(cam.model)):
        logits, index, maps = cam.explain(_as_the_model_takes(cam, images), classes)
    if index.ndim != 1 or maps.ndim != 3:
        raise ValueError(
            f"classes have shape {tuple(index.shape)} and maps {tuple(maps.shape)}; expected one class and one map "
            "(h, w) for each image"
        )
    seen = [_seen(image) for image in images] if pictures is None else list(pictures)
    if len(seen) != len(images):
        raise ValueError(f"got {len(seen)} pictures for {len(images)} images; expected one for each")
    scaled = (minmax(rectify(maps)) if cam.rectify else scale_signed(maps)).float().cpu()
    lay = overlay if cam.rectify else overlay_signed
    overlays = [lay(picture, heatmap) for picture, heatmap in zip(seen, scaled, strict=True)]
    chances = logits.float().softmax(1).gather(1, index.unsqueeze(1)).squeeze(1).tolist()
    titles = [
        f"{cam.class_names.label(number)} {chance:.2f}" for number, chance in zip(index.tolist(), chances, strict=True)
    ]
    canvas = FigureCanvasAgg(grid([seen, overlays], [[""] * len(seen), titles], size=1.6))
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn: Array = np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return drawn


def log_maps(
    cam: BaseCAM,
    images: Tensor,
    writer: Writer,
    step: int,
    classes: Classes = None,
    *,
    pictures: Sequence[ImageLike] | None = None,
    tag: str = "maps",
) -> Array:
    """Draw the maps of fixed images and send them to TensorBoard or Weights & Biases. See :func:`draw_maps`.

    Args:
        cam: As :func:`draw_maps`.
        images: As :func:`draw_maps`; the same ones at each call.
        writer: A ``SummaryWriter``, a run that ``wandb.init`` returned, or a function ``(tag, picture, step)``.
        step: How many steps the model has been trained.
        classes: As :func:`draw_maps`.
        pictures: As :func:`draw_maps`.
        tag: The name of the picture in the log.

    Returns:
        The picture.

    Raises:
        TypeError: If ``writer`` is something else; otherwise as :func:`draw_maps`.
        ValueError: As :func:`draw_maps`.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> _ = log_maps(GradCAM(model, "0"), torch.rand(4, 3, 8, 8), lambda tag, picture, step: print(tag, step), 100)
        maps 100
    """
    send = sender(writer) or writer
    if not callable(send):
        raise TypeError(
            f"writer is {type(writer).__name__}; expected a SummaryWriter of TensorBoard, a run that wandb.init() "
            "returned, or a function (tag, picture, step)"
        )
    picture = draw_maps(cam, images, classes, pictures=pictures)
    send(tag, picture, step)
    return picture


def sender(writer: Writer, step_name: str = "global_step") -> Callable[[str, Array, int], object] | None:
    """How a picture is sent to a writer.

    Args:
        writer: Anything.
        step_name: What Weights & Biases calls the step. Its own count of steps goes on by itself.

    Returns:
        A function of the tag, the picture and the step; None if ``writer`` is not of TensorBoard or Weights & Biases.
    """
    if isinstance(writer, ImageWriter):
        return lambda tag, picture, step: writer.add_image(tag, picture, step, dataformats="HWC")
    wandb = sys.modules.get("wandb")  # whoever has a run has imported it
    if wandb is not None and isinstance(writer, wandb.Run):
        return lambda tag, picture, step: writer.log({tag: wandb.Image(picture), step_name: step})
    return None


def audit_in_training(cam: BaseCAM, images: Tensor, **options: Any) -> AuditReport:
    """Audit the model and the layers of a CAM, also in the middle of training, and warn if it is fooled.

    The model runs in evaluation mode, without being copied, and is left as :func:`draw_maps` leaves it. A model that
    has hardly been trained still has the common mode of its initialisation and may be reported, see
    :func:`diffgradcam.audit`.

    Args:
        cam: Whose model, layers, ``reshape_transform`` and ``output`` are audited.
        images: As :func:`diffgradcam.audit` takes them, on any device.
        **options: Of :func:`diffgradcam.audit`, such as ``thresholds``.

    Returns:
        The report. ``report.fooled`` is the verdict.

    Raises:
        ValueError: As :func:`diffgradcam.audit`.
        TypeError: As :func:`diffgradcam.audit`.

    Warns:
        UserWarning: If the model is fooled; it has the report.
    """
    model = inner_model(cam.model)
    with evaluating(model):
        report = audit(
            model,
            cam.target_layers,
            _as_the_model_takes(cam, images),
            reshape_transform=cam.reshape_transform,
            output=cam.output,
            class_names=cam.class_names,
            **{"progress": False, **options},
        )
    if report.fooled:
        warnings.warn(f"the audit of {type(model).__name__} says: {report}", stacklevel=2)
    return report


def _as_the_model_takes(cam: BaseCAM, images: Tensor) -> Tensor:
    """On the device of the model, and of its precision."""
    weights = [parameter for parameter in inner_model(cam.model).parameters() if parameter.is_floating_point()]
    if not weights:
        return images
    return images.to(weights[0]) if images.is_floating_point() else images.to(weights[0].device)


def _seen(image: Tensor) -> Tensor:
    """``(C, H, W)`` in any range as grey or RGB in [0, 1]."""
    image = image.detach().float().cpu()
    return minmax((image if len(image) in (1, 3) else image.mean(0, keepdim=True)).unsqueeze(0))[0]
