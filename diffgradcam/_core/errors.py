"""Errors that code tells from others of their kind. Each is also one of Python's own, by which users catch it."""

from __future__ import annotations


class NonFiniteValues(ValueError):
    """A value is NaN or infinite: in the images, in what the model makes of them, or in a map."""


class LayerDidNotRun(RuntimeError):
    """No target layer ran in a forward pass."""


class NotTraceable(RuntimeError):
    """What explains a model cannot be written down as one graph."""


class HeadIsNotPooledLinear(RuntimeError):
    """The logits are not a linear layer of the mean over the positions, as was taken for granted."""
