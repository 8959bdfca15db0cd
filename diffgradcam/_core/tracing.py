"""Whether the library's own computation is being traced into a graph, in which no value can be looked at.

What reads a value asks :func:`read` instead of ``bool()``. While tracing, conditions are taken to hold: they were
looked at on the example images before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """What was found out on the example images, for it cannot be found out while tracing.

    Attributes:
        head: The weight ``(K, C)`` of the linear layer, if the logits are that layer of the mean over the positions.
    """

    head: Tensor | None = None


_CURRENT: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current_trace() -> Trace | None:
    """The trace that this thread makes; None if it makes none."""
    return _CURRENT.get()


@contextlib.contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Trace in this thread until the block ends.

    Args:
        trace: What is known.
    """
    token = _CURRENT.set(trace)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def read(flag: Tensor, *, traced: bool) -> bool:
    """The value of a condition.

    Args:
        flag: One bool, on any device.
        traced: What to take it for while tracing.

    Returns:
        The value.
    """
    return bool(flag) if _CURRENT.get() is None else traced
