"""Packages of the extra ``metrics``, imported when something needs them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {"sklearn": "scikit-learn", "scipy": "SciPy"}


def import_extra(module: str, user: str = "this metric") -> Any:
    """Import a module that not everybody has.

    Args:
        module: Of scikit-learn or SciPy, such as ``"scipy.stats"``.
        user: What needs it, for the message.

    Returns:
        The module.

    Raises:
        ImportError: If the package is not installed. The message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = _NAMES[module.split(".")[0]]
        raise ImportError(f"{user} needs {name}, which is not installed: pip install {name.lower()}") from error
