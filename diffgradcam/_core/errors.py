"""Errors that code must tell from others of their kind."""

from __future__ import annotations


class NonFiniteValues(ValueError):
    """A value is NaN or infinite: in the images, in what the model makes of them, or in a map."""
