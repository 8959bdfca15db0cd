"""The saliency-guided loss of one training step, for any loop and any trainer."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._core.base import TrainableCAM
from ..losses import ClassChoice, GuidedLoss, SaliencyGuidedLoss


def guided_loss(
    cam: TrainableCAM,
    criterion: SaliencyGuidedLoss,
    logits: Tensor,
    labels: Tensor,
    human: Tensor,
    mask: Tensor | None = None,
    *,
    classification: Tensor | None = None,
    choice: ClassChoice = "true",
) -> GuidedLoss:
    """Turn the forward pass of a training step into a loss on what is decided and on where the model looks.

    There is no second forward pass: the maps are those of ``logits``. With vision transformers, run the forward pass
    within :func:`twice_differentiable`.

    Args:
        cam: Attached (``with cam:``) while the forward pass ran; with ``rectify=False``, since the losses of this
            library take signed maps.
        criterion: The saliency loss and what it weighs. It says whose maps it takes.
        logits: What the forward pass gave, ``(B, K)``, with its graph.
        labels: True classes, ``(B,)`` int64.
        human: Human saliency, ``(B, *T)``, non-negative, at any resolution.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent. The others train on their labels
            alone, and what ``human`` holds for them is never read.
        classification: The classification loss, a scalar; by default the cross-entropy of ``criterion``.
        choice: Whose map is trained: that of the ``"true"`` class, or of the ``"predicted"`` one.

    Returns:
        ``(total, classification, saliency)``: call ``backward()`` on the first, log the others.

    Raises:
        RuntimeError: As :meth:`diffgradcam.TrainableCAM.maps`.
        ValueError: As :class:`~diffgradcam.losses.SaliencyGuidedLoss`.
        TypeError: As :class:`~diffgradcam.losses.SaliencyGuidedLoss`.

    Example:
        >>> from diffgradcam import GradCAM
        >>> from diffgradcam.losses import DifferenceSalienceLoss
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> images, labels, human = torch.rand(2, 3, 8, 8), torch.tensor([0, 1]), torch.rand(2, 8, 8)
        >>> criterion = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)
        >>> with GradCAM(model, "0", rectify=False) as cam:
        ...     loss = guided_loss(cam, criterion, model(images), labels, human)
        >>> loss.total.backward()
    """
    maps = cam.maps(logits, criterion.classes(logits, labels, choice))
    if classification is None:
        return criterion(logits, labels, maps, human, mask)  # type: ignore[no-any-return] # of a module
    return criterion.join(classification, maps, human, mask)


def twice_differentiable() -> AbstractContextManager[None]:
    """Within the block, attention runs in a form that a loss on maps can be differentiated through.

    Fused attention has no second derivative, and such a loss needs one. Nothing changes for models without attention.

    Returns:
        A context manager, to run a forward pass in.
    """
    return sdpa_kernel(SDPBackend.MATH)
