"""What an explanation is, and what can make one."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from .outputs import Classes


class Explanation(NamedTuple):
    """What a model decided and why.

    Attributes:
        logits: ``(B, K)``, detached.
        classes: The explained classes, ``(B,)``, or ``(B, N)`` where several were asked for; -1 where a target that is
            no class was explained.
        maps: One map for each class at the resolution of the layer, ``(B, h, w)`` or ``(B, N, h, w)``, detached.
    """

    logits: Tensor
    classes: Tensor
    maps: Tensor


class Explainer(Protocol):
    """Whatever explains a batch of images: every CAM and wrapper of this library, or an object of yours."""

    def explain(self, input_tensor: Any, classes: Classes = None) -> Explanation:
        """See :meth:`diffgradcam.BaseCAM.explain`."""
        ...


class ModelExplainer(Explainer, Protocol):
    """An explainer that says which model it explains."""

    @property
    def model(self) -> nn.Module:
        """What it explains."""
        ...
