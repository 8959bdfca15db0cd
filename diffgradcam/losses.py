"""Losses that train a model's maps to match the regions that people marked. Functions first, modules below.

All maps are ``(B, *S)``, signed (``rectify=False``) as in CYBORG, and differentiable: take them from ``cam.maps``.
Every saliency loss shares four conventions:

- ``human``: human saliency, non-negative, one map per image. A map of another resolution is brought to the grid of
  the maps (averaged where that grid is coarser, so that a thin mark cannot fall between two cells; linear where it is
  finer) and min-max scaled per image. A constant human map therefore marks nothing.
- ``mask``: ``(B,)`` bool, true where an image has a human map. The others are skipped: they have no gradient, do not
  count in the mean, and what ``human`` holds for them, NaN included, is never read.
- ``scope``: whose extremes the min-max scaling of the *maps* uses: ``"image"``, each map its own, or ``"batch"``,
  those of all maps that take part.
- ``reduction``: ``"mean"`` over the images that take part (0 if there are none), ``"sum"``, or ``"none"``: ``(B,)``,
  0 for a skipped image.

Half-precision maps (autocast) are computed in float32.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._core.checks import check_choice
from .heatmaps import entropy, minmax, resize, scale_signed

Reduction = Literal["mean", "sum", "none"]
Scope = Literal["image", "batch"]
ClassChoice = Literal["true", "predicted"]
Alpha = float | Literal["dynamic", "dynamic-detached"]

_DYNAMIC = ("dynamic", "dynamic-detached")
_EPSILON = 1e-8  # of the dynamic alpha, as in VISER


def cyborg_loss(
    true_maps: Tensor,
    human: Tensor,
    *,
    mask: Tensor | None = None,
    scope: Scope = "image",
    reduction: Reduction = "mean",
) -> Tensor:
    """CYBORG, the loss with one class: ``MSE(minmax(true), human)``, the mean over positions.

    The original takes the map of the *predicted* class, its descendants that of the *true* class: the choice is made
    with the classes that ``cam.maps`` gets, see :func:`true_and_false_classes`.

    Args:
        true_maps: Signed maps of the true class, ``(B, *S)``.
        human: Human saliency, ``(B, *T)``, non-negative.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent.
        scope: Min-max scaling by the extremes of each image's own map or of the batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss, a scalar or ``(B,)``; each image's value is in [0, 1].

    Raises:
        ValueError: If shapes do not match, ``human`` holds NaN, infinite or negative values in an image that takes
            part, or an option is unknown.
        TypeError: If the maps are not floating point, or ``mask`` is not bool.

    Reference:
        Boyd, Tinsley, Bowyer, Czajka, "CYBORG: Blending Human Saliency Into the Loss Improves Deep Learning-Based
        Synthetic Face Detection", WACV 2023.

    Example:
        >>> maps = torch.tensor([[[-1.0, 0.0], [1.0, 3.0]]])
        >>> human = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
        >>> cyborg_loss(maps, human)  # (0 + 0.25**2 + 0.5**2 + 0) / 4
        tensor(0.0781)
    """
    _check_options(scope, reduction)
    (true,), human = _take_part([true_maps], human, mask)
    return _reduce(_squared_error(_scale(true, scope), human), mask, reduction)


def difference_salience_loss(
    true_maps: Tensor,
    false_maps: Tensor,
    human: Tensor,
    *,
    mask: Tensor | None = None,
    scope: Scope = "image",
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss on Difference Salience: ``MSE(minmax(true - false), human)``.

    Difference Salience, the unnormalised false-class map subtracted from the unnormalised true-class map, is as in
    the paper; this loss on it is our reading of the paper's abstract.

    Args:
        true_maps: Signed maps of the true class, ``(B, *S)``.
        false_maps: Signed maps of the false class, ``(B, *S)``.
        human: Human saliency, ``(B, *T)``, non-negative.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent.
        scope: Min-max scaling by the extremes of each image's own map or of the batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss, a scalar or ``(B,)``; each image's value is in [0, 1].

    Raises:
        ValueError: As :func:`cyborg_loss`.
        TypeError: As :func:`cyborg_loss`.

    Reference:
        Piland, Sweet, Czajka, "Divisive Decisions", 2025 (arXiv 2507.17000).
    """
    _check_options(scope, reduction)
    (true, false), human = _take_part([true_maps, false_maps], human, mask)
    return _reduce(_squared_error(_scale(true - false, scope), human), mask, reduction)


def contrast_salience_loss(
    true_maps: Tensor,
    false_maps: Tensor,
    human: Tensor,
    *,
    mask: Tensor | None = None,
    scope: Scope = "image",
    reduction: Reduction = "mean",
) -> Tensor:
    """Each class its own target: ``MSE(minmax(true), human) + MSE(minmax(false), 1 - human)``.

    Our reading of the paper's abstract; the name is ours.

    Args:
        true_maps: Signed maps of the true class, ``(B, *S)``.
        false_maps: Signed maps of the false class, ``(B, *S)``.
        human: Human saliency, ``(B, *T)``, non-negative.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent.
        scope: Min-max scaling by the extremes of each image's own map or of the batch, each class apart.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss, a scalar or ``(B,)``; each image's value is in [0, 2].

    Raises:
        ValueError: As :func:`cyborg_loss`.
        TypeError: As :func:`cyborg_loss`.

    Reference:
        Piland, Sweet, Czajka, "Divisive Decisions", 2025 (arXiv 2507.17000).
    """
    _check_options(scope, reduction)
    (true, false), human = _take_part([true_maps, false_maps], human, mask)
    values = _squared_error(_scale(true, scope), human) + _squared_error(_scale(false, scope), 1 - human)
    return _reduce(values, mask, reduction)


def divergence_salience_loss(
    true_maps: Tensor,
    false_maps: Tensor,
    human: Tensor,
    weight: float = 1.0,
    *,
    mask: Tensor | None = None,
    scope: Scope = "image",
    reduction: Reduction = "mean",
) -> Tensor:
    """CYBORG, and the two classes must diverge where people look.

    ``MSE(minmax(true), human) + weight * relu(cos)``, where ``cos`` is the cosine between the two signed maps, each
    position weighted by ``human``. Once they point away from each other there, nothing pushes them further. Our
    reading of the paper's abstract; the name is ours.

    Args:
        true_maps: Signed maps of the true class, ``(B, *S)``.
        false_maps: Signed maps of the false class, ``(B, *S)``.
        human: Human saliency, ``(B, *T)``, non-negative.
        weight: Weight of the agreement of the two maps, at least 0.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent.
        scope: Min-max scaling by the extremes of each image's own map or of the batch. The cosine needs no scaling.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss, a scalar or ``(B,)``; each image's value is in [0, 1 + weight].

    Raises:
        ValueError: As :func:`cyborg_loss`, or if ``weight`` is negative.
        TypeError: As :func:`cyborg_loss`.

    Reference:
        Piland, Sweet, Czajka, "Divisive Decisions", 2025 (arXiv 2507.17000).
    """
    _check_options(scope, reduction)
    _check_weight(weight)
    (true, false), human = _take_part([true_maps, false_maps], human, mask)
    values = _squared_error(_scale(true, scope), human) + weight * _agreement(true, false, human).relu()
    return _reduce(values, mask, reduction)


def camal_loss(
    maps: Tensor,
    human: Tensor,
    *,
    mask: Tensor | None = None,
    scope: Scope = "image",
    reduction: Reduction = "mean",
) -> Tensor:
    """Reward a map inside the marked region and punish it outside: ``1 - inside + outside``.

    ``inside`` is the mean of the min-max scaled map weighted by ``human``, ``outside`` that weighted by
    ``1 - human``. Unlike a squared error, it does not ask the map for the human map's own shape or values, and a small
    region weighs as much as a large one. Our reading of the idea of CAMAL; the formula is ours.

    Args:
        maps: Signed maps of the true class, ``(B, *S)``.
        human: Human saliency, ``(B, *T)``, non-negative. One that is constant marks nothing: only ``outside`` is left.
        mask: Which images have a human map, ``(B,)`` bool; all of them when absent.
        scope: Min-max scaling by the extremes of each image's own map or of the batch.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss, a scalar or ``(B,)``; each image's value is in [0, 2], and 1 for a map that ignores the region.

    Raises:
        ValueError: As :func:`cyborg_loss`.
        TypeError: As :func:`cyborg_loss`.

    Reference:
        CAMAL, 2026 (arXiv 2605.08325).

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])
        >>> human = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
        >>> camal_loss(maps, human)  # 1 - (0.75 + 1) / 2 + (0 + 0.25) / 2
        tensor(0.2500)
    """
    _check_options(scope, reduction)
    (true,), human = _take_part([maps], human, mask)
    scaled = _scale(true, scope)
    return _reduce(1 - _weighted_mean(scaled, human) + _weighted_mean(scaled, 1 - human), mask, reduction)


def cam_entropy(maps: Tensor) -> Tensor:
    """Entropy of each min-max scaled map: how focused the model is. Lower is more focused.

    Args:
        maps: Maps, ``(B, *S)``, signed or not.

    Returns:
        Entropy in nats, ``(B,)``, between 0 and ``ln(number of positions)``; 0 for a constant map.

    Raises:
        ValueError: If the maps have no spatial dimension.
        TypeError: If the maps are not floating point.

    Reference:
        Piland, Czajka, Sweet, "Model Focus Improves Performance of Deep Learning-Based Synthetic Face Detectors",
        2023 (arXiv 2303.00818).

    Example:
        >>> cam_entropy(torch.tensor([[[-2.0, 5.0], [5.0, -2.0]]]))  # two equal peaks: ln 2
        tensor([0.6931])
    """
    return entropy(minmax(_at_least_float32(maps)))


def cam_entropy_loss(
    maps: Tensor, *, log: bool = False, mask: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """CAM entropy as a training term: ``mean(H)``, or ``mean(ln(H + 1))``. It needs no human maps.

    Args:
        maps: Maps, ``(B, *S)``, signed or not.
        log: Use ``ln(H + 1)``, which pushes a map that is focused already harder than one that is not.
        mask: Which images take part, ``(B,)`` bool; all of them when absent.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Returns:
        The loss in nats (in ``ln(nats + 1)`` with ``log``), a scalar or ``(B,)``.

    Raises:
        ValueError: If the maps have no spatial dimension, the mask has another length, or ``reduction`` is unknown.
        TypeError: If the maps are not floating point, or ``mask`` is not bool.

    Reference:
        Piland, Czajka, Sweet, "Model Focus Improves Performance of Deep Learning-Based Synthetic Face Detectors",
        2023 (arXiv 2303.00818).
    """
    _check_options("image", reduction)
    maps = _at_least_float32(maps)
    _check_mask(mask, maps)
    values = cam_entropy(maps if mask is None else maps[mask])
    return _reduce(values.log1p() if log else values, mask, reduction)


def true_and_false_classes(logits: Tensor, labels: Tensor, choice: ClassChoice = "true") -> Tensor:
    """The class to explain and the one to contrast it with, in the form that ``cam.maps`` takes.

    The false class is the other one of two, and with more classes the strongest other one.

    Args:
        logits: Logits, ``(B, K)`` with K at least 2.
        labels: True classes, ``(B,)`` int64.
        choice: The first class is the ``"true"`` label, or the ``"predicted"`` class as in the original CYBORG.

    Returns:
        Class indices, ``(B, 2)`` int64.

    Raises:
        ValueError: If the shapes do not match, a label is not a class, K is 1, or ``choice`` is unknown.
        TypeError: If the labels are not int64.

    Example:
        >>> logits = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]])
        >>> true_and_false_classes(logits, torch.tensor([1, 1]))
        tensor([[1, 2],
                [1, 0]])
        >>> true_and_false_classes(logits, torch.tensor([1, 1]), choice="predicted")
        tensor([[1, 2],
                [0, 2]])
    """
    check_choice("choice", choice, get_args(ClassChoice))
    _check_labels(logits, labels)
    if logits.shape[1] < 2:
        raise ValueError("logits have one class: a true and a false class need at least two, logits (B, K) with K >= 2")
    first = labels if choice == "true" else logits.argmax(1)
    # Looking only among the others stays right where their logits are -inf.
    others = logits[~F.one_hot(first, logits.shape[1]).bool()].view(len(logits), -1).argmax(1)
    return torch.stack([first, others + (others >= first)], 1)


class _SaliencyLoss(nn.Module):
    """Base of the modules of the saliency losses: their options, checked at construction."""

    def __init__(self, *, scope: Scope = "image", reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_options(scope, reduction)
        self.scope: Scope = scope
        self.reduction: Reduction = reduction


class CyborgLoss(_SaliencyLoss):
    """Module of :func:`cyborg_loss`.

    Args:
        scope: ``"image"`` or ``"batch"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, true_maps: Tensor, human: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`cyborg_loss`."""
        return cyborg_loss(true_maps, human, mask=mask, scope=self.scope, reduction=self.reduction)


class DifferenceSalienceLoss(_SaliencyLoss):
    """Module of :func:`difference_salience_loss`.

    Args:
        scope: ``"image"`` or ``"batch"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, true_maps: Tensor, false_maps: Tensor, human: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`difference_salience_loss`."""
        return difference_salience_loss(
            true_maps, false_maps, human, mask=mask, scope=self.scope, reduction=self.reduction
        )


class ContrastSalienceLoss(_SaliencyLoss):
    """Module of :func:`contrast_salience_loss`.

    Args:
        scope: ``"image"`` or ``"batch"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, true_maps: Tensor, false_maps: Tensor, human: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`contrast_salience_loss`."""
        return contrast_salience_loss(
            true_maps, false_maps, human, mask=mask, scope=self.scope, reduction=self.reduction
        )


class DivergenceSalienceLoss(_SaliencyLoss):
    """Module of :func:`divergence_salience_loss`.

    Args:
        weight: Weight of the agreement of the two maps, at least 0.
        scope: ``"image"`` or ``"batch"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(self, weight: float = 1.0, *, scope: Scope = "image", reduction: Reduction = "mean") -> None:
        super().__init__(scope=scope, reduction=reduction)
        _check_weight(weight)
        self.weight = weight

    def forward(self, true_maps: Tensor, false_maps: Tensor, human: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`divergence_salience_loss`."""
        return divergence_salience_loss(
            true_maps, false_maps, human, self.weight, mask=mask, scope=self.scope, reduction=self.reduction
        )


class CamalLoss(_SaliencyLoss):
    """Module of :func:`camal_loss`.

    Args:
        scope: ``"image"`` or ``"batch"``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def forward(self, true_maps: Tensor, human: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`camal_loss`."""
        return camal_loss(true_maps, human, mask=mask, scope=self.scope, reduction=self.reduction)


class CamEntropyLoss(nn.Module):
    """Module of :func:`cam_entropy_loss`.

    Args:
        log: Use ``ln(H + 1)``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
    """

    def __init__(self, *, log: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        _check_options("image", reduction)
        self.log = log
        self.reduction: Reduction = reduction

    def forward(self, maps: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`cam_entropy_loss`."""
        return cam_entropy_loss(maps, log=self.log, mask=mask, reduction=self.reduction)


class GuidedLoss(NamedTuple):
    """The total, to call ``backward()`` on, and its unweighted parts for logging. All are scalars."""

    total: Tensor
    classification: Tensor
    saliency: Tensor


class SaliencyGuidedLoss(nn.Module):
    """Classify well and look where people look: ``alpha * cross_entropy + (1 - alpha) * saliency``.

    The cross-entropy is the mean over all images, the saliency loss that over the images with a human map. In
    data-parallel training both are means per process, as always there: ranks with unequal numbers of human maps weigh
    their images unequally.

    With ``alpha="dynamic"`` the weight follows the losses at each step: ``cross_entropy / (cross_entropy + saliency +
    1e-8)``, so the larger of the two weighs more. As in VISER, the weight is not detached: the total is
    ``(c^2 + s^2) / (c + s)``, whose gradient can push one of the two *up* (where it is less than .41 of the other).
    ``"dynamic-detached"`` is ours: the same value, but the weight counts as a constant, so that both are always
    pushed down.

    Args:
        saliency_loss: A loss that gives a scalar, called as ``(maps, human, mask=mask)`` or, with both classes, as
            ``(true_maps, false_maps, human, mask=mask)``: a module of this file, its functional twin, or your own.
        alpha: Weight of the classification, from 0 to 1 (alone), or ``"dynamic"``, or ``"dynamic-detached"``.
        blur: Standard deviation of a 3 x 3 Gaussian, in cells of the maps' grid, that blurs the human map after it was
            brought to that grid; a pair for one drawn evenly between the two in each call, from PyTorch's generator.
            VISER has ``(0.1, 2.0)``.
        class_weights: Weight of each class in the cross-entropy, ``(K,)``; all the same when absent.

    Raises:
        ValueError: If ``alpha`` is outside [0, 1] or an unknown word, or ``blur`` is not positive.
        TypeError: If ``saliency_loss`` is a class or cannot be called.

    Reference:
        Boyd, Tinsley, Bowyer, Czajka, "CYBORG", WACV 2023. The dynamic weight and the blur: the public code of VISER
        (IJCB 2026).

    Example:
        >>> criterion = SaliencyGuidedLoss(DifferenceSalienceLoss(), alpha=0.5)
        >>> logits, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
        >>> maps = torch.tensor([[[[0.0, 2.0]], [[0.0, 1.0]]]])  # (B, 2, h, w): true class, false class
        >>> human = torch.tensor([[[1.0, 0.0]]])
        >>> loss = criterion(logits, labels, maps, human)
        >>> loss.total, loss.classification, loss.saliency
        (tensor(0.8466), tensor(0.6931), tensor(1.))
    """

    class_weights: Tensor | None

    def __init__(
        self,
        saliency_loss: Callable[..., Tensor],
        alpha: Alpha = 0.5,
        *,
        blur: float | tuple[float, float] | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(saliency_loss, type) or not callable(saliency_loss):
            raise TypeError(
                f"saliency_loss is {saliency_loss!r}; expected an instance or a function, such as CyborgLoss() or "
                "cyborg_loss"
            )
        if alpha not in _DYNAMIC and not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
            raise ValueError(
                f"alpha is {alpha!r}; expected the weight of the classification, from 0 to 1, or one of "
                f"{', '.join(map(repr, _DYNAMIC))}"
            )
        self.saliency_loss = saliency_loss
        self.alpha: Alpha = alpha
        self.blur = None if blur is None else _checked_blur(blur)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self, logits: Tensor, labels: Tensor, maps: Tensor, human: Tensor, mask: Tensor | None = None
    ) -> GuidedLoss:
        """Compute the total and its parts.

        Args:
            logits: Logits, ``(B, K)``.
            labels: True classes, ``(B,)`` int64.
            maps: ``(B, *S)`` for a loss on one class, ``(B, 2, *S)``, true class first, for one on both: what
                ``cam.maps(logits, torch.stack([labels, 1 - labels], 1))`` gives.
            human: Human saliency, ``(B, *T)``, with as many spatial dimensions as ``S``.
            mask: Which images have a human map, ``(B,)`` bool; all of them when absent.

        Returns:
            ``(total, classification, saliency)``.

        Raises:
            ValueError: If shapes do not match each other or the saliency loss, a label is not a class, or the saliency
                loss gives no scalar.
            TypeError: If the labels are not int64.
        """
        _check_labels(logits, labels)
        return self.join(F.cross_entropy(logits, labels, self.class_weights), maps, human, mask)

    def join(self, classification: Tensor, maps: Tensor, human: Tensor, mask: Tensor | None = None) -> GuidedLoss:
        """Join the saliency loss with a classification loss of your own, as :meth:`forward` does with cross-entropy.

        Args:
            classification: A scalar: cross-entropy with smoothed labels, a focal loss, ...
            maps: As :meth:`forward` takes them.
            human: As :meth:`forward` takes it.
            mask: As :meth:`forward` takes it.

        Returns:
            ``(total, classification, saliency)``.

        Raises:
            ValueError: If a loss is not a scalar, or shapes do not match each other or the saliency loss.

        Example:
            >>> criterion = SaliencyGuidedLoss(CyborgLoss(), alpha=0.75)
            >>> criterion.join(torch.tensor(2.0), torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[1.0, 0.0]]]))
            GuidedLoss(total=tensor(1.7500), classification=tensor(2.), saliency=tensor(1.))
        """
        per_class = self._per_class(maps, human)
        if self.blur is not None:
            human = _blurred(_to_grid(human.to(per_class[0].dtype), per_class[0].shape[1:]), self.blur)
        saliency = self.saliency_loss(*per_class, human, mask=mask)
        for name, loss in (("classification", classification), ("saliency", saliency)):
            if loss.ndim:
                raise ValueError(
                    f"the {name} loss gave shape {tuple(loss.shape)}; expected a scalar; use reduction='mean'"
                )
        return GuidedLoss(self._total(classification, saliency), classification, saliency)

    def classes(self, logits: Tensor, labels: Tensor, choice: ClassChoice = "true") -> Tensor:
        """The classes whose maps the saliency loss takes, in the form of ``cam.maps``.

        Args:
            logits: Logits, ``(B, K)``.
            labels: True classes, ``(B,)`` int64.
            choice: The map of the ``"true"`` label or of the ``"predicted"`` class, as in
                :func:`true_and_false_classes`.

        Returns:
            ``(B,)`` for a loss on one class, ``(B, 2)`` for one on the true and the false class.

        Raises:
            ValueError: As :func:`true_and_false_classes`.
            TypeError: If the labels are not int64, or the saliency loss takes neither ``(maps, human)`` nor
                ``(true_maps, false_maps, human)``.

        Example:
            >>> logits, labels = torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([1])
            >>> SaliencyGuidedLoss(CyborgLoss()).classes(logits, labels)
            tensor([1])
            >>> SaliencyGuidedLoss(difference_salience_loss).classes(logits, labels)
            tensor([[1, 2]])
        """
        both = true_and_false_classes(logits, labels, choice)
        return both if _map_count(self.saliency_loss) == 2 else both[:, 0]

    def _total(self, classification: Tensor, saliency: Tensor) -> Tensor:
        if isinstance(self.alpha, str):
            alpha = classification / (classification + saliency + _EPSILON)
            if self.alpha == "dynamic-detached":
                alpha = alpha.detach()
            return alpha * classification + (1 - alpha) * saliency
        return self.alpha * classification + (1 - self.alpha) * saliency

    def _per_class(self, maps: Tensor, human: Tensor) -> tuple[Tensor, ...]:
        if maps.ndim == human.ndim:
            per_class: tuple[Tensor, ...] = (maps,)
        elif maps.ndim == human.ndim + 1 and maps.shape[1] == 2:
            per_class = maps.unbind(1)
        else:
            raise ValueError(
                f"maps have shape {tuple(maps.shape)} and human {tuple(human.shape)}; expected human (B, h, w) with "
                "maps (B, h, w) of one class or (B, 2, h, w) of the true and the false class"
            )
        loss = self.saliency_loss
        if isinstance(loss, _SaliencyLoss) and _map_count(loss) != len(per_class):
            wanted = "(B, h, w), one class" if _map_count(loss) == 1 else "(B, 2, h, w), the true and the false class"
            raise ValueError(
                f"maps have shape {tuple(maps.shape)}, but {type(loss).__name__} takes {wanted}: "
                "choose the classes in cam.maps(logits, classes) accordingly"
            )
        return per_class


def _map_count(saliency_loss: Callable[..., Tensor]) -> int:
    """How many maps a saliency loss takes: what it must be given, before ``human``."""
    called = saliency_loss.forward if isinstance(saliency_loss, nn.Module) else saliency_loss
    parameters = inspect.signature(called).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind in kinds]
    if len(needed) not in (2, 3):
        raise TypeError(
            f"the saliency loss takes ({', '.join(needed)}); expected (maps, human) or (true_maps, false_maps, human), "
            "and all else with a default"
        )
    return len(needed) - 1


def _take_part(class_maps: Sequence[Tensor], human: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """Check everything; keep the images that have a human map; bring that to the maps' grid and to [0, 1]."""
    first = class_maps[0]
    for maps in class_maps:
        if maps.shape != first.shape:
            raise ValueError(
                f"true_maps have shape {tuple(first.shape)} and false_maps {tuple(maps.shape)}; expected the same"
            )
    class_maps = [_at_least_float32(maps) for maps in class_maps]
    if human.ndim != first.ndim or human.shape[0] != first.shape[0]:
        raise ValueError(
            f"human has shape {tuple(human.shape)} and the maps {tuple(first.shape)}; expected one human map per map, "
            "(B, h, w) at any resolution, without a channel dimension"
        )
    _check_mask(mask, first)
    if mask is not None:
        # Indexing, not multiplication by 0: NaN times 0 is NaN, in the value and in the gradient.
        class_maps, human = [maps[mask] for maps in class_maps], human[mask]
    human = human.to(class_maps[0].dtype)
    if not bool(((human >= 0) & human.isfinite()).all()):
        raise ValueError(
            "human holds NaN, infinite or negative values in an image that takes part; expected saliency >= 0; "
            "leave images without a human map out with mask=has_human_map, (B,) bool"
        )
    return class_maps, minmax(_to_grid(human, first.shape[1:]))


def _to_grid(human: Tensor, size: Sequence[int]) -> Tensor:
    """Average where the grid is coarser (point sampling would lose thin marks), interpolate where it is finer."""
    coarse = [min(old, new) for old, new in zip(human.shape[1:], size, strict=True)]
    if coarse != list(human.shape[1:]):
        human = F.interpolate(human.unsqueeze(1), coarse, mode="area").squeeze(1)
    return resize(human, size)


def _scale(maps: Tensor, scope: Scope) -> Tensor:
    if scope == "image" or not len(maps):
        return minmax(maps)
    return minmax(maps.reshape(1, -1)).view_as(maps)


def _squared_error(maps: Tensor, target: Tensor) -> Tensor:
    return (maps - target).square().flatten(1).mean(1)


def _weighted_mean(maps: Tensor, weights: Tensor) -> Tensor:
    """Mean over positions under weights, ``(B,)``; 0 where all weights are 0."""
    total = weights.flatten(1).sum(1)
    return (maps * weights).flatten(1).sum(1) / torch.where(total > 0, total, 1)


def _blurred(human: Tensor, blur: tuple[float, float]) -> Tensor:
    """A 3 x 3 Gaussian, edges mirrored, ``(B, h, w)``; one standard deviation for the whole batch."""
    if human.ndim != 3 or min(human.shape[1:]) < 2:
        raise ValueError(f"the maps' grid is {tuple(human.shape[1:])}: expected two dimensions of at least 2 to blur")
    sigma = float(torch.empty(()).uniform_(*blur)) if blur[0] < blur[1] else blur[0]
    side = math.exp(-0.5 / sigma**2)
    kernel = human.new_tensor([side, 1.0, side]) / (1 + 2 * side)
    padded = F.pad(human.unsqueeze(1), (1, 1, 1, 1), mode="reflect")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3)).squeeze(1)


def _checked_blur(blur: float | tuple[float, float]) -> tuple[float, float]:
    low, high = (blur, blur) if isinstance(blur, int | float) else blur
    if not 0 < low <= high:
        raise ValueError(f"blur is {blur}: expected a standard deviation above 0, or a pair (low, high) of them")
    return low, high


def _agreement(true: Tensor, false: Tensor, human: Tensor) -> Tensor:
    """Cosine of the two maps under the weights ``human``, ``(B,)``; 0 where one of them is 0 on every marked cell."""
    # The cosine does not depend on the scale of a map; scaling first keeps its squares from underflowing.
    root = human.sqrt().flatten(1)
    return F.cosine_similarity(root * scale_signed(true).flatten(1), root * scale_signed(false).flatten(1), dim=1)


def _reduce(values: Tensor, mask: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce the values of the images that take part, ``(n,)``. Their sum is 0 with a gradient where there are none."""
    if reduction == "none":
        return values if mask is None else values.new_zeros(len(mask)).masked_scatter(mask.to(values.device), values)
    return values.sum() if reduction == "sum" else values.sum() / max(len(values), 1)


def _at_least_float32(maps: Tensor) -> Tensor:
    if not maps.is_floating_point():
        raise TypeError(f"maps have dtype {maps.dtype}; expected floating point maps, as cam.maps gives")
    if maps.ndim < 2:
        raise ValueError(f"maps have shape {tuple(maps.shape)}; expected (B, *S) with at least one spatial dimension")
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _check_options(scope: str, reduction: str) -> None:
    check_choice("scope", scope, get_args(Scope))
    check_choice("reduction", reduction, get_args(Reduction))


def _check_weight(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"weight is {weight}; expected at least 0, since a negative weight would reward agreement")


def _check_mask(mask: Tensor | None, maps: Tensor) -> None:
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"mask has dtype {mask.dtype}; expected bool, true where an image has a human map; mask.bool()")
    if mask.shape != maps.shape[:1]:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)} for {maps.shape[0]} maps; expected one bool per image, (B,)"
        )


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if labels.dtype != torch.int64:
        raise TypeError(f"labels have dtype {labels.dtype}; expected class indices, int64; labels.long()")
    if not logits.is_floating_point():
        raise TypeError(f"logits have dtype {logits.dtype}; expected floating point logits, as a model returns them")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; expected (B, K) and (B,)"
        )
    if not bool(((labels >= 0) & (labels < logits.shape[1])).all()):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected class indices from 0 to "
            f"{logits.shape[1] - 1}, since logits have {logits.shape[1]} classes"
        )
