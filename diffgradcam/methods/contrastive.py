"""COMPARE: the maps of the true and of the false class of one forward pass, and their difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from .. import weightings
from .._core.base import BaseCAM
from .._core.forward import columns
from .._core.layers import Target
from .._core.outputs import Classes, class_index, find_logits
from ..scores import check_contrast, logit, logit_difference, refuse_same

_WORDS = ("runner_up", "mean")


class TrueFalseMaps(NamedTuple):
    """Both sides of a decision, and their difference. All tensors are detached; maps are signed and not scaled.

    Attributes:
        logits: ``(B, K)``.
        classes: The true classes, ``(B,)``.
        false_classes: The false classes, ``(B,)`` or ``(B, N)``; None for the mean of the others.
        true_maps: ``(B, h, w)``.
        false_maps: ``(B, h, w)`` or ``(B, N, h, w)``.
        difference: ``true_maps - false_maps``, in the shape of ``false_maps``.
    """

    logits: Tensor
    classes: Tensor
    false_classes: Tensor | None
    true_maps: Tensor
    false_maps: Tensor
    difference: Tensor


@final
class TrueFalseCAM(BaseCAM):
    """True-vs-false divergence: where the map of the true class differs from that of the false class.

    The map of ``explain``, ``maps`` and the call is Difference Salience: the unnormalised Grad-CAM of the true
    class minus that of the false class, both before ReLU. It is signed: positive where the image speaks for the true
    class, negative where it speaks for the false one. :meth:`compare` gives both sides. "True" is the class that you
    ask for: give the label, or nothing for the decision. The call returns it scaled to [-1, 1] with 0 kept at 0.

    Args:
        model: As :class:`BaseCAM`.
        target_layers: As :class:`BaseCAM`.
        reshape_transform: As :class:`BaseCAM`.
        false_class: What the true class is compared with: ``"runner_up"`` (the largest logit of another class; of
            two classes the other one), a class index, or ``"mean"`` (the mean logit of all the others).
        output: As :class:`BaseCAM`.

    Raises:
        ValueError: If ``false_class`` is something else; when explaining, if there are fewer than two classes, or a
            class would be compared with itself.

    Reference:
        Piland, Sweet, Czajka, "Divisive Decisions", 2025 (arXiv 2507.17000): "the unnormalised false-class CAM
        subtracted from the unnormalised true-class CAM". Taking the CAMs before ReLU, and the choices for more than two
        classes, are our reading.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> both = TrueFalseCAM(model, "0").compare(torch.rand(5, 3, 8, 8), classes=0)
        >>> both.difference.shape, both.false_classes.tolist()
        (torch.Size([5, 6, 6]), [1, 1, 1, 1, 1])
    """

    weighting = staticmethod(weightings.gradcam)

    def __init__(
        self,
        model: nn.Module,
        target_layers: Target | Sequence[Target],
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        false_class: str | int = "runner_up",
        output: Callable[[Any], Tensor] = find_logits,
    ) -> None:
        if false_class not in _WORDS and (not isinstance(false_class, int) or isinstance(false_class, bool)):
            raise ValueError(f"false_class is {false_class!r}; expected 'runner_up', 'mean' or a class index")
        # Grad-CAM is linear in the score: the difference of two maps is the map of the difference.
        score = partial(logit_difference, baseline="max" if false_class == "runner_up" else false_class)
        super().__init__(model, target_layers, reshape_transform, score=score, rectify=False, output=output)
        self.false_class = false_class

    def compare(
        self, input_tensor: Any, classes: Classes = None, *args: Any, false_classes: Classes = None, **kwargs: Any
    ) -> TrueFalseMaps:
        """Both maps and their difference, from one forward pass.

        Args:
            input_tensor: As :meth:`BaseCAM.explain`.
            classes: The true class: None (argmax), an int, or ``(B,)``.
            *args: Further arguments of the model.
            false_classes: False classes of this call instead of ``false_class``: an int, ``(B,)``, or ``(B, N)`` for
                several.
            **kwargs: Further keyword arguments of the model.

        Returns:
            See :class:`TrueFalseMaps`.

        Raises:
            TypeError: As :meth:`BaseCAM.explain`.
            ValueError: As :meth:`BaseCAM.explain`; if several true classes are given for an image.
            RuntimeError: As :meth:`BaseCAM.explain`.
        """
        with self._forward(input_tensor, args, kwargs) as forward:
            logits = forward.logits
            true = class_index(logits, classes)
            if true.ndim != 1:
                shape = tuple(true.shape)
                raise ValueError(f"classes have shape {shape}; compare() takes one true class for each image")
            false = self._false_classes(logits, true) if false_classes is None else class_index(logits, false_classes)
            true_maps = self._fuse(self._score_maps(forward, logit, columns(true)), true)
            if false is None:
                false_maps = self._fuse(self._score_maps(forward, _mean_of_others, columns(true)), true)
            else:
                refuse_same(columns(true), columns(false))
                false_maps = self._fuse(self._score_maps(forward, logit, columns(false)), false)
            reference = true_maps.unsqueeze(1) if false_maps.ndim > true_maps.ndim else true_maps
            return TrueFalseMaps(logits.detach(), true, false, true_maps, false_maps, reference - false_maps)

    def _false_classes(self, logits: Tensor, true: Tensor) -> Tensor | None:
        """The class to compare each of the true classes ``(B,)`` with; None for the mean of the others."""
        check_contrast(logits)
        if self.false_class == "mean":
            return None
        if self.false_class == "runner_up":
            return logits.detach().scatter(1, columns(true), -torch.inf).argmax(1)
        return class_index(logits, self.false_class)


def _mean_of_others(logits: Tensor, classes: Tensor) -> Tensor:
    return (logits.sum(1) - logit(logits, classes)) / (logits.shape[1] - 1)
