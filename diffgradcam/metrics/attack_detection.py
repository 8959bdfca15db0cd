"""Figures of a binary task, in the terms of presentation attack detection (ISO/IEC 30107-3), with their uncertainty.

The convention everywhere: label 1 is an attack (the positive class), 0 is bona fide, and a higher score means more
attack. An image is called an attack when ``score >= threshold``. For scores that mean the opposite, pass ``-scores``.
Everything here works on sequences, NumPy arrays and CPU tensors, needs no gradients, and gives plain Python floats.

It needs scikit-learn and SciPy: ``pip install scikit-learn scipy``. They are imported on the first call.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffgradcam._core.checks import check_seed

from .._core.optional import import_extra

Floats = NDArray[np.float64]
Method = Literal["percentile", "BCa"]


class Spread(NamedTuple):
    """Mean, sample standard deviation (``n - 1``; NaN for a single value) and number of the values."""

    mean: float
    sd: float
    n: int


class PairedComparison(NamedTuple):
    """Mean of the paired differences, the interval of that mean, two-sided Wilcoxon p-value, number of pairs."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


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
        raise ValueError(f"target is {target}: expected a BPCER from 0 to 1, such as 0.01 for 1%")
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
    images, and attacks (of each type, where types are given). So no resample lacks a class. It tells how far
    *these test images* bear the number; how far training does is the spread over seeds.

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
            "images: expected at least two in each; merge rare attack types"
        )

    def of_resample(*groups: NDArray[np.int64]) -> float:
        rows = np.concatenate(groups)
        value = metric(y[rows], s[rows]) if attack_types is None else metric(y[rows], s[rows], attack_types=types[rows])
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"metric returned {type(value).__name__}: expected a number, as metrics.auroc gives")
        return float(value)

    return bootstrap(strata, of_resample, confidence, resamples, method, seed)


def mean_and_spread(values: ArrayLike) -> Spread:
    """Mean and sample standard deviation of a figure over seeds.

    Args:
        values: One figure per seed, ``(N,)``.

    Returns:
        ``(mean, sd, n)``; ``sd`` divides by ``n - 1`` and is NaN for a single seed.

    Raises:
        ValueError: If there are no values or one is not finite.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, n=3)
    """
    array = _finite("values", values)
    sd = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
    return Spread(float(array.mean()), sd, len(array))


def mean_interval(
    values: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    method: Method = "percentile",
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap confidence interval of the mean of a figure that each image has, such as those of faithfulness.

    Args:
        values: One figure per image, ``(N,)``.
        confidence: Level of the interval, between 0 and 1.
        resamples: Number of resamples of the images.
        method: As :func:`bootstrap_interval`.
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: If there are fewer than two values, one is not finite, or an option is wrong.
        ImportError: If SciPy is not installed.

    Example:
        >>> mean_interval([1.0, 1.0, 1.0])
        (1.0, 1.0)
    """
    array = _finite("values", values)
    if len(array) < 2:
        raise ValueError(f"got {len(array)} value: expected one per image, at least two, for an interval of their mean")
    return bootstrap([array], np.mean, confidence, resamples, method, seed)


def paired_comparison(
    values: ArrayLike,
    reference: ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    method: Method = "percentile",
    seed: int = 0,
) -> PairedComparison:
    """Compare two methods seed by seed: seeds swing more than methods, so only the differences within a seed tell.

    Args:
        values: The method's figure, one per seed, ``(N,)``.
        reference: The figure of the method to compare with, for the same seeds in the same order, ``(N,)``.
        confidence: Level of the interval, between 0 and 1.
        resamples: Number of bootstrap resamples of the seeds.
        method: ``"percentile"``, or ``"BCa"``. With few seeds both are somewhat narrow.
        seed: Seed of the resampling.

    Returns:
        Mean of ``values - reference``, its bootstrap interval, the two-sided p-value of Wilcoxon's signed-rank test
        (1 where no pair differs; at best ``2 ** (1 - N)``, and not corrected for several comparisons) and N.

    Raises:
        ValueError: If there are fewer than two pairs, lengths differ, a value is not finite or an option is wrong.
        ImportError: If SciPy is not installed.
    """
    first, second = _finite("values", values), _finite("reference", reference)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"got {len(first)} values and {len(second)} of the reference: expected one pair per seed, at least two"
        )
    differences = first - second
    low, high = bootstrap([differences], np.mean, confidence, resamples, method, seed)
    p_value = float(import_extra("scipy.stats").wilcoxon(differences).pvalue) if differences.any() else 1.0
    return PairedComparison(float(differences.mean()), low, high, p_value, len(differences))


def bootstrap(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[..., Any],
    confidence: float,
    resamples: int,
    method: Method,
    seed: int,
    batch: int | None = None,
) -> tuple[float, float]:
    """Bootstrap confidence interval of any statistic of samples that are resampled each by itself.

    Args:
        samples: Arrays ``(N,)``, each of at least two values.
        statistic: Of as many arrays; computed for many resamples at once where it takes ``axis=``.
        confidence: Level of the interval, between 0 and 1.
        resamples: Number of resamples.
        method: As :func:`bootstrap_interval`.
        seed: Seed of the resampling.
        batch: How many resamples are held at once; by default all.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: If an option is wrong.
        ImportError: If SciPy is not installed.
    """
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}: expected one of {', '.join(map(repr, get_args(Method)))}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a level between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: expected at least 1, and 1000 for an interval to rely on")
    check_seed(seed)
    interval = (
        import_extra("scipy.stats")
        .bootstrap(
            samples,
            statistic,
            n_resamples=resamples,
            batch=batch,
            confidence_level=confidence,
            method=method,
            # `random_state`, not `rng`: SciPy accepts it in every version since bootstrap exists.
            random_state=np.random.default_rng(seed),
        )
        .confidence_interval
    )
    return float(interval.low), float(interval.high)


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    y, s = np.asarray(labels), _finite("scores", scores)
    if y.shape != s.shape:
        raise ValueError(f"labels have shape {y.shape} and scores {s.shape}: expected one score per label, (N,) both")
    if set(y.tolist()) != {0, 1}:
        raise ValueError(
            f"labels hold {sorted(set(y.tolist()), key=str)[:5]}: expected both 1 (attack) and 0 (bona fide), and "
            "nothing else"
        )
    return y.astype(np.int64), s


def _checked_types(attack_types: Sequence[Any] | None, labels: NDArray[np.int64]) -> NDArray[Any]:
    if attack_types is None:
        return np.zeros_like(labels)
    types = np.asarray([str(kind) for kind in attack_types])
    if types.shape != labels.shape:
        raise ValueError(f"got {len(types)} attack_types for {len(labels)} labels: expected one per image")
    return types


def _finite(name: str, values: ArrayLike) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} are {reprlib.repr(values)}: expected numbers, (N,)") from error
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} have shape {array.shape}: expected (N,) with at least one value")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinite values: expected finite numbers")
    return array


def _metrics() -> Any:
    return import_extra("sklearn.metrics")
