"""How certain a metric is: bootstrap intervals, mean and spread over seeds, paired comparisons of two methods.

It needs SciPy (``pip install scipy``), which is imported on the first call.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffgradcam._core.checks import check_choice, check_confidence, check_seed
from diffgradcam._core.optional import import_optional

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


def mean_and_spread(values: ArrayLike) -> Spread:
    """Mean and sample standard deviation of a metric over seeds.

    Args:
        values: One value per seed, ``(N,)``.

    Returns:
        ``(mean, sd, n)``; ``sd`` divides by ``n - 1`` and is NaN for a single seed.

    Raises:
        ValueError: If there are no values or one is not finite.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, n=3)
    """
    array = finite_values("values", values)
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
    """Bootstrap confidence interval of the mean of a metric that each image has, such as those of faithfulness.

    Args:
        values: One value per image, ``(N,)``.
        confidence: Level of the interval, between 0 and 1.
        resamples: Number of resamples of the images.
        method: ``"percentile"``, or ``"BCa"`` (bias-corrected and accelerated; NaN where all resamples agree).
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
    array = finite_values("values", values)
    if len(array) < 2:
        raise ValueError(f"got {len(array)} value; expected one per image, at least two, for an interval of their mean")
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
    """Compare two methods seed by seed: seeds often differ more than methods, so only differences within a seed count.

    Args:
        values: The method's values, one per seed, ``(N,)``.
        reference: The values of the method to compare with, for the same seeds in the same order, ``(N,)``.
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
    first, second = finite_values("values", values), finite_values("reference", reference)
    if len(first) != len(second) or len(first) < 2:
        raise ValueError(
            f"got {len(first)} values and {len(second)} of the reference; expected one pair per seed, at least two"
        )
    differences = first - second
    low, high = bootstrap([differences], np.mean, confidence, resamples, method, seed)
    p_value = float(_scipy_stats().wilcoxon(differences).pvalue) if differences.any() else 1.0
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
        method: ``"percentile"``, or ``"BCa"`` (bias-corrected and accelerated; NaN where all resamples agree).
        seed: Seed of the resampling.
        batch: How many resamples are held at once; by default all.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: If an option is wrong.
        ImportError: If SciPy is not installed.
    """
    check_choice("method", method, get_args(Method))
    check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; expected at least 1, and 1000 for an interval to rely on")
    check_seed(seed)
    interval = (
        _scipy_stats()
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


def finite_values(name: str, values: ArrayLike) -> Floats:
    """Read a row of finite numbers.

    Args:
        name: Of the argument, for the message.
        values: ``(N,)``.

    Returns:
        float64, ``(N,)``.

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there are none, they have another shape, or one is not finite.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} are {reprlib.repr(values)}; expected numbers, (N,)") from error
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} have shape {array.shape}; expected (N,) with at least one value")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} hold NaN or infinite values; expected finite numbers")
    return array


def _scipy_stats() -> Any:
    return import_optional("scipy.stats", "this metric")
