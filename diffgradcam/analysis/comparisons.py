"""Several CAMs of one model, or every pair of several classes, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._core.base import BaseCAM, ScoredCAM
from .._core.display import SHOWN, Panel
from .._core.explanation import Explanation
from .._core.forward import ForwardPass
from .._core.outputs import Classes, class_index
from .._core.requests import ClassRequest
from ..scores import Score, logit


class PairExplanation(Explanation):
    """What tells each of several classes from each of the others: an :class:`Explanation` whose maps are a matrix.

    Attributes:
        maps: ``(B, N, N, h, w)``: at row ``i`` and column ``j`` what speaks for class ``i`` rather than class ``j``.
    """

    def _lead(self) -> int:
        return 3

    def _by_image(self) -> list[list[dict[str, Any]]]:
        name = self.class_names.get
        return [
            [
                {
                    "image": image,
                    "class": c,
                    "name": name(c),
                    "other": other,
                    "other_name": name(other),
                    "logit_difference": float(logits[c] - logits[other]),
                }
                for c in index
                for other in index
            ]
            for image, (index, logits) in enumerate(zip(self.classes.tolist(), self.logits.double(), strict=True))
        ]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with a row for each pair of classes.

        Columns: ``image`` (its number in the batch), ``class`` and ``name``, ``other`` and ``other_name``,
        ``logit_difference``, and the ``entropy`` of the map, in nats.

        Raises:
            ImportError: If pandas is not installed.
        """
        frame = super().to_pandas()
        return frame[frame["class"] != frame["other"]].reset_index(drop=True)

    def _told(self, rows: list[dict[str, Any]]) -> list[str]:
        return [self._caption(row, " ") for row in rows if row["class"] < row["other"]]

    def _caption(self, row: dict[str, Any], separator: str) -> str:
        own, other = self._label(row["class"]), self._label(row["other"])
        if row["class"] == row["other"]:
            return own
        return f"{own}{separator}rather than {other}{separator}logit {row['logit_difference']:+.3g}"

    def _arranged(self, panels: list[list[Panel]]) -> list[list[Panel]]:
        """The matrix of the first image."""
        cells, count = panels[0] if panels else [], min(self.classes.shape[1], SHOWN)
        return [cells[start : start + count] for start in range(0, len(cells), count)]


def explain_together(
    cams: Sequence[BaseCAM], input_tensor: Any, classes: Classes = None, *args: Any, **kwargs: Any
) -> list[Explanation]:
    """What each of several CAMs explains, in one forward pass for all of them.

    Args:
        cams: CAMs of one model that read the same layers, with the same ``output`` and ``reshape_transform``.
        input_tensor: As in :meth:`BaseCAM.explain`.
        classes: As in :meth:`BaseCAM.explain`, the same for all CAMs.
        *args: Further arguments of the model.
        **kwargs: Further keyword arguments of the model.

    Returns:
        For each CAM what its :meth:`~BaseCAM.explain` gives.

    Raises:
        ValueError: If there are no CAMs, or they cannot share a forward pass; otherwise as :meth:`BaseCAM.explain`.
        TypeError: If one is not a CAM, such as a smoothing; otherwise as :meth:`BaseCAM.explain`.
        RuntimeError: As :meth:`BaseCAM.explain`.
    """
    if not cams:
        raise ValueError("there are no CAMs to explain with; expected at least one")
    for cam in cams:
        _check_cam(cam)
    first = cams[0]
    for cam in cams[1:]:
        if different := first.reader.differences(cam.reader):
            names = [[layer.name for layer in each.reader.layers] for each in (first, cam)]
            raise ValueError(
                f"{type(first).__name__} (layers {', '.join(names[0])}) and {type(cam).__name__} (layers "
                f"{', '.join(names[1])}) differ in {' and '.join(different)}, so no forward pass serves both; give "
                "them the same, or explain them one after the other"
            )
    reader = next((cam.reader for cam in cams if cam.reader.graph), first.reader)
    with reader.run(input_tensor, *args, **kwargs) as forward:
        return forward.settle(lambda: [cam.explanation(forward, classes) for cam in cams])


def explain_pairs(
    cam: BaseCAM, input_tensor: Any, classes: Tensor | Sequence[int] | str, *args: Any, **kwargs: Any
) -> PairExplanation:
    """Which regions tell each of several classes from each of the others: a matrix of maps, in one forward pass.

    The map at row ``i`` and column ``j`` explains the difference of two logits, ``z_i - z_j``: what speaks for class
    ``i`` rather than for class ``j``. Nothing that all classes have in common is in it. It costs a vector-Jacobian
    product from the logits to the layer for each of the ``N (N - 1)`` pairs.

    Args:
        cam: Any CAM of this library. Its own score is not used.
        input_tensor: As in :meth:`BaseCAM.explain`.
        classes: The ``N`` classes: indices ``(N,)``, the same for all images; ``(B, N)``, for each image its own; or
            ``"top3"``, those with the largest logits.
        *args: Further arguments of the model.
        **kwargs: Further keyword arguments of the model.

    Returns:
        ``(logits, classes, maps)``: ``(B, K)``, ``(B, N)`` and ``(B, N, N, h, w)``, at the resolution of the layer, 0
        on the diagonal. With ``rectify=False`` the maps of a method that is linear in the score, such as Grad-CAM, are
        antisymmetric: what speaks for ``i`` against ``j`` speaks against ``j`` by as much. See
        :class:`.analysis.PairExplanation`.

    Raises:
        TypeError: If ``cam`` is not a CAM; otherwise as :meth:`BaseCAM.explain`.
        ValueError: If there are fewer than two classes, or one comes twice; otherwise as :meth:`BaseCAM.explain`.
        RuntimeError: As :meth:`BaseCAM.explain`.

    Example:
        >>> from diffgradcam import GradCAM
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> logits, classes, maps = explain_pairs(GradCAM(model, "0"), torch.rand(5, 3, 8, 8), [0, 2, 3])
        >>> maps.shape
        torch.Size([5, 3, 3, 6, 6])
    """
    _check_cam(cam)
    if not isinstance(cam, ScoredCAM):
        raise TypeError(
            f"cam is {type(cam).__name__}, which has no score and so shows the same map for every pair; expected a "
            "method that explains a score, such as GradCAM"
        )
    with cam.reader.run(input_tensor, *args, **kwargs) as forward:
        return forward.settle(lambda: _pairs(cam, forward, classes))


def _pairs(cam: ScoredCAM, forward: ForwardPass, classes: Tensor | Sequence[int] | str) -> PairExplanation:
    cam.class_names.check(forward.logits)
    index = _compared(forward.logits, classes)
    count = index.shape[1]
    first, second = (~torch.eye(count, dtype=torch.bool)).nonzero().to(index.device).unbind(1)
    pairs = index[:, first] * forward.logits.shape[1] + index[:, second]
    found = cam.fuse(cam.layer_maps(forward, ClassRequest(_PairDifference(), pairs)), pairs)
    forward.checks.require_finite("the map", found)
    maps = found.new_zeros(len(index), count, count, *found.shape[2:])
    maps[:, first, second] = found
    return PairExplanation(forward.logits.detach(), index, maps, class_names=cam.class_names, signed=not cam.rectify)


def _check_cam(cam: BaseCAM) -> None:
    if not isinstance(cam, BaseCAM):
        raise TypeError(f"cam is {type(cam).__name__}; expected a CAM of this library, such as GradCAM(model, layers)")


@dataclass(frozen=True)
class _PairDifference(Score):
    """The score ``z_i - z_j`` of the pair of classes number ``i * K + j``."""

    def __call__(self, logits: Tensor, pairs: Tensor) -> Tensor:
        count = logits.shape[1]
        return logit(logits, pairs // count) - logit(logits, pairs % count)


def _compared(logits: Tensor, classes: Classes) -> Tensor:
    """The classes of a matrix, ``(B, N)``, all of an image different."""
    given: Any = classes
    if isinstance(given, Sequence) and not isinstance(given, str):
        given = [given] * len(logits)
    elif isinstance(given, Tensor) and given.ndim == 1:
        given = given.expand(len(logits), -1)
    index = class_index(logits, given)
    if index.ndim != 2 or index.shape[1] < 2:
        raise ValueError(
            f"classes are {classes!r}; a matrix of pairs needs at least two classes: a list such as [281, 282], (B, N) "
            'for each image its own, or "top3"'
        )
    ordered = index.sort(dim=1).values
    twice = ordered[:, 1:] == ordered[:, :-1]
    if bool(twice.any()):
        raise ValueError(f"class {int(ordered[:, 1:][twice][0])} comes twice; give each class of the matrix once")
    return index
