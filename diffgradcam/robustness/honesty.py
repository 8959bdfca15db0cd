"""Did the map lie, or did the model change? A verdict on one explainer of a model before and after an attack.

A map that moved is not a lie if what the model relies on moved with it. What the model relies on is measured on the
model alone (:func:`diffgradcam.metrics.behaviour`), so it can be compared with itself before (*behaviour kept*), and
with the map of the same model (*honesty*).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .._core.checks import check_count, check_share
from ..metrics.behaviour import GRID
from ..scores import ScoreFunction, logit_difference
from .benchmark_result import Decisions, Estimate

Verdict = Literal["lie", "change", "unmoved", "unclear"]


@dataclass(frozen=True)
class HonestyCheck:
    """How honesty is measured, and where its thresholds are.

    The thresholds are ours, and they are conventions: state them with a verdict. Each is compared with an end of the
    bootstrap interval, so that what is uncertain is called unclear; without intervals it is compared with the mean.

    Attributes:
        agreement: Decisions are kept where the share of images that both models decide alike is at least this.
        kl: And the mean divergence of their probabilities is at most this, in nats.
        behaviour: Behaviour is kept where the mean r of the references after with those before is at least this, and
            has moved where it is less.
        kept: A map is unmoved where the mean r with the clean model's map is at least this.
        lost: Honesty is lost where the mean r of the maps with the references has fallen by more than this.
        score: What the references read; by default the log-odds.
        grid: Cells of the references along each side.
        steps: Of integrated gradients.
        batch_size: How many images go through the model at once.

    Raises:
        ValueError: If an option is out of range.
    """

    agreement: float = 0.95
    kl: float = 0.1
    behaviour: float = 0.7
    kept: float = 0.9
    lost: float = 0.1
    score: ScoreFunction = logit_difference
    grid: int = GRID
    steps: int = 16
    batch_size: int = 64

    def __post_init__(self) -> None:
        for name in ("agreement", "behaviour", "kept", "lost"):
            check_share(name, getattr(self, name))
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"kl is {self.kl}; expected a divergence in nats, a finite number of at least 0")
        for name in ("grid", "steps", "batch_size"):
            check_count(name, getattr(self, name))


def judge(
    decisions: Decisions, behaviour_kept: Estimate, kept: Estimate, lost: Estimate, check: HonestyCheck | None = None
) -> Verdict:
    """Did the map lie, or did the model change?

    - ``"unmoved"``: the map is as it was.
    - ``"lie"``: decisions and behaviour are kept, honesty is lost. Only this is a fooled explainer.
    - ``"change"``: behaviour has moved, and the map has followed: honesty is not lost.
    - ``"unclear"``: anything else. The intervals are too wide, decisions or behaviour moved *and* honesty is lost, or
      the clean map was not honest enough to lose anything.

    Args:
        decisions: What became of the decisions.
        behaviour_kept: Mean r of the references after with those before.
        kept: Mean r of the map after with that before.
        lost: How far the mean r of the map with the references has fallen.
        check: The thresholds; by default those of ``HonestyCheck()``.

    Returns:
        The verdict.

    Reference:
        Ours; the question is that of "Beyond Fooling", OpenReview RVKG35s2Dm, 2026.

    Example:
        >>> certain = lambda value: Estimate(value, value, value, 100)
        >>> same = Decisions(None, None, agreement=certain(1.0), kl=certain(0.0))
        >>> judge(same, behaviour_kept=certain(1.0), kept=certain(-0.2), lost=certain(0.5))
        'lie'
        >>> judge(same, behaviour_kept=certain(0.1), kept=certain(-0.2), lost=certain(0.0))
        'change'
    """
    check = HonestyCheck() if check is None else check
    if _low(kept) >= check.kept:
        return "unmoved"
    decided_alike = _low(decisions.agreement) >= check.agreement and _high(decisions.kl) <= check.kl
    if decided_alike and _low(behaviour_kept) >= check.behaviour and _low(lost) > check.lost:
        return "lie"
    if _high(behaviour_kept) < check.behaviour and _high(lost) <= check.lost:
        return "change"
    return "unclear"


def _low(estimate: Estimate) -> float:
    return estimate.mean if math.isnan(estimate.low) else estimate.low


def _high(estimate: Estimate) -> float:
    return estimate.mean if math.isnan(estimate.high) else estimate.high
