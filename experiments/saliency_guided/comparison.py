"""What the reports of this experiment have in common: corrections and numbers in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffgradcam.metrics import PairedComparison, mean_and_spread

LEVEL = 0.05


class Comparison(NamedTuple):
    """A method against a reference.

    Attributes:
        part: The set, closed or open.
        method: The method.
        reference: CE or CYBORG.
        paired: By seed.
        adjusted_p: With Holm's correction for all comparisons that were made together.
    """

    part: str
    method: str
    reference: str
    paired: PairedComparison
    adjusted_p: float


def compare_all(
    paired: Callable[[str, str, str], PairedComparison], parts: Sequence[str], methods: Sequence[str]
) -> list[Comparison]:
    """Every method against CE, and every other one against CYBORG.

    Args:
        paired: Compares in a part a method with a reference: ``(part, method, reference)``.
        parts: Closed, open, or both.
        methods: All of them, CE and CYBORG included.

    Returns:
        Each of them.
    """
    wanted = [
        (part, method, reference)
        for part in parts
        for reference in ("CE", "CYBORG")
        for method in methods
        if method not in ("CE", reference)
    ]
    pairs = [paired(*each) for each in wanted]
    adjusted = holm([pair.p_value for pair in pairs])
    return [Comparison(*each, pair, p) for each, pair, p in zip(wanted, pairs, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the chance of any false finding in the family stays below the level.

    Args:
        p_values: Uncorrected, in any order.

    Returns:
        Corrected, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(p) for p in adjusted]


def spread(values: NDArray[np.float64]) -> str:
    """Mean and standard deviation in words.

    Args:
        values: One per seed.

    Returns:
        Such as ``0.850 +- 0.012``.
    """
    found = mean_and_spread(values)
    return f"{found.mean:.3f} +- {found.sd:.3f}"


def interval(pair: PairedComparison) -> str:
    """A difference and its interval in words.

    Args:
        pair: Of two methods.

    Returns:
        Such as ``+0.010 [+0.002, +0.018]``.
    """
    return f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
