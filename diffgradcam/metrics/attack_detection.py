"""Metrics of a binary task, in the terms of presentation attack detection (ISO/IEC 30107-3).

The convention everywhere: label 1 is an attack (the positive class), 0 is bona fide, and a higher score means more
attack. An image is called an attack when ``score >= threshold``. For scores that mean the opposite, pass ``-scores``.
Every function takes sequences, NumPy arrays or CPU tensors, needs no gradients, and returns plain Python floats.

They need scikit-learn and SciPy (``pip install scikit-learn scipy``), which are imported on the first call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffgradcam._core.optional import import_optional

from .statistics import Floats, Method, bootstrap, finite_values


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: how often an attack scores higher than a bona fide image (ties count half).

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.

    Returns:
        A number in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: If labels are other than 0 and 1, one of them is absent, lengths differ or a score is not finite.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.75
    """
    y, s = _checked(labels, scores)
    return float(_metrics().roc_auc_score(y, s))


def accuracy(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """Share of images on the right side of the threshold.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        threshold: An image is called an attack when ``score >= threshold``.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As :func:`auroc`.
        ImportError: If scikit-learn is not installed.
    """
    y, s = _checked(labels, scores)
    return float(_metrics().accuracy_score(y, s >= threshold))


def apcer(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, attack_types: Sequence[Any] | None = None
) -> float:
    """Attack presentation classification error rate: share of attacks that are taken for bona fide.

    With ``attack_types`` it is the *maximum* over the types, which is what ISO/IEC 30107-3 reports: a system is as
    good as against its worst attack. Without, all attacks count as one type.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        threshold: An image is called an attack when ``score >= threshold``.
        attack_types: The type of each image, ``(N,)``; what it holds for bona fide images is not read.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As :func:`auroc`, or if there are not as many attack types as labels.

    Reference:
        ISO/IEC 30107-3, "Biometric presentation attack detection, part 3: testing and reporting".

    Example:
        >>> labels, scores = [0, 1, 1, 1, 1], [0.2, 0.9, 0.8, 0.7, 0.3]
        >>> apcer(labels, scores)
        0.25
        >>> apcer(labels, scores, attack_types=["none", "print", "print", "mask", "mask"])
        0.5
    """
    y, s = _checked(labels, scores)
    types = _checked_types(attack_types, y)
    missed = s < threshold
    return max(float(missed[(y == 1) & (types == kind)].mean()) for kind in np.unique(types[y == 1]))


def bpcer(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """Bona fide presentation classification error rate: share of bona fide images that are taken for attacks.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        threshold: An image is called an attack when ``score >= threshold``.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As :func:`auroc`.

    Reference:
        ISO/IEC 30107-3.

    Example:
        >>> bpcer([0, 0, 0, 1], [0.1, 0.5, 0.2, 0.9])
        0.3333333333333333
    """
    y, s = _checked(labels, scores)
    return float((s[y == 0] >= threshold).mean())


def acer(
    labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5, attack_types: Sequence[Any] | None = None
) -> float:
    """Average classification error rate, as the literature reports it: the mean of APCER and BPCER at one threshold.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        threshold: An image is called an attack when ``score >= threshold``.
        attack_types: The type of each image, ``(N,)``: APCER is then the maximum over the types.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As :func:`apcer`.
    """
    return (apcer(labels, scores, threshold, attack_types) + bpcer(labels, scores, threshold)) / 2


def apcer_at_bpcer(
    labels: ArrayLike, scores: ArrayLike, target: float = 0.01, attack_types: Sequence[Any] | None = None
) -> float:
    """APCER at the lowest threshold whose BPCER is at most ``target``.

    With fewer than ``1 / target`` bona fide images no image of them may be called an attack.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        target: The BPCER that is accepted, in [0, 1].
        attack_types: The type of each image, ``(N,)``: APCER is then the maximum over the types.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: As :func:`apcer`, or if ``target`` is outside [0, 1].
        ImportError: If scikit-learn is not installed.

    Example:
        >>> apcer_at_bpcer([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.5
    """
    if not 0 <= target <= 1:
        raise ValueError(f"target is {target}; expected a BPCER from 0 to 1, such as 0.01 for 1%")
    y, s = _checked(labels, scores)
    bona_fide_errors, _, thresholds = _metrics().roc_curve(y, s, drop_intermediate=False)
    return apcer(y, s, float(thresholds[bona_fide_errors <= target][-1]), attack_types)


def eer(labels: ArrayLike, scores: ArrayLike) -> float:
    """Equal error rate: where the share of missed attacks and that of rejected bona fide images cross.

    All attacks count as one type. Between two points of the ROC curve, it is interpolated linearly.

    Args:
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.

    Returns:
        A number in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: As :func:`auroc`.
        ImportError: If scikit-learn is not installed.

    Example:
        >>> eer([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
        0.5
    """
    y, s = _checked(labels, scores)
    rejected, detected, _ = _metrics().roc_curve(y, s, drop_intermediate=False)
    return float(np.interp(0.0, rejected - (1 - detected), rejected))


def bootstrap_interval(
    metric: Callable[..., float],
    labels: ArrayLike,
    scores: ArrayLike,
    attack_types: Sequence[Any] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    method: Method = "percentile",
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap confidence interval of a metric over the test images.

    Images are resampled with replacement, label and score and type together, and within their stratum: bona fide
    images, and attacks (of each type, where types are given). So no resample lacks a class. The interval says how
    much the metric depends on *these test images*; how much it depends on training is the spread over seeds.

    Args:
        metric: A function of this module, called as ``metric(labels, scores)`` or, with types, as
            ``metric(labels, scores, attack_types=attack_types)``. Fix its options with ``functools.partial``.
        labels: 1 for an attack, 0 for bona fide, ``(N,)``.
        scores: Higher is more attack, ``(N,)``.
        attack_types: The type of each image, ``(N,)``, for metrics that take it.
        confidence: Level of the interval, between 0 and 1.
        resamples: Number of resamples.
        method: ``"percentile"``, or ``"BCa"`` (bias-corrected and accelerated; NaN where all resamples agree).
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: As :func:`apcer`, if a stratum has a single image, or an option is wrong.
        ImportError: If SciPy is not installed.
    """
    y, s = _checked(labels, scores)
    types = _checked_types(attack_types, y)
    strata = [np.flatnonzero(y == 0)]
    strata += [np.flatnonzero((y == 1) & (types == kind)) for kind in np.unique(types[y == 1])]
    if min(map(len, strata)) < 2:
        raise ValueError(
            f"the groups to resample (bona fide, then each attack type) hold {[len(group) for group in strata]} "
            "images; expected at least two in each; merge rare attack types"
        )

    def of_resample(*groups: NDArray[np.int64]) -> float:
        rows = np.concatenate(groups)
        value = metric(y[rows], s[rows]) if attack_types is None else metric(y[rows], s[rows], attack_types=types[rows])
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"metric returned {type(value).__name__}; expected a number, as metrics.auroc gives")
        return float(value)

    return bootstrap(strata, of_resample, confidence, resamples, method, seed)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    y, s = np.asarray(labels), finite_values("scores", scores)
    if y.shape != s.shape:
        raise ValueError(f"labels have shape {y.shape} and scores {s.shape}; expected one score per label, (N,) both")
    if set(y.tolist()) != {0, 1}:
        raise ValueError(
            f"labels hold {sorted(set(y.tolist()), key=str)[:5]}; expected both 1 (attack) and 0 (bona fide), and "
            "nothing else"
        )
    return y.astype(np.int64), s


def _checked_types(attack_types: Sequence[Any] | None, labels: NDArray[np.int64]) -> NDArray[Any]:
    if attack_types is None:
        return np.zeros_like(labels)
    types = np.asarray([str(kind) for kind in attack_types])
    if types.shape != labels.shape:
        raise ValueError(f"got {len(types)} attack_types for {len(labels)} labels; expected one per image")
    return types


def _metrics() -> Any:
    return import_optional("sklearn.metrics", "this metric")
