"""How robust explanations are: audit a checkpoint, repair it, and measure which explainers an attack fools.

A benchmark is of *one* attack. A method that withstands a common-mode hoax may fall to another attack, one that aims at
it. Name the attack wherever a number from here is shown. And a map that moved need not have lied, since the model may
rely on other things now: ``benchmark(..., honesty=True)`` tells the two apart.
"""

from .._core.explainers import MakeCAM
from .auditing import AuditReport, AuditThresholds, audit, repair
from .benchmark_result import AgreementEstimate, BenchmarkResult, Decisions, Estimate, Honesty, Row, Similarity
from .benchmarking import benchmark
from .honesty import HonestyCheck, judge

__all__ = [
    "AgreementEstimate",
    "AuditReport",
    "AuditThresholds",
    "BenchmarkResult",
    "Decisions",
    "Estimate",
    "Honesty",
    "HonestyCheck",
    "MakeCAM",
    "Row",
    "Similarity",
    "audit",
    "benchmark",
    "judge",
    "repair",
]
