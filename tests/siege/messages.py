"""Is an error one of our own? It is if a ``raise`` statement of the library made it, not a call that failed there."""

from __future__ import annotations

import ast
import functools
import traceback
from pathlib import Path

import diffgradcam

PACKAGE = Path(diffgradcam.__file__).parent
KINDS = (TypeError, ValueError, RuntimeError, OSError, ImportError, KeyError)


@functools.cache
def raise_lines(path: str) -> frozenset[int]:
    """The lines of all ``raise`` statements of a file."""
    statements = [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.Raise)]
    return frozenset(line for node in statements for line in range(node.lineno, (node.end_lineno or node.lineno) + 1))


def is_ours(error: BaseException) -> bool:
    """Whether a ``raise`` of the library made the error, and it is of a kind that callers expect."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    inside = Path(frame.filename).is_relative_to(PACKAGE)
    if isinstance(error, OSError) and error.filename is not None:
        return True  # the system says which file it cannot open, and why
    return isinstance(error, KINDS) and inside and frame.lineno in raise_lines(frame.filename)


def is_the_users(error: BaseException) -> bool:
    """Whether it came out of a module of the user's, as a model that refuses its input."""
    return any(
        "torch/nn/modules/module.py" in Path(f.filename).as_posix() for f in traceback.extract_tb(error.__traceback__)
    )
