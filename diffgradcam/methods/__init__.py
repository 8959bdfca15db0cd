"""The class activation methods, one module for each family, and the list of them.

A module of this folder is found by itself: a new method needs no entry elsewhere, only the decorator
:func:`register` on its class.
"""

import importlib
import pkgutil

from .._core.registry import Method, register, registered_methods, unregister

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Method", "register", "registered_methods", "unregister"]
