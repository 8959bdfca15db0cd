"""COMPARE: which explainers a changed model fools. Two models, any number of explainers, one table.

A benchmark is of *one* attack: what withstands a common-mode hoax may fall to one that aims at it. Name the attack
wherever a number from here is shown.
"""

from .benchmark_result import BenchmarkResult, Decisions, Estimate, Row, Similarity
from .benchmarking import benchmark

__all__ = ["BenchmarkResult", "Decisions", "Estimate", "Row", "Similarity", "benchmark"]
