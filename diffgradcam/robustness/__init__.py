"""How robust explanations are: audit a checkpoint, repair it, and measure which explainers an attack fools.

A benchmark is of *one* attack. A method that withstands a common-mode hoax may fall to another attack, one that aims at
it. Name the attack wherever a number from here is shown.
"""

from .auditing import AuditReport, audit, repair
from .benchmark_result import BenchmarkResult, Decisions, Estimate, Row, Similarity
from .benchmarking import benchmark

__all__ = [
    "AuditReport",
    "BenchmarkResult",
    "Decisions",
    "Estimate",
    "Row",
    "Similarity",
    "audit",
    "benchmark",
    "repair",
]
