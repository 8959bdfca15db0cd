"""One forward pass: what is known of it, what explains it, and the explanation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from .outputs import Classes


class Explanation(NamedTuple):
    """What a model decided and why.

    Attributes:
        logits: ``(B, K)``, detached.
        classes: The explained classes, ``(B,)``, or ``(B, N)`` where several were asked for.
        maps: One map for each class at the resolution of the layer, ``(B, h, w)`` or ``(B, N, h, w)``, detached.
    """

    logits: Tensor
    classes: Tensor
    maps: Tensor


Run = Callable[[Tensor, Tensor], Tensor]


class Pass(NamedTuple):
    """One forward pass, and what it takes to make others like it.

    Attributes:
        logits: ``(B, K)``, with their graph down to the activations.
        activations: Of each target layer, ``(B, ...)``.
        run: ``(inputs (M, ...), rows (M,)) -> logits (M, K)``: the model, without gradients, on other inputs in place
            of the first argument. Further arguments that are tensors with ``B`` rows follow ``rows``, the number of the
            image that each input was made from. None for a forward pass that the library did not make.
        images: The first argument of the model; None where ``run`` is.
        again: ``images -> Pass``, a context manager: the model once more, with gradients, on other images in place of
            the first argument. None where ``run`` is.
    """

    logits: Tensor
    activations: list[Tensor]
    run: Run | None = None
    images: Any = None
    again: Callable[[Any], AbstractContextManager[Pass]] | None = None


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


def columns(classes: Tensor) -> Tensor:
    """Classes ``(B,)`` as ``(B, 1)``; ``(B, N)`` stays."""
    return classes.unsqueeze(1) if classes.ndim == 1 else classes


def rows_of(value: Any, rows: Tensor, batch: int) -> Any:
    """The rows of an argument that has one for each image; other arguments stay."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == batch else value
