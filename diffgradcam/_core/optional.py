"""Packages that only some functions need, imported on the first call."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PACKAGES = {"sklearn": "scikit-learn"}  # where the package has another name than what is imported


def import_optional(module: str, needed_by: str) -> Any:
    """Import a module that is not always installed.

    Args:
        module: Such as ``"scipy.stats"``.
        needed_by: The function or feature that needs it, for the message.

    Returns:
        The module.

    Raises:
        ImportError: If the package is not installed. The message says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.split(".")[0]
        package = _PACKAGES.get(top, top)
        raise ImportError(f"{needed_by} needs {package}, which is not installed; pip install {package}") from error
